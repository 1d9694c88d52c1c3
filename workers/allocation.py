"""What the C library does with the memory of freed tensors."""

import ctypes
import platform

# mallopt's parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_NEVER = -1  # of the trim threshold: nothing is given back
_GIBIBYTE = 1 << 30

# The same for processes that are still to be started: what keep_freed_memory() asks for, as glibc reads it.
KEEPING_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(_GIBIBYTE),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 62),
}


def keep_freed_memory() -> bool:
    """Makes glibc keep freed tensors for the next ones; to be called before the process has a second thread.

    By default it maps every larger tensor anew and gives it back when it is freed, so that each step's tensors are
    faulted in page by page again. Kept, the process holds its largest extent until it ends, which it needs again in
    the next step anyhow. One arena, because the others map tensors of more than 64 MiB however high the threshold is,
    and give back what is empty. A thread stays with the arena that it was first given, and where there are several
    already, new threads take them in turns: called later, this helps some threads only. A process that has threads
    before any code of ours runs, as Ray's workers have, is better started with KEEPING_FREED_MEMORY around it.
    Says whether it could: False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _GIBIBYTE), (_M_TRIM_THRESHOLD, _NEVER))
    taken = [mallopt(parameter, value) == 1 for parameter, value in wanted]
    return all(taken)
