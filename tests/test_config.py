"""What a command was told, made into how to log in; secrets that are missing, short, equal or open to others."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from isblk.block.choose import FAIL, MANUAL, QUEUE, Failback, NoPathRetry, Policy
from isblk.block.policies import FencePolicy, Policies
from isblk.config import LoginOptions, PathOptions, credentials, make_access, make_policies, parse_target, read_secret
from isblk.errors import UsageError
from isblk.iscsi.chap import STRONGEST_FIRST, Algorithm
from isblk.iscsi.names import Isid, Portal
from isblk.link.opening import Access
from isblk.link.sweeper import Timing

INITIATOR = "iqn.2026-11.test.isblk:initiator"
NAME = "iqn.2026-11.test.isblk:target"
ISID = Isid.from_random(1)
SECRET, OTHER = "a secret of twenty two", "quite another secret"


def secret_file(place: Path, text: str | bytes = SECRET, mode: int = 0o600) -> str:
    place.write_bytes(text.encode() if isinstance(text, str) else text)
    place.chmod(mode)
    return str(place)


def access(environment: dict[str, str] | None = None, target: Any = None, **options: Any) -> Access:
    return make_access(INITIATOR, ISID, LoginOptions(**options), target=target, environment=environment or {})


# ------------------------------------------------------------------------------------------------------------------------- TARGET


def test_a_name_with_its_portals() -> None:
    target = parse_target(NAME, ["10.0.0.5", "[fd00::5]:3261"])
    assert (target.name, target.lun, target.user) == (NAME, None, None)
    assert target.portals == (Portal("10.0.0.5"), Portal("fd00::5", 3261))


def test_a_name_is_normalized_and_its_spelling_kept() -> None:
    target = parse_target(NAME.upper(), ["h"])
    assert (target.name, target.spelled) == (NAME, NAME.upper())


def test_a_url_says_everything() -> None:
    target = parse_target(f"iscsi://me@10.0.0.5:3261/{NAME.upper()}/7", [])
    assert target.portals == (Portal("10.0.0.5", 3261),)
    assert (target.name, target.lun, target.user, target.spelled) == (NAME, 7, "me", NAME.upper())


def test_portals_given_beside_a_url_win() -> None:
    assert parse_target(f"iscsi://10.0.0.5/{NAME}", ["10.0.0.6"]).portals == (Portal("10.0.0.6"),)


@pytest.mark.parametrize(
    ("text", "portals", "match"),
    [
        (NAME, [], rf"no portal for {NAME}: .*-p HOST.*iscsi://HOST"),
        ("disk1", ["h"], "not an iSCSI name"),
        ("iqn.2026-13.test:x", ["h"], "not an iSCSI name"),
        ("", ["h"], "not an iSCSI name"),
        (NAME, ["h:0"], "not a portal"),
        (NAME, ["10.0.0.300"], "not a portal"),
        (f"iscsi://h/{NAME}/x", [], "not a LUN"),
        (f"http://h/{NAME}", [], "not a target URL"),
        (f"iscsi://me%{SECRET}@h/{NAME}", [], "must not hold a secret"),
        (f"iscsi://me:{SECRET}@h/{NAME}", [], "must not hold a secret"),
    ],
)
def test_what_is_no_target_is_refused_with_the_remedy(text: str, portals: list[str], match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        parse_target(text, portals)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------------------- access


def test_without_options_everything_is_the_default() -> None:
    found = access()
    assert (found.initiator_name, found.isid, found.credentials, found.target_credentials) == (INITIATOR, ISID, None, None)
    assert (found.algorithms, found.md5_retry, found.header_digest, found.data_digest) == (STRONGEST_FIRST, True, "allow", "allow")
    assert found.timing.login_timeout == 15 and found.spelled is None


def test_options_go_where_they_belong(tmp_path: Path) -> None:
    found = access(
        target=parse_target(NAME.upper(), ["h"]),
        user="me",
        secret_file=secret_file(tmp_path / "ours"),
        target_user="it",
        target_secret_file=secret_file(tmp_path / "theirs", OTHER),
        chap_algorithms="SHA256, md5",
        no_md5_retry=True,
        digests=("crc32c", "none"),
        login_timeout=3,
    )
    assert found.credentials is not None and (found.credentials.name, found.credentials.secret) == ("me", SECRET.encode())
    assert found.target_credentials is not None and found.target_credentials.secret == OTHER.encode()
    assert (found.algorithms, found.md5_retry) == ((Algorithm.SHA256, Algorithm.MD5), False)
    assert (found.header_digest, found.data_digest, found.timing.login_timeout) == ("crc32c", "none", 3)
    assert found.spelled == NAME.upper()


def test_secrets_from_the_environment() -> None:
    found = access({"ISBLK_SECRET": SECRET, "ISBLK_TARGET_SECRET": OTHER}, user="me", target_user="it")
    assert found.credentials is not None and found.credentials.secret == SECRET.encode()
    assert found.target_credentials is not None and found.target_credentials.secret == OTHER.encode()
    assert SECRET not in repr(found) and OTHER not in repr(found)


def test_a_secret_in_the_environment_without_a_user_is_not_used() -> None:
    assert access({"ISBLK_SECRET": SECRET}).credentials is None


def test_a_secret_in_the_environment_may_be_any_bytes() -> None:
    found = credentials("me", None, "ISBLK_SECRET", "--secret-file", {"ISBLK_SECRET": os.fsdecode(b"\xff" * 12)})
    assert found is not None and found.secret == b"\xff" * 12


def test_the_file_wins_over_the_environment(tmp_path: Path) -> None:
    path = secret_file(tmp_path / "s", OTHER)
    found = credentials("me", path, "ISBLK_SECRET", "--secret-file", {"ISBLK_SECRET": SECRET})
    assert found is not None and found.secret == OTHER.encode()


def test_the_user_of_the_url_and_the_option_before_it() -> None:
    url = parse_target(f"iscsi://urluser@h/{NAME}", [])
    for option, expected in ((None, "urluser"), ("me", "me")):
        found = access({"ISBLK_SECRET": SECRET}, url, user=option).credentials
        assert found is not None and found.name == expected


@pytest.mark.parametrize(
    ("options", "environment", "match"),
    [
        ({"user": "me"}, {}, r"no secret for the CHAP user me: .*--secret-file FILE, or set \$ISBLK_SECRET"),
        ({"user": "me", "target_user": "it"}, {"ISBLK_SECRET": SECRET}, r"--target-secret-file FILE, or set \$ISBLK_TARGET_SECRET"),
        ({"secret_file": "/nowhere"}, {}, "--secret-file gives a secret but no name"),
        ({"user": "me"}, {"ISBLK_SECRET": "short"}, "has 5 bytes: it needs 12"),
        ({"user": ""}, {"ISBLK_SECRET": SECRET}, "a CHAP name has 1 to 255 bytes"),
        ({"target_user": "it"}, {"ISBLK_TARGET_SECRET": OTHER}, "mutual CHAP needs the initiator's own"),
        ({"user": "me", "target_user": "it"}, {"ISBLK_SECRET": SECRET, "ISBLK_TARGET_SECRET": SECRET}, "are equal: they must differ"),
        ({"chap_algorithms": "sha512"}, {}, "not a list of CHAP algorithms: 'sha512'; it is made of md5, sha1"),
        ({"chap_algorithms": "md5,MD5"}, {}, "not a list of CHAP algorithms"),
        ({"chap_algorithms": ""}, {}, "not a list of CHAP algorithms"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(options: dict[str, Any], environment: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        access(environment, **options)
    assert not any(secret in str(caught.value) for secret in (SECRET, OTHER, "short"))


# -------------------------------------------------------------------------------------------------------------------------- paths

ONE, TWO = (Portal("h"),), (Portal("h"), Portal("h", 3261))


def policies(portals: tuple[Portal, ...] = ONE, more_portals: bool = False, **words: Any) -> tuple[Policies, Timing]:
    return make_policies(PathOptions(**words), portals, 15, more_portals)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "", "100000"])
def test_a_queue_depth_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--queue-depth cannot be"):
        policies(queue_depth=text)


def test_without_path_options_everything_is_the_default() -> None:
    found, timing = policies()
    assert (found.policy, found.failback, found.no_path) == (Policy.FAILOVER, Failback(0), NoPathRetry(120))
    assert (found.fence, found.shared, found.journal_limit) == (FencePolicy.STRICT, False, 64 << 20)
    assert found.queue_depth is None
    assert (timing.login_timeout, timing.noop_interval, timing.noop_timeout) == (15, 5, 5)


def test_path_options_go_where_they_belong() -> None:
    words = {"policy": "queue-length", "failback": "manual", "no_path_retry": "queue", "fence": "fast", "shared": True}
    found, timing = policies(TWO, noop_interval="1", noop_timeout="1.5", **words)
    assert (found.policy, found.failback, found.no_path) == (Policy.QUEUE_LENGTH, MANUAL, QUEUE)
    assert (found.fence, found.shared) == (FencePolicy.FAST, True)
    assert (timing.noop_interval, timing.noop_timeout) == (1, 1.5)
    assert policies(queue_depth="32")[0].queue_depth == 32
    assert policies(failback="7.5")[0].failback == Failback(7.5)


@pytest.mark.parametrize(
    ("retry", "replacement", "seconds"),
    [
        ("fail", None, 0),
        ("30", None, 30),
        (None, "0", 0),
        (None, "-1", math.inf),
        (None, "90.5", 90.5),
        ("fail", "0", 0),
        ("queue", "-1", math.inf),
    ],
)
def test_how_long_requests_wait_has_two_names(retry: str | None, replacement: str | None, seconds: float) -> None:
    assert policies(no_path_retry=retry, replacement_timeout=replacement)[0].no_path.seconds == seconds
    assert FAIL.seconds == 0


def test_no_pings_where_there_is_one_path() -> None:
    assert policies(noop_interval="0")[1].noop_interval == 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"policy": "round_robbin"}, "'round_robbin' is no policy for choosing a path: did you mean round-robin[?]"),
        ({"policy": "Service-Time"}, "did you mean service-time[?]"),
        ({"policy": "best"}, "there are failover, round-robin, queue-length, service-time"),
        ({"policy": ""}, "'' is no policy"),
        ({"fence": "loose"}, "'loose' is no fence policy: there are strict, fast"),
        ({"failback": "never"}, "failback cannot be 'never': it is immediate, manual, or a number of seconds"),
        ({"failback": "-1"}, "failback cannot be '-1'"),
        ({"no_path_retry": "forever"}, "no_path_retry cannot be 'forever': it is fail, queue, or a number of seconds"),
        ({"no_path_retry": "inf"}, "no_path_retry cannot be 'inf'"),
        ({"no_path_retry": "fail", "replacement_timeout": "120"}, "fail and --replacement-timeout 120 contradict each other"),
        ({"no_path_retry": "60", "replacement_timeout": "-1"}, "60 and --replacement-timeout -1 contradict each other"),
        ({"replacement_timeout": "-2"}, "--replacement-timeout cannot be '-2': it is a number of seconds"),
        ({"replacement_timeout": "1e3"}, "--replacement-timeout cannot be '1e3'"),
        ({"replacement_timeout": "\u0663"}, "--replacement-timeout cannot be"),
        ({"noop_interval": "often"}, "--noop-interval cannot be 'often'"),
        ({"noop_interval": "0.5"}, "--noop-interval is 0 .never. or at least 1 second"),
        ({"noop_timeout": "0"}, "--noop-timeout at least 1 second"),
        ({"noop_timeout": "nan"}, "--noop-timeout cannot be 'nan'"),
        ({"noop_interval": "0", "portals": TWO}, "--noop-interval 0 .* contradicts several portals"),
        ({"noop_interval": "0", "more_portals": True}, "--noop-interval 0 .* contradicts several portals"),
        ({"portals": (*TWO, Portal("h"))}, "the portal h:3260 is given twice: each -p is a path of its own"),
        ({"portals": (Portal("h", tpgt=1), Portal("h", tpgt=2))}, "is given twice"),
    ],
)
def test_path_options_that_cannot_be_are_refused_in_one_sentence(words: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        policies(**words)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


# -------------------------------------------------------------------------------------------------------------------- secret files


@pytest.mark.parametrize("text", [SECRET, SECRET + "\n", SECRET + "\r\n", SECRET + "\nsecond line\n"])
def test_a_secret_is_the_first_line(tmp_path: Path, text: str) -> None:
    assert read_secret(Path(secret_file(tmp_path / "s", text))) == SECRET.encode()


def test_blanks_and_other_bytes_belong_to_the_secret(tmp_path: Path) -> None:
    assert read_secret(Path(secret_file(tmp_path / "s", b" \xff\x00 blank behind \n"))) == b" \xff\x00 blank behind "


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match=rf"\(mode {mode:04o}\): chmod 600 it"):
        read_secret(Path(secret_file(tmp_path / "s", mode=mode)))


@pytest.mark.parametrize("text", ["", "\n", "\r\n", "\nsecret on the second line\n"])
def test_a_file_without_a_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="nothing on its first line"):
        read_secret(Path(secret_file(tmp_path / "s", text)))


def test_a_file_that_is_not_there_or_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_secret(tmp_path / "absent")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_secret(tmp_path)


def test_a_secret_may_come_through_a_pipe() -> None:
    """`--secret-file <(pass show nas)`: nobody else can read a pipe, whatever its mode says."""
    reader, writer = os.pipe()
    try:
        os.write(writer, SECRET.encode() + b"\n")
        os.close(writer)
        assert read_secret(Path(f"/dev/fd/{reader}")) == SECRET.encode()
    finally:
        os.close(reader)


# -------------------------------------------------------------------------------------------------------------- credentials of systemd


def test_a_secret_may_be_a_credential_of_the_unit(tmp_path: Path) -> None:
    secret_file(tmp_path / "nas", mode=0o440)  # as systemd leaves it for a service that is not root's: an access list shows as group bits
    found = credentials("me", "credential:nas", "NOT_SET", "--secret-file", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert found is not None and found.secret == SECRET.encode()


@pytest.mark.parametrize(
    ("text", "environment", "match"),
    [
        ("credential:nas", {}, r"none are passed here: .*LoadCredential="),
        ("credential:", {"CREDENTIALS_DIRECTORY": "/x"}, "names no credential"),
        ("credential:../x", {"CREDENTIALS_DIRECTORY": "/x"}, "names no credential"),
        ("credential:nas", {"CREDENTIALS_DIRECTORY": "/nowhere"}, "/nowhere/nas cannot be read"),
    ],
)
def test_a_credential_that_is_not_there(text: str, environment: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        credentials("me", text, "NOT_SET", "--secret-file", environment)
