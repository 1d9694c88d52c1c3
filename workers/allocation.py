"""What the C library does with the memory of freed tensors."""

import ctypes
import platform

# mallopt's parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_NEVER = -1  # of the trim threshold: nothing is given back
_GIBIBYTE = 1 << 30


def keep_freed_memory() -> bool:
    """Makes glibc keep freed tensors for the next ones; to be called where a training process starts.

    By default it maps every larger tensor anew and gives it back when it is freed, so that each step's tensors are
    faulted in page by page again. Kept, the process holds its largest extent until it ends, which it needs again in
    the next step anyhow. One arena, because the others map tensors of more than 64 MiB however high the threshold is.
    Says whether it could: False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _GIBIBYTE), (_M_TRIM_THRESHOLD, _NEVER))
    taken = [mallopt(parameter, value) == 1 for parameter, value in wanted]
    return all(taken)
