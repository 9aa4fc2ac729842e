"""Tell the C library to keep freed memory for the next block; it allocates nothing itself.

glibc maps every large piece of memory anew and gives it back when it is freed. A replay makes and
drops a megabyte for each block of ticks, so a quarter of its time went into page faults. With these
settings a block gets the memory of an earlier one, which is also still in the processor's cache.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
# Pieces up to this size come from the heap: the encoding of a block of 4096 ticks is 1.2 MB.
_MAPPED_BYTES = 8 * 1024 * 1024
# So much that is free at the heap's end may stay with the process.
_KEPT_BYTES = 16 * 1024 * 1024
_STEP_BYTES = 1024 * 1024


def keep_freed_memory() -> bool:
    """Set the thresholds; return False where the C library has none (musl, macOS)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = (
        (_MMAP_THRESHOLD, _MAPPED_BYTES),
        (_TRIM_THRESHOLD, _KEPT_BYTES),
        (_TOP_PAD, _STEP_BYTES),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
