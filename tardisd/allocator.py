"""Tell the C library how to keep freed memory for the next block; it allocates nothing itself.

glibc maps every large piece of memory anew and gives it back when it is freed. A replay makes and
drops a megabyte for each block of ticks, so a quarter of its time went into page faults. With these
settings a block gets the memory of an earlier one, which is also still in the processor's cache.

What a thread keeps for itself, nobody else gets: eight threads with arenas of their own, and Arrow
with a third allocator, held 60 MiB more in a backfill from archives, and it was no faster.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # malloc.h
# Pieces up to this size come from the heap: the encoding of a block of 4096 ticks is 1.2 MB.
_MAPPED_BYTES = 8 * 1024 * 1024
# So much that is free at the heap's end may stay with the process.
_KEPT_BYTES = 16 * 1024 * 1024
_STEP_BYTES = 1024 * 1024
# Python runs one thread at a time; the second arena is for those that copy or pack meanwhile.
_ARENAS = 2
_ARROW_POOL = "ARROW_DEFAULT_MEMORY_POOL"  # read when Arrow is imported


def keep_freed_memory() -> bool:
    """Set the thresholds, and have Arrow use the same memory; call it before Arrow is imported.

    Returns False where the C library has none (musl, macOS): then Arrow keeps its own.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = (
        (_MMAP_THRESHOLD, _MAPPED_BYTES),
        (_TRIM_THRESHOLD, _KEPT_BYTES),
        (_TOP_PAD, _STEP_BYTES),
        (_ARENA_MAX, _ARENAS),
    )
    os.environ.setdefault(_ARROW_POOL, "system")
    return all(mallopt(name, value) == 1 for name, value in settings)
