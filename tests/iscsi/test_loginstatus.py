from __future__ import annotations

import pytest

from isblk.errors import ExitCode, IsblkError, LoginRefused, NotFound, ProtocolError
from isblk.iscsi import loginstatus
from isblk.iscsi.loginstatus import AuthenticationFailed, LoginDeferred, Redirect, ServiceUnavailable
from isblk.iscsi.names import Portal

TARGET = "iqn.2001-04.com.example:disk1"

# RFC 7143 11.13.5, each with the exit code that a command ends with.
ROWS = {
    (2, 0): (LoginRefused, ExitCode.REFUSED),
    (2, 1): (AuthenticationFailed, ExitCode.REFUSED),
    (2, 2): (LoginRefused, ExitCode.REFUSED),
    (2, 3): (NotFound, ExitCode.NOT_FOUND),
    (2, 4): (NotFound, ExitCode.NOT_FOUND),
    (2, 5): (LoginRefused, ExitCode.REFUSED),
    (2, 6): (LoginRefused, ExitCode.REFUSED),
    (2, 7): (LoginRefused, ExitCode.REFUSED),
    (2, 8): (LoginRefused, ExitCode.REFUSED),
    (2, 9): (LoginRefused, ExitCode.REFUSED),
    (2, 10): (LoginRefused, ExitCode.REFUSED),
    (2, 11): (LoginRefused, ExitCode.REFUSED),
    (3, 0): (LoginDeferred, ExitCode.REFUSED),
    (3, 1): (ServiceUnavailable, ExitCode.NOT_FOUND),
    (3, 2): (LoginDeferred, ExitCode.REFUSED),
}


def test_every_status_of_the_rfc_has_its_row() -> None:
    assert set(loginstatus.STATUSES) == set(ROWS)


@pytest.mark.parametrize(("code", "expected"), ROWS.items())
def test_a_status_becomes_one_sentence_with_a_remedy(code: tuple[int, int], expected: tuple[type[IsblkError], ExitCode]) -> None:
    error = loginstatus.refusal(*code, TARGET)
    status = loginstatus.STATUSES[code]
    assert type(error) is expected[0]
    assert error.exit_code == expected[1]
    assert str(error) == f"login to {TARGET} failed: {status.words} (status 0x{code[0]:02x}{code[1]:02x}); {status.remedy}"
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("code", "expected"), [((2, 99), LoginRefused), ((3, 99), LoginDeferred), ((4, 0), ProtocolError), ((255, 255), ProtocolError)]
)
def test_unknown_details_fall_back_to_their_class(code: tuple[int, int], expected: type[IsblkError]) -> None:
    error = loginstatus.refusal(*code, TARGET)
    assert type(error) is expected
    assert f"{code[0]:02x}{code[1]:02x}" in str(error)


@pytest.mark.parametrize(("detail", "permanent"), [(1, False), (2, True), (3, False)])
def test_redirects_carry_where_and_for_how_long(detail: int, permanent: bool) -> None:
    error = loginstatus.redirect(detail, ["[2001:db8::1]:3261", "ignored"], TARGET)
    assert isinstance(error, Redirect)
    assert error.portal == Portal("2001:db8::1", 3261)
    assert error.permanent is permanent
    assert "[2001:db8::1]:3261" in str(error)


@pytest.mark.parametrize("addresses", [[], ["not an address"]])
def test_a_redirect_to_nowhere_is_a_protocol_error(addresses: list[str]) -> None:
    with pytest.raises(ProtocolError):
        loginstatus.redirect(1, addresses, TARGET)


def test_only_one_who_says_so_is_worth_a_second_try_with_md5() -> None:
    assert AuthenticationFailed("x", retry_with_md5=True).retry_with_md5
    assert not AuthenticationFailed("x").retry_with_md5
