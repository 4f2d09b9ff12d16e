"""Header layouts against literal bytes, and the one-line text of every PDU."""

from __future__ import annotations

from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.iscsi import pdu

# RFC 7143 A.4: an iSCSI SCSI Read (10) Command PDU.
READ_10 = bytes.fromhex("01c000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000")
# By hand from 11.7, 11.8 and 11.4: every field has another value, so that no two can be exchanged unseen.
DATA_IN = bytes.fromhex("25810002000001000001000000000000000000aaffffffff000000150000001600000017000000180000001900000001")
R2T = bytes.fromhex("31800000000000000001000000000000000000aa000000bb000000150000001600000017000000010000100000002000")
RESPONSE = bytes.fromhex("21820102000000120000000000000000000000aa00000000000000150000001600000017000000020000000000000200")


def test_a_scsi_command_packs_to_the_bytes_of_the_rfc() -> None:
    cdb = bytes.fromhex("28000000000000000200")
    assert pdu.COMMAND.pack(0x01, pdu.FINAL | pdu.READ, 0, 0, bytes(8), 0x14000000, 0x400, 0x14, 0x18, cdb) == READ_10


def test_a_scsi_command_unpacks_from_the_bytes_of_the_rfc() -> None:
    opcode, flags, _, lengths, lun, itt, length, cmd_sn, exp_stat_sn, cdb = pdu.COMMAND.unpack(READ_10)
    assert (opcode, flags, lengths, lun, itt, length, cmd_sn, exp_stat_sn) == (1, 0xC0, 0, bytes(8), 0x14000000, 0x400, 0x14, 0x18)
    assert cdb == bytes.fromhex("28000000000000000200000000000000")


@pytest.mark.parametrize("layout", [pdu.COMMAND, pdu.INITIATOR, pdu.TARGET, pdu.HOT_TARGET])
def test_every_layout_is_one_basic_header_segment(layout: Struct) -> None:
    assert layout.size == pdu.BHS_LENGTH == 48


def test_the_hot_layout_sees_a_data_in_as_the_rfc_lays_it_out() -> None:
    fields = pdu.HOT_TARGET.unpack(DATA_IN)
    assert fields == (0x81, 0, 2, 0x100, 0xAA, 0xFFFFFFFF, 0x15, 0x16, 0x17, 0x18, 0x19, 1)


def test_the_whole_target_layout_adds_opcode_and_lun() -> None:
    assert pdu.TARGET.unpack(R2T)[:7] == (0x31, 0x80, 0, 0, 0, bytes.fromhex("0001000000000000"), 0xAA)
    assert pdu.TARGET.unpack(R2T)[7:] == (0xBB, 0x15, 0x16, 0x17, 1, 0x1000, 0x2000)


def test_the_lengths_are_words_of_ahs_and_bytes_of_data() -> None:
    header = bytes(4) + bytes.fromhex("02000101") + bytes(40)
    (lengths,) = pdu.LENGTHS.unpack_from(header, 4)
    assert (lengths >> 24 << 2, lengths & 0xFFFFFF) == (8, 257)


@pytest.mark.parametrize("length, whole", [(0, 0), (1, 4), (3, 4), (4, 4), (5, 8), (0xFFFFFF, 0x1000000)])
def test_padding_fills_up_to_whole_words(length: int, whole: int) -> None:
    assert pdu.padded(length) == whole


@pytest.mark.parametrize(
    "bhs, text",
    [
        (READ_10, "SCSI Command flags=0xc0 bytes=0 itt=0x14000000 lun=0000000000000000 cdb=28000000000000000200000000000000 "
                  "length=1024 cmd_sn=20 exp_stat_sn=24"),
        (DATA_IN, "Data-In flags=0x81 bytes=256 itt=0xaa lun=0001000000000000 response=0x00 status=0x02 "
                  "ttt=4294967295 stat_sn=21 exp_cmd_sn=22 max_cmd_sn=23 data_sn=24 offset=25 residual=1"),
        (R2T, "R2T flags=0x80 bytes=0 itt=0xaa lun=0001000000000000 ttt=187 stat_sn=21 exp_cmd_sn=22 max_cmd_sn=23 "
              "r2t_sn=1 offset=4096 length=8192"),
        (RESPONSE, "SCSI Response flags=0x82 bytes=18 itt=0xaa lun=0000000000000000 response=0x01 status=0x02 "
                   "stat_sn=21 exp_cmd_sn=22 max_cmd_sn=23 exp_data_sn=2 residual=512"),
        (bytes([0x40]) + bytes(47), "NOP-Out immediate flags=0x00 bytes=0 itt=0x0 lun=0000000000000000 ttt=0 cmd_sn=0 exp_stat_sn=0"),
        (bytes([0x3F, 0x80, 0x09]) + bytes(45), "Reject flags=0x80 bytes=0 itt=0x0 lun=0000000000000000 reason=0x09 "
                                                "stat_sn=0 exp_cmd_sn=0 max_cmd_sn=0 data_sn=0"),
    ],
)  # fmt: skip
def test_a_pdu_is_told_in_one_line(bhs: bytes, text: str) -> None:
    assert pdu.describe(bhs) == text
    assert pdu.describe(memoryview(bhs)) == text


def test_every_opcode_has_a_name_and_its_words() -> None:
    for opcode, name in pdu.NAMES.items():
        assert pdu.describe(bytes([opcode]) + bytes(47)).startswith(name + " ")
        assert len(pdu._WORDS[opcode]) == 7


@given(st.binary(min_size=48, max_size=48))
def test_any_header_can_be_told(bhs: bytes) -> None:
    assert "\n" not in pdu.describe(bhs)
