from __future__ import annotations

import pytest

from isblk.target import pages
from isblk.target.check import Check
from isblk.target.config import LunConfig
from isblk.target.pages import Identity

NAME = "iqn.2026-11.org.isblk:pages"
DISK = Identity.of(LunConfig(3, vendor="ACME", product="ROCKET"), NAME, 2048)
THICK = Identity.of(LunConfig(4, thin=False, write_cache=False), NAME, 2048)
CONTROLLER = Identity.of(LunConfig(0, device_type=0x0C), NAME, 0)


def test_the_identity_depends_on_target_and_lun_alone() -> None:
    assert Identity.of(LunConfig(3, size=99), NAME, 5).naa == DISK.naa
    others = {Identity.of(LunConfig(lun), name, 1).naa for lun in range(3) for name in (NAME, NAME + "2")}
    assert len(others) == 6
    assert DISK.naa[0] >> 4 == 3
    assert len(DISK.naa) == 8


def test_standard_inquiry_says_what_it_is() -> None:
    data = pages.standard_inquiry(DISK, many_groups=False)
    assert len(data) == data[4] + 5 == 96
    assert data[0] == 0
    assert data[8:32] == b"ACME    ROCKET          "
    assert data[5] == 0
    assert pages.standard_inquiry(DISK, many_groups=True)[5] == 0x10
    assert pages.standard_inquiry(CONTROLLER, many_groups=False)[0] == 0x0C


@pytest.mark.parametrize("identity, listed", [(DISK, "008083b0b1b2"), (CONTROLLER, "008083")])
def test_every_page_that_is_listed_is_there_and_no_other(identity: Identity, listed: str) -> None:
    assert pages.vital_product_data(identity, 0, 1)[4:] == bytes.fromhex(listed)
    for page in range(256):
        if page in bytes.fromhex(listed):
            data = pages.vital_product_data(identity, page, 1)
            assert (data[1], int.from_bytes(data[2:4], "big")) == (page, len(data) - 4)
        else:
            with pytest.raises(Check):
                pages.vital_product_data(identity, page, 1)


def test_the_identification_page_names_the_unit_and_the_port_it_is_asked_through() -> None:
    data, designators = pages.vital_product_data(DISK, 0x83, 0x102)[4:], []
    while data:
        designators.append((data[0], data[1], data[4 : 4 + data[3]]))
        data = data[4 + data[3] :]
    assert designators[0] == (0x01, 0x03, DISK.naa)
    assert designators[1] == (0x02, 0x01, b"ACME    " + DISK.serial.encode())
    assert designators[2] == (0x51, 0x94, b"\0\0\1\2")
    assert designators[3] == (0x51, 0x95, b"\0\0\1\2")
    code_set, kind, name = designators[4]
    assert (code_set, kind, len(name) % 4) == (0x53, 0x98, 0)
    assert name.rstrip(b"\0") == NAME.encode() + b",t,0x0102"
    assert name.endswith(b"\0")


def test_block_limits_speak_of_unmap_only_when_thin() -> None:
    thin, thick = (pages.vital_product_data(each, 0xB0, 1) for each in (DISK, THICK))
    assert len(thin) == 64
    assert int.from_bytes(thin[8:12], "big") == (16 << 20) // 512
    assert int.from_bytes(thin[28:32], "big") == 8
    assert thin[20:36] != bytes(16)
    assert thick[20:36] == bytes(16)


def test_provisioning_promises_zeros_after_unmap_when_thin() -> None:
    assert pages.vital_product_data(DISK, 0xB2, 1)[4:] == bytes((0, 0xE4, 2, 0))
    assert pages.vital_product_data(THICK, 0xB2, 1)[4:] == bytes(4)


def test_mode_sense_shows_write_protection_fua_and_the_cache() -> None:
    cdb = bytes((0x1A, 0, 0x08, 0, 255, 0))
    data = pages.mode_parameters(DISK, cdb, protected=True, long_header=False)
    assert data[0] == len(data) - 1
    assert data[2] == 0x90
    assert data[3] == 8
    assert data[4:12] == bytes((0, 0, 8, 0, 0, 0, 2, 0))
    assert data[12:15] == bytes((0x08, 0x12, 0x04))
    assert pages.mode_parameters(THICK, cdb, protected=False, long_header=False)[14] == 0


def test_the_long_header_and_dbd() -> None:
    data = pages.mode_parameters(DISK, bytes((0x5A, 0x08, 0x3F, 0, 0, 0, 0, 0, 255, 0)), protected=False, long_header=True)
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    assert data[3] == 0x10
    assert data[6:8] == bytes(2)
    assert data[8] == 0x08
    assert data[8 + 20] == 0x0A


def test_nothing_is_changeable_and_nothing_is_saved() -> None:
    assert pages.mode_pages(DISK, 0x08, 0, 1) == bytes((0x08, 0x12)) + bytes(18)
    with pytest.raises(Check) as failed:
        pages.mode_pages(DISK, 0x08, 0, 3)
    assert failed.value.sense[12] == 0x39


@pytest.mark.parametrize("identity, page, subpage", [(DISK, 0x01, 0), (DISK, 0x08, 1), (CONTROLLER, 0x08, 0)])
def test_a_mode_page_that_is_not_there_is_an_invalid_field(identity: Identity, page: int, subpage: int) -> None:
    with pytest.raises(Check) as failed:
        pages.mode_pages(identity, page, subpage, 0)
    assert failed.value.sense[12] == 0x24
