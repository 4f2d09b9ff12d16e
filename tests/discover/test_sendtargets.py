from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.discover import sendtargets
from isblk.discover.sendtargets import TargetRecord, parse_records, send_targets
from isblk.errors import ProtocolError
from isblk.iscsi.names import Portal
from isblk.iscsi.text import decode_pairs

ASKED = Portal("192.0.2.1", 3260)

APPENDIX_C = (
    b"TargetName=iqn.1993-11.com.example:diskarray.sn.8675309\0TargetAddress=10.1.0.45:3000,1\0TargetAddress=10.1.1.45:3000,2\0"
    b"TargetName=iqn.1993-11.com.example:diskarray.sn.1234567\0TargetAddress=[1080::8:800:200C:417A]:5003,1\0"
    b"TargetAddress=computingcenter.example.com,23\0"
)


def test_records_of_the_rfc_in_their_order() -> None:
    assert parse_records(decode_pairs(APPENDIX_C), ASKED) == [
        TargetRecord("iqn.1993-11.com.example:diskarray.sn.8675309", (Portal("10.1.0.45", 3000, 1), Portal("10.1.1.45", 3000, 2))),
        TargetRecord(
            "iqn.1993-11.com.example:diskarray.sn.1234567",
            (Portal("1080::8:800:200c:417a", 5003, 1), Portal("computingcenter.example.com", 3260, 23)),
        ),
    ]


def test_record_prints_a_line_for_each_portal() -> None:
    record = TargetRecord("iqn.a:b c", (Portal("10.1.0.45", 3000, 1), Portal("::1", 3260, 2)))
    assert str(record) == "10.1.0.45:3000,1 iqn.a:b\\x20c\n[::1]:3260,2 iqn.a:b\\x20c"


def test_target_without_addresses_is_at_the_portal_that_was_asked() -> None:
    assert parse_records([("TargetName", "iqn.a"), ("TargetName", "iqn.b")], ASKED) == [
        TargetRecord("iqn.a", (ASKED,)),
        TargetRecord("iqn.b", (ASKED,)),
    ]


def test_no_targets_is_no_records() -> None:
    assert parse_records([], ASKED) == []


def test_repeated_targets_and_portals_are_one() -> None:
    pairs = [
        ("TargetName", "iqn.a"),
        ("TargetAddress", "h:1,1"),
        ("TargetName", "iqn.b"),
        ("TargetName", "iqn.a"),
        ("TargetAddress", "h:1,1"),
        ("TargetAddress", "h:2,1"),
    ]
    assert parse_records(pairs, ASKED) == [TargetRecord("iqn.a", (Portal("h", 1, 1), Portal("h", 2, 1))), TargetRecord("iqn.b", (ASKED,))]


def test_odd_names_and_foreign_keys_do_not_stop_discovery() -> None:
    pairs = [("TargetName", "My Disk_1"), ("TargetAlias", "x"), ("TargetName", "iqn.a")]
    assert [record.name for record in parse_records(pairs, ASKED)] == ["My Disk_1", "iqn.a"]


@pytest.mark.parametrize(
    "pairs",
    [
        [("TargetAddress", "10.0.0.1:3260,1")],
        [("TargetName", "")],
        [("TargetName", "x" * 224)],
        [("TargetName", "iqn.a"), ("TargetAddress", "")],
        [("TargetName", "iqn.a"), ("TargetAddress", "10.0.0.1:99999,1")],
        [("TargetName", "iqn.a"), ("TargetAddress", "10.0.0.1:3260,65536")],
        [("SendTargets", "Reject")],
        [("SendTargets", "NotUnderstood")],
    ],
)
def test_malformed_answers_are_protocol_errors(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(ProtocolError):
        parse_records(pairs, ASKED)


def test_records_and_portals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sendtargets, "MAX_RECORDS", 2)
    monkeypatch.setattr(sendtargets, "MAX_PORTALS", 2)
    names = [("TargetName", f"iqn.{number}") for number in range(3)]
    assert len(parse_records(names[:2], ASKED)) == 2
    with pytest.raises(ProtocolError, match="more than 2 targets"):
        parse_records(names, ASKED)
    with pytest.raises(ProtocolError, match="more than 2 addresses"):
        parse_records([names[0], *(("TargetAddress", f"h:{port},1") for port in (1, 2, 3))], ASKED)


@given(st.lists(st.tuples(st.sampled_from(["TargetName", "TargetAddress", "SendTargets", "X-a"]), st.text(max_size=20)), max_size=6))
def test_random_pairs_raise_only_protocol_error(pairs: list[tuple[str, str]]) -> None:
    try:
        records = parse_records(pairs, ASKED)
    except ProtocolError:
        return
    assert all(record.portals for record in records)


class RecordedConnection:
    """A connection whose answer is known, and that keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.asked: list[tuple[str, str]] = []
        self._answer = answer

    async def text(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        self.asked += pairs
        return decode_pairs(self._answer)


async def test_send_targets_asks_for_all() -> None:
    connection = RecordedConnection(APPENDIX_C)
    records = await send_targets(connection, ASKED)
    assert connection.asked == [("SendTargets", "All")]
    assert [len(record.portals) for record in records] == [2, 2]
