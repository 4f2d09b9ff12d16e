"""How the block around a plane ends: with what the block raised, or without a word when it is cancelled."""

from __future__ import annotations

import pytest
import trio

from isblk.link.running import running_plane


async def test_an_exception_of_the_block_comes_out_as_itself() -> None:
    with pytest.raises(ValueError, match="of the block"):
        async with running_plane():
            raise ValueError("of the block")


async def test_a_cancelled_block_ends_without_an_exception() -> None:
    with trio.CancelScope() as scope:
        async with running_plane():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
