"""Each failure knows its errno and its exit code, and scripts can rely on both."""

from __future__ import annotations

import errno

import pytest

from isblk import errors
from isblk.errors import ExitCode, IsblkError


@pytest.mark.parametrize(
    "failure, exit_code, number",
    [
        (errors.IsblkError, 6, errno.EIO),
        (errors.UsageError, 2, errno.EINVAL),
        (errors.NotFound, 3, errno.ENXIO),
        (errors.LoginRefused, 4, errno.EACCES),
        (errors.Unreachable, 5, errno.EHOSTUNREACH),
        (errors.ProtocolError, 6, errno.EIO),
        (errors.DigestError, 6, errno.EIO),
        (errors.PathLost, 6, errno.EIO),
        (errors.RequestFailed, 6, errno.EIO),
        (errors.TaskAborted, 6, errno.EIO),
        (errors.NoPath, 6, errno.EIO),
        (errors.RequestInvalid, 6, errno.EINVAL),
        (errors.Interrupted, 130, errno.EINTR),
    ],
)
def test_a_failure_has_its_exit_code_and_errno(failure: type[IsblkError], exit_code: int, number: int) -> None:
    error = failure("what failed, where, what to do next")
    assert (error.exit_code, error.errno, str(error)) == (exit_code, number, "what failed, where, what to do next")


def test_every_failure_of_the_tree_is_in_the_table_above() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert len(tree) == 13 and all(issubclass(kind, IsblkError) for kind in tree)


def test_exit_codes_are_those_of_the_manual() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "BUG": 1,
        "USAGE": 2,
        "NOT_FOUND": 3,
        "REFUSED": 4,
        "UNREACHABLE": 5,
        "IO_ERROR": 6,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize("failure", [errors.RequestFailed, errors.RequestInvalid])
def test_a_request_may_fail_with_an_errno_of_its_own(failure: type[errors.RequestFailed] | type[errors.RequestInvalid]) -> None:
    assert failure("the device is full", errno.ENOSPC).errno == errno.ENOSPC
    assert failure("a plain one").errno != errno.ENOSPC


def test_a_wrong_digest_is_a_breach_of_the_protocol() -> None:
    assert issubclass(errors.DigestError, errors.ProtocolError)


def test_each_failure_is_counted_under_a_word_of_its_own() -> None:
    kinds = [kind.kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, IsblkError)]
    assert len(set(kinds)) == len(kinds) - 1, "but for Interrupted, which no request ends with"
    assert errors.kind_of(errors.DigestError("x")) == "digest"
    assert errors.kind_of(KeyError("x")) == "bug"
