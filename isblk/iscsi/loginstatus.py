"""Why a target says no to a login: status class and detail to words, remedy and exception (RFC 7143 11.13.5)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple

from isblk.errors import ExitCode, IsblkError, LoginRefused, NotFound, ProtocolError
from isblk.iscsi.names import Portal

SUCCESS = 0
REDIRECTION = 1
INITIATOR_ERROR = 2
AUTHENTICATION_FAILURE = (2, 1)
_MOVED_PERMANENTLY = 2


class Doubt(Enum):
    """What an authentication failed of."""

    REFUSED = auto()
    """The target takes our name or proof for wrong, or says no more."""
    WANTED = auto()
    """It wants a proof, and we have no credentials."""
    UNWANTED = auto()
    """We have credentials, and it does not authenticate."""
    NO_ALGORITHM = auto()
    BROKEN_OFF = auto()
    """It closed the connection in the middle."""
    REFLECTED = auto()
    """It sent our own challenge back."""
    UNPROVED = auto()
    """It gave no proof, though it was asked for."""
    MIRRORED = auto()
    """It proved itself with our own secret."""
    WRONG_PROOF = auto()
    OTHER_NAME = auto()


class AuthenticationFailed(LoginRefused):
    """One side could not prove who it is; `doubt` says how. `retry_with_md5`: one more login that offers CHAP with MD5 alone may succeed.

    That is so when a stronger algorithm was offered: some targets number the algorithms wrongly, others choke on the list.
    """

    def __init__(self, message: str, retry_with_md5: bool = False, doubt: Doubt = Doubt.REFUSED) -> None:
        super().__init__(message)
        self.retry_with_md5 = retry_with_md5
        self.doubt = doubt


class LoginDeferred(LoginRefused):
    """The target cannot serve now; the same login may be retried later (status class 3)."""


class ServiceUnavailable(LoginDeferred):
    """The target is not in operation, or not there: LIO says it of a name that it does not know, so it ends a command as NotFound does."""

    exit_code = ExitCode.NOT_FOUND
    errno = errno.ENXIO


class Redirect(IsblkError):
    """The target is elsewhere: log in at `portal`, for good if `permanent`, else here again the next time. The caller bounds the hops."""

    def __init__(self, target: str, portal: Portal, permanent: bool) -> None:
        super().__init__(f"{target} has moved {'permanently' if permanent else 'temporarily'} to {portal}: log in there")
        self.portal = portal
        self.permanent = permanent


class Status(NamedTuple):
    """One row: what happened, what to do, and the exception that carries it."""

    words: str
    remedy: str
    failure: type[IsblkError]


_REPORT = "this is a fault of isblk or of the target: report it with a trace"
_LATER = "try again later"

STATUSES: Mapping[tuple[int, int], Status] = {
    (2, 0): Status("the target refuses the initiator without saying why", "look into the target's log", LoginRefused),
    (2, 1): Status(
        "authentication failed",
        "check the CHAP name and secret on both sides, and whether the target wants authentication at all",
        AuthenticationFailed,
    ),
    (2, 2): Status("this initiator is not allowed to use the target", "add the initiator's name to the target's access list", LoginRefused),
    (2, 3): Status("there is no such target at this address", "see `isblk discover` for the names that are there", NotFound),
    (2, 4): Status("the target has been removed and left no address", "ask its administrator, or see `isblk discover`", NotFound),
    (2, 5): Status("the target does not speak this version of iSCSI", "it needs iSCSI version 0, the only one there is", LoginRefused),
    (2, 6): Status("there are too many connections in the session", "close one, or raise the target's limit", LoginRefused),
    (2, 7): Status("the target misses a parameter", _REPORT, LoginRefused),
    (2, 8): Status("this address cannot take part in the session", "use a portal of the session's portal group", LoginRefused),
    (2, 9): Status("the target does not offer this type of session", "allow discovery at the target, or name the target", LoginRefused),
    (2, 10): Status("the session to join does not exist any more", "log in anew", LoginRefused),
    (2, 11): Status("the target got a request that has no place in a login", _REPORT, LoginRefused),
    (3, 0): Status("the target has a hardware or software error", "look into the target's log, then " + _LATER, LoginDeferred),
    (3, 1): Status("the target is not in operation or not there", "check its name with `isblk discover`, or " + _LATER, ServiceUnavailable),
    (3, 2): Status("the target has run out of sessions, connections or other resources", "end other sessions, or " + _LATER, LoginDeferred),
}

# A class is enough for a simple initiator (11.13.5): what stands in for details that are not known.
_CLASSES: Mapping[int, Status] = {
    2: Status("the target blames the initiator, with a detail that RFC 7143 does not list", "look into the target's log", LoginRefused),
    3: Status("the target cannot serve now, with a detail that RFC 7143 does not list", _LATER, LoginDeferred),
}


def refusal(status_class: int, status_detail: int, target: str) -> IsblkError:
    """The exception for a status of class 2 or 3; `target` says whom we asked. Any other class is a ProtocolError."""
    status = STATUSES.get((status_class, status_detail)) or _CLASSES.get(status_class)
    code = f"0x{status_class:02x}{status_detail:02x}"
    if status is None:
        return ProtocolError(f"login to {target} failed with status {code}, whose class does not exist (RFC 7143 11.13.5)")
    return status.failure(f"login to {target} failed: {status.words} (status {code}); {status.remedy}")


def redirect(status_detail: int, addresses: list[str], target: str) -> Redirect:
    """The exception for a status of class 1 with the values of its TargetAddress keys. Raises ProtocolError when none can be used."""
    if not addresses:
        raise ProtocolError(f"login to {target} was redirected without an address (RFC 7143 11.13.5)")
    return Redirect(target, Portal.from_target_address(addresses[0]), status_detail == _MOVED_PERMANENTLY)
