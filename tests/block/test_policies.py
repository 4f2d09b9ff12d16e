"""What an administrator decides: defaults that are documented, and contradictions refused."""

from __future__ import annotations

from typing import Any

import pytest

from isblk.block.choose import Policy
from isblk.block.policies import FencePolicy, Policies
from isblk.errors import UsageError


def test_the_defaults() -> None:
    default = Policies()
    assert (default.policy, str(default.failback), str(default.no_path), default.fence) == (
        Policy.FAILOVER,
        "immediate",
        "120",
        FencePolicy.STRICT,
    )
    assert (default.shared, default.network_wait, default.fence_wait, default.settle_wait, default.journal_limit) == (
        False,
        5,
        45,
        5,
        64 << 20,
    )


@pytest.mark.parametrize(
    "wrong",
    [{"journal_limit": (1 << 20) - 1}, {"network_wait": -1}, {"fence_wait": -1}, {"settle_wait": -0.5}, {"poll_interval": -1}],
    ids=str,
)
def test_what_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Policies(**wrong)


@pytest.mark.parametrize("policy", list(Policy))
def test_what_follows_from_the_policy(policy: Policy) -> None:
    policies = Policies(policy=policy)
    assert policies.spreads is (policy is not Policy.FAILOVER) and policies.measures_time is (policy is Policy.SERVICE_TIME)
