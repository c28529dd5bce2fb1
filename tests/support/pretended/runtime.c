/* Answers what autograd and its device guard ask of the CUDA runtime, where there is no card. Preloaded. */
#include <stddef.h>
#include <string.h>

static long made; /* numbers that stand for streams and events */

#define ANSWER(name, arguments, answer) \
    int name arguments {                \
        answer;                         \
        return 0;                       \
    }

ANSWER(cudaGetDeviceCount, (int *count), *count = 1)
ANSWER(cudaGetDevice, (int *device), *device = 0)
ANSWER(cudaSetDevice, (int device), )
ANSWER(cudaGetLastError, (void), )
ANSWER(cudaPeekAtLastError, (void), )
ANSWER(cudaDriverGetVersion, (int *version), *version = 13020)
ANSWER(cudaDeviceSynchronize, (void), )
ANSWER(cudaDeviceGetAttribute, (int *value, int attribute, int device), *value = attribute == 75 ? 9 : attribute != 76)
ANSWER(cudaDeviceGetStreamPriorityRange, (int *least, int *most), *least = 0; *most = -5)
ANSWER(cudaStreamCreateWithPriority, (void **stream, unsigned flags, int priority), *stream = (void *)++made)
ANSWER(cudaStreamGetPriority, (void *stream, int *priority), *priority = 0)
ANSWER(cudaStreamIsCapturing, (void *stream, int *status), *status = 0)
ANSWER(cudaStreamQuery, (void *stream), )
ANSWER(cudaStreamSynchronize, (void *stream), )
ANSWER(cudaStreamWaitEvent, (void *stream, void *event, unsigned flags), )
ANSWER(cudaEventCreateWithFlags, (void **event, unsigned flags), *event = (void *)++made)
ANSWER(cudaEventRecord, (void *event, void *stream), )
ANSWER(cudaEventRecordWithFlags, (void *event, void *stream, unsigned flags), )
ANSWER(cudaEventQuery, (void *event), )
ANSWER(cudaEventSynchronize, (void *event), )
ANSWER(cudaEventDestroy, (void *event), )
ANSWER(cudaPointerGetAttributes, (void *attributes, const void *pointer), memset(attributes, 0, 32))
