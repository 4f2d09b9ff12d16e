from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from isblk.errors import ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.text import Pairs, decode_pairs, encode_pairs
from isblk.target.config import PortalConfig, TargetConfig
from isblk.target.negotiate import Agreed
from isblk.target.outcome import Nexus
from isblk.target.sessions import DISCOVERY, NORMAL, Link, Node, Session
from isblk.target.texts import Exchange, addresses, answer_text, cut
from support.rawinitiator import RawInitiator, open_node

PORTALS = (
    PortalConfig("127.0.0.1", 3260, 1),
    PortalConfig("0.0.0.0", 3261, 2),
    PortalConfig("::1", 3262, 2),
    PortalConfig("10.0.0.1", 3260, 3, announced="san.example:3270"),
)
CONFIG = TargetConfig(name="iqn.2026-11.org.isblk:texts", portals=PORTALS)
ALL = [("TargetName", CONFIG.name)] + [
    ("TargetAddress", each) for each in ("127.0.0.1:3260,1", "192.0.2.7:3261,2", "[::1]:3262,2", "san.example:3270,3")
]


def session(node: Node, kind: str) -> Session:
    link: Link = RawInitiator(node).connection
    return Session(Nexus("i", bytes(6), 1), kind, 1, 0, link, 8)


def ask(kind: str, key: str, value: str, agreed: Agreed | None = None) -> Pairs:
    node = open_node(CONFIG)
    return answer_text(node, session(node, kind), agreed or Agreed(), [(key, value)], "192.0.2.7")


def test_every_portal_is_told_with_its_group_as_the_initiator_can_reach_it() -> None:
    assert addresses(open_node(CONFIG), "192.0.2.7") == [address for _, address in ALL[1:]]


@pytest.mark.parametrize(
    "kind, value, answer",
    [
        (DISCOVERY, "All", ALL),
        (DISCOVERY, CONFIG.name, ALL),
        (DISCOVERY, "", []),
        (DISCOVERY, "iqn.2026-11.org.isblk:other", []),
        (NORMAL, "", ALL),
        (NORMAL, CONFIG.name.upper(), ALL),
        (NORMAL, "All", [("SendTargets", "Reject")]),
    ],
)
def test_send_targets_by_session_type_and_value(kind: str, value: str, answer: Pairs) -> None:
    assert ask(kind, "SendTargets", value) == answer


def test_max_recv_data_segment_length_may_change_and_other_keys_may_not() -> None:
    agreed = Agreed()
    assert ask(NORMAL, "MaxRecvDataSegmentLength", "4096", agreed) == []
    assert agreed.initiator_max_recv_data_segment_length == 4096
    assert ask(NORMAL, "MaxBurstLength", "4096") == [("MaxBurstLength", "Reject")]
    assert ask(NORMAL, "X-com.example.key", "1") == [("X-com.example.key", "NotUnderstood")]
    with pytest.raises(ProtocolError):
        ask(NORMAL, "MaxRecvDataSegmentLength", "1")


def test_text_is_cut_between_pairs_or_anywhere() -> None:
    whole = cut(ALL, 64, by_c_bit=False)
    assert all(len(piece) <= 64 for piece in whole)
    assert [pair for piece in whole for pair in decode_pairs(piece)] == ALL
    anywhere = cut(ALL, 10, by_c_bit=True)
    assert all(len(piece) == 10 for piece in anywhere[:-1])
    assert decode_pairs(b"".join(anywhere)) == ALL
    assert cut([], 64, by_c_bit=False) == [b""]
    assert cut(ALL[:1], 5, by_c_bit=False) == [encode_pairs(ALL[:1])]


def exchange(by_c_bit: bool = False) -> tuple[Exchange, Callable[[Pairs], list[bytes]]]:
    numbers = count(100)
    return Exchange(lambda: next(numbers), by_c_bit), lambda pairs: cut(pairs, 16, by_c_bit)


@pytest.mark.parametrize("by_c_bit, flag", [(False, 0), (True, pdu.CONTINUE)])
def test_a_long_answer_is_fetched_piece_by_piece(by_c_bit: bool, flag: int) -> None:
    made, answer = exchange(by_c_bit)
    question = encode_pairs([("A", "1" * 10), ("B", "2" * 10)])
    flags, data, ttt = made.take(pdu.RESERVED_TAG, question, False, answer)
    assert (flags, ttt) == (flag, 100)
    flags, rest, last = made.take(ttt, b"", False, answer)
    assert (flags, last) == (pdu.FINAL, pdu.RESERVED_TAG)
    assert data + rest == question


def test_a_question_in_pieces_is_answered_once_it_is_whole() -> None:
    made, answer = exchange()
    flags, data, ttt = made.take(pdu.RESERVED_TAG, b"A=1", True, answer)
    assert (flags, data, ttt) == (0, b"", 100)
    assert made.take(ttt, b"\0", False, answer) == (pdu.FINAL, b"A=1\0", pdu.RESERVED_TAG)


def test_a_reserved_tag_begins_anew_and_a_wrong_one_is_an_error() -> None:
    made, answer = exchange()
    question = encode_pairs([("A", "1" * 10), ("B", "2" * 10)])
    made.take(pdu.RESERVED_TAG, question, False, answer)
    assert made.take(pdu.RESERVED_TAG, b"C=3\0", False, answer) == (pdu.FINAL, b"C=3\0", pdu.RESERVED_TAG)
    with pytest.raises(ProtocolError):
        made.take(100, b"", False, answer)


def test_text_into_a_continuing_answer_is_an_error() -> None:
    made, answer = exchange()
    _, _, ttt = made.take(pdu.RESERVED_TAG, encode_pairs([("A", "1" * 10), ("B", "2" * 10)]), False, answer)
    with pytest.raises(ProtocolError):
        made.take(ttt, b"C=3\0", False, answer)
