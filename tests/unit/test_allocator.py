"""Freed memory stays with the process, where the C library can be told so."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import numpy as np
import pytest

from tardisd.allocator import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_block_gets_the_memory_of_the_one_before():
    assert keep_freed_memory()
    size = 1024 * 1024
    np.ones(size, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(size, np.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 50 * size // resource.getpagesize() // 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_arrow_takes_the_same_memory():
    told = "tardisd.allocator import keep_freed_memory; keep_freed_memory(); import pyarrow"
    script = f"from {told}; print(pyarrow.default_memory_pool().backend_name)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert found.stdout.strip() == b"system"
