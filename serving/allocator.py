"""Memory that is freed stays with the process: a batch of the model takes hundreds of MB, many times a second.

By default, glibc gives such blocks back to the kernel at once, and each batch waits for its pages again.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
KEPT_BYTES = 2**30
"""Most that stays with the process after it was freed; a batch of 64 images takes more than half of it."""
LARGEST_BYTES = 2**30
"""Blocks above this go back to the kernel at once."""


def keep_freed_memory() -> bool:
    """Ask glibc for that; False where there is another allocator. Call it before numpy or torch start threads.

    Threads have one pool together then: pools of their own would keep as much each.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = {_M_ARENA_MAX: 1, _M_TRIM_THRESHOLD: KEPT_BYTES, _M_MMAP_THRESHOLD: LARGEST_BYTES}
    taken = [mallopt(option, value) == 1 for option, value in wanted.items()]
    return all(taken)
