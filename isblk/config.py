"""What a command was told, checked and made into how to log in: target, portals, secrets from files or the environment."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isblk.block.choose import IMMEDIATE, Failback, NoPathRetry, Policy
from isblk.block.policies import FencePolicy, Policies
from isblk.errors import UsageError
from isblk.iscsi.chap import STRONGEST_FIRST, Algorithm, Credentials, check_directions
from isblk.iscsi.names import Isid, Portal, parse_target_url, target_name
from isblk.link.opening import Access
from isblk.link.sweeper import Timing

SECRET_VARIABLE = "ISBLK_SECRET"
TARGET_SECRET_VARIABLE = "ISBLK_TARGET_SECRET"
CREDENTIAL = "credential:"
SECRET_FILE_LIMIT = 4096
"""Bytes of a secret file read."""

ALGORITHMS = {"md5": Algorithm.MD5, "sha1": Algorithm.SHA1, "sha256": Algorithm.SHA256, "sha3-256": Algorithm.SHA3_256}


@dataclass(frozen=True)
class Target:
    """What TARGET on a command line says, with the portals of -p; `name` is normalized, `spelled` as it was written."""

    name: str
    portals: tuple[Portal, ...]
    lun: int | None = None
    user: str | None = None
    spelled: str | None = None


@dataclass(frozen=True)
class LoginOptions:
    """The session options of a command line, as they were given."""

    user: str | None = None
    secret_file: str | None = None
    target_user: str | None = None
    target_secret_file: str | None = None
    chap_algorithms: str | None = None
    no_md5_retry: bool = False
    digests: tuple[str, str] = ("allow", "allow")
    login_timeout: float = 15


@dataclass(frozen=True)
class PathOptions:
    """The path options of a command line, as they were given."""

    policy: str | None = None
    failback: str | None = None
    no_path_retry: str | None = None
    replacement_timeout: str | None = None
    noop_interval: str | None = None
    noop_timeout: str | None = None
    fence: str | None = None
    shared: bool = False
    queue_depth: str | None = None


def make_policies(
    options: PathOptions, portals: Sequence[Portal], login_timeout: float, more_portals: bool = False
) -> tuple[Policies, Timing]:
    """What is to be done about paths, and the deadlines of their sessions. `more_portals`: the target will be asked for others.

    Raises UsageError for what cannot be or contradicts itself.
    """
    addresses = [(portal.host, portal.port) for portal in portals]
    for address, portal in zip(addresses, portals, strict=True):
        if addresses.count(address) > 1:
            raise UsageError(f"the portal {portal} is given twice: each -p is a path of its own, so name different ones")
    interval = _number("--noop-interval", options.noop_interval, 5)
    timeout = _number("--noop-timeout", options.noop_timeout, 5)
    if timeout < 1 or 0 < interval < 1:
        raise UsageError("--noop-interval is 0 (never) or at least 1 second, and --noop-timeout at least 1 second")
    if not interval and (len(portals) > 1 or more_portals):
        raise UsageError("--noop-interval 0 would never find out that a path is silent, so it contradicts several portals")
    policies = Policies(
        policy=Policy.parse(options.policy) if options.policy is not None else Policy.FAILOVER,
        failback=Failback.parse(options.failback) if options.failback is not None else IMMEDIATE,
        no_path=_no_path(options),
        fence=_fence(options.fence),
        shared=options.shared,
        queue_depth=_queue_depth(options.queue_depth),
    )
    return policies, Timing(login_timeout=login_timeout, noop_interval=interval, noop_timeout=timeout)


def _no_path(options: PathOptions) -> NoPathRetry:
    """How long requests wait without a path, under either of its two names."""
    retry = NoPathRetry.parse(options.no_path_retry) if options.no_path_retry is not None else None
    if options.replacement_timeout is None:
        return retry or NoPathRetry(120)
    text = options.replacement_timeout
    replacement = NoPathRetry(math.inf) if text == "-1" else NoPathRetry(_number("--replacement-timeout", text, 120))
    if retry is not None and retry != replacement:
        raise UsageError(f"--no-path-retry {retry} and --replacement-timeout {text} contradict each other: give one of them")
    return replacement


def _fence(text: str | None) -> FencePolicy:
    if text is None:
        return FencePolicy.STRICT
    try:
        return FencePolicy(text)
    except ValueError:
        raise UsageError(f"{text!r} is no fence policy: there are {', '.join(one.value for one in FencePolicy)}") from None


def _queue_depth(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not int(text):
        raise UsageError(f"--queue-depth cannot be {text!r}: it is a number of requests, 1 or more")
    return int(text)


def _number(option: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text, re.ASCII):
        raise UsageError(f"{option} cannot be {text!r}: it is a number of seconds")
    return float(text)


def parse_target(text: str, portals: Sequence[str]) -> Target:
    """TARGET as a name or a URL, and where it is. Raises UsageError with the remedy."""
    given = tuple(Portal.parse(portal) for portal in portals)
    if "://" in text:
        url = parse_target_url(text)
        return Target(url.name, given or (url.portal,), url.lun, url.user, url.spelled)
    name = target_name(text)
    if not given:
        raise UsageError(f"no portal for {name}: say where it listens with -p HOST[:PORT], or write iscsi://HOST[:PORT]/{name}")
    return Target(name, given, spelled=text)


def make_access(
    initiator_name: str,
    isid: Isid,
    options: LoginOptions,
    *,
    target: Target | None = None,
    trace: Callable[[str, str], None] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Access:
    """How to log in (to `target`, or for discovery). Raises UsageError for secrets missing, too short, equal or readable by others."""
    user = options.user if options.user is not None else target.user if target is not None else None
    ours = credentials(user, options.secret_file, SECRET_VARIABLE, "--secret-file", environment)
    theirs = credentials(options.target_user, options.target_secret_file, TARGET_SECRET_VARIABLE, "--target-secret-file", environment)
    check_directions(ours, theirs)
    return Access(
        initiator_name=initiator_name,
        isid=isid,
        credentials=ours,
        target_credentials=theirs,
        algorithms=_algorithms(options.chap_algorithms),
        md5_retry=not options.no_md5_retry,
        header_digest=options.digests[0],
        data_digest=options.digests[1],
        timing=Timing(login_timeout=options.login_timeout),
        trace=trace,
        spelled=target.spelled if target is not None else None,
    )


def credentials(
    user: str | None, path: str | None, variable: str, option: str, environment: Mapping[str, str] = os.environ
) -> Credentials | None:
    """A CHAP name with its secret from the file `path`, else from the environment; None without a name. Raises UsageError."""
    if user is None:
        if path is not None:
            raise UsageError(f"{option} gives a secret but no name goes with it: give the user too")
        return None
    if path is not None:
        return Credentials(user, read_secret(Path(path)) if not path.startswith(CREDENTIAL) else _credential(path, environment))
    if variable in environment:
        return Credentials(user, os.fsencode(environment[variable]))
    raise UsageError(f"no secret for the CHAP user {user}: put it into a file of mode 0600 and give {option} FILE, or set ${variable}")


def _credential(path: str, environment: Mapping[str, str]) -> bytes:
    """The secret in a credential that systemd passes, written credential:NAME; its directory is the unit's alone (systemd.exec(5))."""
    name, directory = path.removeprefix(CREDENTIAL), environment.get("CREDENTIALS_DIRECTORY")
    if not name or "/" in name:
        raise UsageError(f"{path} names no credential: it is {CREDENTIAL}NAME, with the name of LoadCredential= in the unit")
    if directory is None:
        raise UsageError(f"{path} is a credential of systemd, and none are passed here: run isblk from a unit with LoadCredential=")
    return read_secret(Path(directory) / name, alone=False)


def read_secret(path: Path, alone: bool = True) -> bytes:
    """The first line of a secret file that nobody else can read, which is not looked at without `alone`. Raises UsageError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.read(SECRET_FILE_LIMIT).split(b"\n", 1)[0].rstrip(b"\r")
    except OSError as error:
        raise UsageError(f"the secret file {path} cannot be read: {error.strerror}") from error
    if alone and stat.S_ISREG(mode) and mode & 0o077:
        raise UsageError(f"others can read the secret file {path} (mode {mode & 0o777:04o}): chmod 600 it")
    if not line:
        raise UsageError(f"the secret file {path} has nothing on its first line")
    return line


def _algorithms(text: str | None) -> tuple[Algorithm, ...]:
    if text is None:
        return STRONGEST_FIRST
    names = [name.strip().lower() for name in text.split(",")]
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown or len(set(names)) != len(names):
        raise UsageError(f"not a list of CHAP algorithms: {text!r}; it is made of {', '.join(ALGORITHMS)}")
    return tuple(ALGORITHMS[name] for name in names)
