"""A process in which this package finds nothing that POSIX alone has, as on Windows. Run as a script, it hides that,
imports the modules that the command line names after ``--`` and acts as ``dembench`` with the words before.

The libraries are imported first, since theirs is to know Windows; so are the modules of Python that they have taken.
"""

import importlib
import os
import signal
import sys

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "crypt", "syslog", "readline")
OF_OS = """
    fork forkpty kill killpg getuid geteuid getgid getegid getgroups getpgid setpgid setsid getpriority nice uname chown
    lchown fchown mkfifo mknod statvfs fstatvfs getloadavg register_at_fork sched_getaffinity sched_setaffinity
    wait wait3 wait4 WIFEXITED WIFSIGNALED WEXITSTATUS WTERMSIG posix_fadvise posix_fallocate sendfile sysconf confstr
    O_DIRECTORY O_CLOEXEC O_SYNC O_NOCTTY getxattr setxattr openpty ttyname pread pwrite
"""
KEPT = ("SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN")


def hide() -> None:
    for name in MODULES:
        sys.modules[name] = None  # its import is an ImportError
    for name in OF_OS.split():
        if hasattr(os, name):
            delattr(os, name)
    for name in [name for name in vars(signal) if name.startswith("SIG") and name not in KEPT]:
        delattr(signal, name)


if __name__ == "__main__":
    at = sys.argv.index("--")
    words, modules = sys.argv[1:at], sys.argv[at + 1 :]
    for library in ("torch", "torchvision", "numpy", "pandas", "matplotlib.pyplot", "hydra", "filelock", "rich.console",
                    "sklearn.datasets", "scipy.stats", "multiprocessing.spawn", "subprocess"):  # fmt: skip
        importlib.import_module(library)
    hide()
    for module in modules:
        importlib.import_module(module)
    from dembench.scripts.cli import main

    sys.exit(main(words))
