/* Stands for libcuda.so.1: a driver with one device whose context is there already. */
#include <stddef.h>

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "pretended"; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuGetProcAddress(const char *n, void **f, int v, unsigned long flags) { *f = NULL; return 1; }
int cuGetProcAddress_v2(const char *n, void **f, int v, unsigned long flags, void *s) { *f = NULL; return 1; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    if (flags) *flags = 0;
    if (active) *active = 1;
    return 0;
}
