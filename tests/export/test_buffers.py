"""buffers.py: buffers are large enough, used again, and not hoarded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.export.buffers import BufferPool

MIB = 1 << 20


@given(st.integers(0, 2 * MIB))
def test_a_buffer_holds_what_was_asked_for_and_can_be_written(length: int) -> None:
    buffer = BufferPool().take(length)
    assert len(buffer) >= length
    assert not buffer.readonly


@pytest.mark.parametrize("length", [1, 4096, 4097, 131072, MIB])
def test_a_buffer_given_back_is_taken_again(length: int) -> None:
    pool = BufferPool()
    first = pool.take(length)
    assert pool.take(length) is not first
    pool.give(first)
    assert pool.take(length) is first


def test_a_burst_does_not_keep_its_memory() -> None:
    pool = BufferPool()
    burst = [pool.take(MIB) for _ in range(100)]
    for buffer in burst:
        pool.give(buffer)
    kept = {id(pool.take(MIB)) for _ in range(100)} & {id(buffer) for buffer in burst}
    assert 0 < len(kept) * MIB <= 16 * MIB


def test_an_odd_buffer_is_not_kept() -> None:
    pool = BufferPool()
    pool.give(pool.take(MIB + 1))
    assert len(pool.take(MIB + 2)) == MIB + 2


def test_large_writes_cost_no_page_faults_once_memory_is_kept() -> None:
    """In a process of its own: mallopt holds for a whole process."""
    program = """
import resource
from isblk.export.buffers import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        bytes(bytearray(1 << 20))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_memory()
faults()
print(faults())
"""
    counted = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert int(counted.stdout) < 50 * 256 / 2
