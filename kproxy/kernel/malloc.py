"""How memory is allocated and collected: settings of Python and of the C library's allocator (mallopt(3)).

The latter have no effect where the library has none, as musl.

Python's objects of up to 512 bytes have an allocator of their own. Buffers, tables of dictionaries and long
texts come from the C library, which by default gives each thread an arena and keeps in each what was freed.
"""

import ctypes
import gc

_M_ARENA_MAX = -8
"""In malloc.h of glibc."""


def use_one_arena() -> None:
    """Let all threads allocate from one arena; call it before they start.

    Threads of Python take turns anyway. It saves 3 MB with 10,000 services, whose lists arrive in threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def freeze_objects() -> None:
    """Collect garbage, then let the collector pass over every object that lives now; return free memory."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    trim()


def trim() -> None:
    """Return free memory to the kernel: 2 MB after a first sync of 10,000 services."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
