from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import UsageError
from isblk.target.store import Store

SIZE = 1 << 20
PAGE = 4096


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store.in_memory(SIZE) if request.param == "memory" else Store.at_path(str(tmp_path / "disk"), SIZE)
    yield made
    made.close()


def test_a_new_disk_reads_as_zeros_and_takes_no_room(store: Store) -> None:
    assert store.read(12345, 100) == bytes(100)
    assert store.allocation(0) == (False, SIZE)


def test_a_cached_write_is_read_back_but_lost_by_a_crash(store: Store) -> None:
    store.write(1000, b"hello")
    assert store.read(998, 9) == b"\0\0hello\0\0"
    assert store.read(1001, 3) == b"ell"
    assert store.durable(1000, 5) == bytes(5)
    store.crash()
    assert store.read(1000, 5) == bytes(5)


def test_synchronized_data_outlives_a_crash(store: Store) -> None:
    store.write(1000, b"hello")
    store.sync()
    store.write(1001, b"XX")
    store.crash()
    assert store.read(1000, 5) == b"hello"


def test_writing_through_replaces_what_the_cache_held(store: Store) -> None:
    store.write(0, b"a" * 10)
    store.write_through(2, b"bb")
    assert store.read(0, 10) == b"aabbaaaaaa"
    store.crash()
    assert store.read(0, 10) == b"\0\0bb" + bytes(6)


def test_a_hole_drops_cached_and_durable_data_alike(store: Store) -> None:
    store.write(0, b"x" * 4 * PAGE)
    store.sync()
    store.write(PAGE, b"y" * PAGE)
    store.deallocate(PAGE, 2 * PAGE)
    assert store.read(0, 4 * PAGE) == b"x" * PAGE + bytes(2 * PAGE) + b"x" * PAGE
    assert store.allocation(0) == (True, PAGE)
    assert store.allocation(PAGE) == (False, 3 * PAGE)
    assert store.allocation(3 * PAGE) == (True, 4 * PAGE)
    assert store.allocation(4 * PAGE) == (False, SIZE)


def test_a_hole_that_is_no_whole_page_still_reads_as_zeros(store: Store) -> None:
    store.write_through(0, b"x" * PAGE)
    store.deallocate(512, 1024)
    assert store.read(0, PAGE) == b"x" * 512 + bytes(1024) + b"x" * (PAGE - 1536)


def test_cached_data_counts_as_allocated(store: Store) -> None:
    store.write(8 * PAGE, b"x" * PAGE)
    assert store.allocation(0) == (False, 8 * PAGE)
    assert store.allocation(8 * PAGE) == (True, 9 * PAGE)
    assert store.is_dirty(8 * PAGE, 1)
    store.sync()
    assert not store.is_dirty(0, SIZE)


def test_the_cache_destages_by_itself_beyond_its_limit() -> None:
    store = Store.in_memory(SIZE, cache_limit=2 * PAGE)
    store.write(0, b"x" * 2 * PAGE)
    assert store.durable(0, PAGE) == bytes(PAGE)
    store.write(4 * PAGE, b"y")
    assert store.durable(0, PAGE) == b"x" * PAGE
    store.close()


@given(st.lists(st.tuples(st.sampled_from("wtdsc"), st.integers(0, 40), st.integers(1, 24), st.integers(1, 255)), max_size=25))
def test_it_behaves_like_two_byte_arrays(steps: list[tuple[str, int, int, int]]) -> None:
    """The model: what is seen, and what is durable."""
    store = Store.in_memory(64)
    seen, durable = bytearray(64), bytearray(64)
    try:
        for step, start, length, value in steps:
            end, data = start + length, bytes([value]) * length
            if step == "w":
                store.write(start, data)
                seen[start:end] = data
            elif step == "t":
                store.write_through(start, data)
                seen[start:end] = durable[start:end] = data
            elif step == "d":
                store.deallocate(start, length)
                seen[start:end] = durable[start:end] = bytes(length)
            elif step == "s":
                store.sync()
                durable[:] = seen
            else:
                store.crash()
                seen[:] = durable
            assert store.read(0, 64) == seen
            assert store.durable(0, 64) == durable
    finally:
        store.close()


def test_a_file_is_created_sparse_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    store = Store.at_path(str(path), 64 << 20)
    assert path.stat().st_size == 64 << 20
    assert path.stat().st_blocks == 0
    store.write(5, b"kept")
    store.close()
    again = Store.at_path(str(path))
    assert again.read(5, 4) == b"kept"
    assert again.size == 64 << 20
    again.close()
    again.close()


def test_a_file_cut_short_under_us_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    store = Store.at_path(str(path), SIZE)
    store.write_through(0, b"x" * PAGE)
    os.truncate(path, 10)
    assert store.read(0, 20) == b"x" * 10 + bytes(10)
    store.close()


@pytest.mark.parametrize(
    "size, content, words",
    [(None, None, "give its size as"), (None, b"", "is empty"), (4096, b"abc", "has 3 bytes, not 4096")],
)
def test_a_file_that_cannot_be_a_disk_is_refused_with_what_to_do(
    tmp_path: Path, size: int | None, content: bytes | None, words: str
) -> None:
    path = tmp_path / "disk"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        Store.at_path(str(path), size)


def test_two_targets_cannot_offer_one_file(tmp_path: Path) -> None:
    first = Store.at_path(str(tmp_path / "disk"), SIZE)
    with pytest.raises(UsageError, match="another target offers it"):
        Store.at_path(str(tmp_path / "disk"))
    first.close()


def test_a_read_only_file_can_be_shared_and_not_created(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with pytest.raises(UsageError):
        Store.at_path(str(path), SIZE, read_only=True)
    path.write_bytes(b"x" * PAGE)
    stores = [Store.at_path(str(path), read_only=True) for _ in range(2)]
    assert stores[0].read(0, 3) == stores[1].read(0, 3) == b"xxx"
    for store in stores:
        store.close()


@pytest.mark.parametrize("size", [0, -1, 1 << 47])
def test_an_absurd_size_is_refused(size: int) -> None:
    with pytest.raises(UsageError):
        Store.in_memory(size)


def test_a_failing_medium_keeps_the_data_in_the_cache(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(0, b"precious")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="full"):
            store.sync()
    assert store.read(0, 8) == b"precious"
    store.sync()
    assert store.durable(0, 8) == b"precious"


def test_a_disk_that_grows_keeps_what_it_has_and_gains_zeros(tmp_path: Path) -> None:
    for store in (Store.in_memory(8192), Store.at_path(str(tmp_path / "disk"), 8192)):
        store.write_through(0, b"m" * 512)
        store.write(4096, b"c" * 4096)
        store.resize(1 << 20)
        assert (store.size, store.read(0, 512), store.read(4096, 4096)) == (1 << 20, b"m" * 512, b"c" * 4096)
        assert store.durable(4096, 4096) == bytes(4096)
        store.write((1 << 20) - 512, b"e" * 512)
        store.sync()
        assert store.durable(4096, 4096) == b"c" * 4096
        assert store.durable((1 << 20) - 1024, 1024) == bytes(512) + b"e" * 512
        store.close()


def test_what_a_disk_lost_by_shrinking_does_not_come_back() -> None:
    store = Store.in_memory(16384)
    store.write(1024, b"c" * 15360)
    store.resize(2048)
    assert store.read(0, 2048) == bytes(1024) + b"c" * 1024
    store.resize(16384)
    assert store.read(0, 16384) == bytes(1024) + b"c" * 1024 + bytes(14336)
    store.sync()
    assert store.durable(2048, 14336) == bytes(14336)
    store.close()


def test_a_disk_that_may_not_be_written_cannot_be_resized(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    store = Store.at_path(str(path), read_only=True)
    with pytest.raises(UsageError, match="cannot make the disk 8192 bytes large"):
        store.resize(8192)
    assert store.size == 4096
    store.close()
