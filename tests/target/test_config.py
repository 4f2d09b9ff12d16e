from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from isblk.iscsi.chap import Credentials
from isblk.target.config import LunConfig, Offer, PortalConfig, Reinstatement, TargetConfig


def test_a_configuration_does_not_show_its_secrets() -> None:
    config = TargetConfig(credentials=Credentials("joe", b"correct horse battery"), mutual=Credentials("me", b"staple correct horse"))
    assert "horse" not in repr(config)


def test_the_defaults_are_one_portal_on_the_registered_port() -> None:
    assert TargetConfig().portals == (PortalConfig("127.0.0.1", 3260, 1),)


def test_a_configuration_cannot_change_under_a_running_target() -> None:
    with pytest.raises(FrozenInstanceError):
        TargetConfig().name = "other"  # type: ignore[misc]


def test_the_default_offer_keeps_the_rules_between_its_values() -> None:
    offer = Offer()
    assert offer.first_burst_length <= offer.max_burst_length <= 0xFFFFFF
    assert offer.default_time2retain == 0
    assert LunConfig(0).max_transfer % LunConfig(0).block_size == 0


def test_a_target_does_as_the_rfc_says_unless_told_otherwise() -> None:
    assert TargetConfig().reinstatement is Reinstatement.TERMINATE
    assert TargetConfig().lun_reset
