"""Every sentence that `isblk doctor` can say, with its severity, its remedy and, for a fault, the exit code.

The names are a promise, as keys of JSON are; a test asserts that each is provoked by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from isblk.errors import ExitCode

SECTIONS = {
    "machine": "this machine",
    "configuration": "configuration",
    "running": "what runs here",
    "network": "network",
    "discovery": "discovery",
    "login": "login",
    "disks": "logical units",
    "paths": "paths",
    "speed": "speed",
    "end": "end",
}
"""The checks in their order, with the heading of each."""


class Severity(Enum):
    """How bad it is; SKIPPED: a check that was not made, and why."""

    SKIPPED = "not made"
    OK = "ok"
    HINT = "hint"
    WARNING = "warning"
    FAULT = "fault"


class Sentence(NamedTuple):
    """One row; `text` and `remedy` are filled in with str.format."""

    section: str
    severity: Severity
    text: str
    remedy: str = ""
    code: ExitCode = ExitCode.DONE


def _ok(section: str, text: str) -> Sentence:
    return Sentence(section, Severity.OK, text)


def _skipped(section: str, text: str) -> Sentence:
    return Sentence(section, Severity.SKIPPED, text)


def _hint(section: str, text: str, remedy: str) -> Sentence:
    return Sentence(section, Severity.HINT, text, remedy)


def _warning(section: str, text: str, remedy: str) -> Sentence:
    return Sentence(section, Severity.WARNING, text, remedy)


def _fault(section: str, code: ExitCode, text: str, remedy: str) -> Sentence:
    return Sentence(section, Severity.FAULT, text, remedy, code)


_USAGE, _ABSENT, _REFUSED, _SILENT, _IO = (
    ExitCode.USAGE,
    ExitCode.NOT_FOUND,
    ExitCode.REFUSED,
    ExitCode.UNREACHABLE,
    ExitCode.IO_ERROR,
)
_BOTH_SIDES = "check the name and the secret on both sides (the target's manual may say 'incoming user')"

_MACHINE = {
    "fuse-ready": _ok("machine", "FUSE can be used: {means}"),
    "fuse-missing": _warning(
        "machine",
        "{device} is not there, so `isblk mount` cannot work here",
        "load the module (modprobe fuse), or give the container the device (--device {device}); `isblk nbd` needs no FUSE",
    ),
    "fuse-closed": _warning(
        "machine",
        "{device} cannot be opened by this user, so `isblk mount` cannot work",
        "ask root for 'chmod 666 {device}', its usual mode",
    ),
    "fusermount-missing": _warning(
        "machine", "fusermount3 is not installed, and only root can mount without it", "install the package fuse3"
    ),
    "others-shut-out": _hint(
        "machine",
        "ordinary users may not use -o allow_other",
        "if other users are to see what you mount, ask root for the line 'user_allow_other' in {file}",
    ),
    "loop-ready": _ok("machine", "loop devices can be made: a file system on a mounted file can be mounted"),
    "loop-missing": _hint(
        "machine",
        "there are no loop devices, so a file system on a mounted file cannot be mounted here",
        "modprobe loop; a container needs {device}",
    ),
    "nbd-ready": _ok("machine", "the kernel has an NBD client, for `isblk attach`"),
    "nbd-missing": _hint("machine", "the kernel's NBD client is not loaded, so `isblk attach` cannot work here", "modprobe nbd"),
    "nbd-for-root": _hint("machine", "the kernel has an NBD client, but only root can use it", "run `isblk attach` as root"),
    "files-enough": _ok("machine", "a process can have {limit} files open"),
    "files-few": _warning(
        "machine",
        "a process can have {limit} files open, which many paths or NBD clients use up",
        "ulimit -n 4096, or LimitNOFILE=4096 in the unit",
    ),
    "clock-right": _ok("machine", "the clock is kept right"),
    "clock-free": _hint(
        "machine",
        "nothing keeps the clock right: no I/O depends on it, but times in logs cannot be compared with the target's",
        "run systemd-timesyncd or chrony; in a virtual machine the host may do it unseen",
    ),
    "clock-wrong": _warning(
        "machine", "the clock says {time}, which cannot be", "set it: TLS certificates are refused at such a time, and logs mislead"
    ),
}

_CONFIGURATION = {
    "settings-read": _ok("configuration", "settings come from {files}"),
    "settings-none": _ok("configuration", "no configuration file is there; defaults hold where the command line says nothing"),
    "name-known": _ok("configuration", "our name is {name} ({origin})"),
    "name-new": _ok("configuration", "our name is {name}, made just now and kept in {state}"),
    "name-wrong": _fault("configuration", _USAGE, "our name cannot be used: {reason}", "give --initiator-name, or mend the file"),
    "name-copied": _hint(
        "configuration",
        "our name in {file} is older than this machine's identity: a copied machine has the name of its model",
        "if this machine is a clone, remove the file, so that another name is made; two with one name end each other's sessions",
    ),
    "slot-of-chance": _warning(
        "configuration",
        "no session identifier can be kept in {state}: after a crash the target keeps the dead session until it times out",
        "make the directory writable for this user, or name another with $ISBLK_STATE_DIR",
    ),
    "secrets-wrong": _fault("configuration", _USAGE, "the credentials cannot be used: {reason}", "mend that; no login is tried without it"),
    "secrets-ready": _ok("configuration", "credentials are there: we are {user}{mutual}"),
}

_RUNNING = {
    "running-nothing": _ok("running", "no isblk of this user uses the target now"),
    "running-well": _ok("running", "process {pid} serves {where}: {up} of {all} paths are up"),
    "running-ill": _warning(
        "running",
        "process {pid} serves {where} with {up} of {all} paths up: {reason}",
        "what is said of that portal below tells whether it can be reached now",
    ),
    "running-restless": _hint(
        "running",
        "process {pid} has logged in to {portal} {logins} times",
        "the network may drop its connections, or another machine has our name and ends them; see the daemon's log",
    ),
    "running-silent": _warning(
        "running", "process {pid} of isblk does not answer: {reason}", "it may be stopped or hang; its log may tell, or `gdb -p {pid}`"
    ),
}

_NETWORK = {
    "name-resolves": _ok("network", "{host} is {addresses}"),
    "name-slow": _hint("network", "{host} took {seconds} s to resolve, as every login will", "use the address, or mend the name service"),
    "name-unknown": _fault(
        "network", _SILENT, "{host} does not resolve: {reason}", "check the name, /etc/hosts and /etc/resolv.conf, or use the address"
    ),
    "name-late": _fault(
        "network", _SILENT, "{host} did not resolve within {seconds} s", "the name service does not answer: use the address meanwhile"
    ),
    "port-answers": _ok("network", "{portal} accepts a connection, in {milliseconds} ms"),
    "port-refuses": _fault(
        "network",
        _SILENT,
        "{portal} refuses connections",
        "check that the target runs and listens on this port (3260 is the usual one)",
    ),
    "port-silent": _fault(
        "network", _SILENT, "{portal} does not answer within {seconds} s", "check the address; a firewall may swallow what is sent there"
    ),
    "port-unreachable": _fault(
        "network", _SILENT, "{portal} cannot be reached: {reason}", "check the address, the link and the route (ip route get {host})"
    ),
    "network-skipped": _skipped("network", "the port of {portal} was not tried, since its name does not resolve"),
    "packets": _ok("network", "{portal}: packets of {mtu} bytes, segments of {mss}"),
    "packets-narrow": _hint(
        "network",
        "{portal}: the way takes packets of {path} bytes, the interface {mtu}",
        "something between has a smaller MTU (a tunnel, a VPN); large transfers cost more packets",
    ),
    "packets-jumbo-here": _hint(
        "network",
        "{portal}: this side has jumbo frames (MTU {mtu}), but segments are of {mss} bytes",
        "give the other end, and every switch between, the same MTU; half of it is worth nothing",
    ),
}

_DISCOVERY = {
    "reported": _ok("discovery", "{portal} reports the target at {portals}"),
    "reported-not": _warning(
        "discovery",
        "{portal} does not report the target{near}",
        "check the name; the access list of the target may not have ours, {initiator}",
    ),
    "reported-nothing": _warning(
        "discovery", "{portal} reports no target at all", "the access lists there may not have our name, {initiator}"
    ),
    "discovery-refused": _hint(
        "discovery", "{portal} does not let us ask for its targets: {reason}", "only `isblk discover` and --all-portals need that"
    ),
    "discovery-open": _hint(
        "discovery",
        "{portal} lets anybody ask for its targets, but not with the target's credentials",
        "give --all-portals up there and name the portals with -p; `isblk discover` works without --user",
    ),
    "discovery-failed": _hint(
        "discovery", "{portal} could not be asked for its targets: {reason}", "only `isblk discover` and --all-portals need that"
    ),
    "discovery-skipped": _skipped("discovery", "{portal} was not asked for its targets: {why}"),
    "portals-unused": _hint(
        "discovery", "the target has portals that are not used here: {portals}", "name them with -p, or use --all-portals: more paths"
    ),
    "portal-out-of-reach": _warning(
        "discovery",
        "the target reports the portal {portal}, which cannot be reached from here: {reason}",
        "it may be of another network (NAT): leave --all-portals out, or mend the route",
    ),
}

_LOGIN = {
    "logged-in": _ok("login", "{portal} lets us in: portal group {group}{alias}"),
    "login-moved": _hint("login", "{portal} sends the login on to {other}", "name that portal, if it is meant to last"),
    "login-skipped": _skipped("login", "no login was tried at {portal}: {why}"),
    "login-refused": _fault("login", _REFUSED, "{portal}: {reason}", "{advice}"),
    "login-closed": _fault(
        "login", _REFUSED, "{portal} closed the connection in the login", "it may not know us ({initiator}), or want a CHAP name and secret"
    ),
    "target-unknown": _fault("login", _ABSENT, "{portal}: {reason}", "{advice}"),
    "login-late": _fault("login", _SILENT, "{portal} did not finish the login within {seconds} s", "is it an iSCSI portal?"),
    "login-broken-off": _fault("login", _SILENT, "{portal} broke the connection in the login: {reason}", "is it an iSCSI portal?"),
    "login-nonsense": _fault(
        "login", _IO, "{portal} breaks the protocol in the login: {reason}", "is it an iSCSI portal? --trace shows what it said"
    ),
    "keys": _ok("login", "{portal}: what was negotiated"),
    "keys-same": _ok("login", "{portal}: negotiated as at the first portal"),
    "segments-small": _hint(
        "login",
        "the target takes {size} bytes in a PDU, so that large writes are many PDUs",
        "raise its MaxRecvDataSegmentLength to 262144 where that can be set",
    ),
    "writes-wait": _hint(
        "login",
        "the target takes no data before it asks (ImmediateData=No, InitialR2T=Yes): each write waits for one more round trip",
        "allow ImmediateData at the target",
    ),
    "bursts-small": _hint(
        "login", "a burst is {size} bytes, so that large transfers are many", "raise MaxBurstLength at the target to 1048576 or more"
    ),
    "window-small": _hint(
        "login", "the target takes {count} commands at once", "raise its queue depth: with so few in flight, waiting is most of the time"
    ),
    "chap-none": _hint(
        "login", "nobody had to prove who he is: a name is all it takes to log in", "set up CHAP where others reach the target's network"
    ),
    "chap-one-way": _ok("login", "CHAP with {algorithm}: we proved to be {user}; the target proved nothing (--target-user asks it to)"),
    "chap-mutual": _ok("login", "CHAP with {algorithm}: we proved to be {user}, and the target to be {target_user}"),
    "chap-weak": _hint(
        "login",
        "of {offered} the target chose {algorithm}, whose answers can be guessed at by who overhears them",
        "choose a long random secret, and SHA-256 where the target knows it",
    ),
    "chap-twice": _hint(
        "login",
        "the target refused the first login, with {algorithm}, and took the second with MD5 alone",
        'set chap-algorithms = "md5" for it, which saves a login each time',
    ),
    "chap-wanted": _fault("login", _REFUSED, "{portal} wants CHAP, and no credentials are given", "give --user and --secret-file"),
    "chap-unwanted": _fault(
        "login",
        _REFUSED,
        "{portal} does not do CHAP, though credentials are given",
        "set them up at the target, or leave --user out: we never fall back to none",
    ),
    "chap-no-algorithm": _fault(
        "login", _REFUSED, "{portal} knows none of the algorithms offered ({offered})", "offer others with --chap-algorithms"
    ),
    "chap-refused": _fault("login", _REFUSED, "{portal} refused our proof as {user}{algorithm}", _BOTH_SIDES),
    "chap-broken-off": _fault(
        "login",
        _REFUSED,
        "{portal} closed the connection in the middle of CHAP{algorithm}",
        f"{_BOTH_SIDES}; try --chap-algorithms md5",
    ),
    "chap-reflected": _fault(
        "login",
        _REFUSED,
        "{portal} sent a CHAP challenge of ours back to us",
        "somebody between uses us to forge an answer: find out who answers at that address",
    ),
    "chap-unproved": _fault(
        "login",
        _REFUSED,
        "we proved to be {user}, but {portal} did not prove who it is",
        "set up mutual CHAP at the target ('outgoing user'), or leave --target-user out",
    ),
    "chap-mirrored": _fault(
        "login",
        _REFUSED,
        "{portal} proved itself with our own secret",
        "give the two directions different secrets; if they are, somebody mirrors us",
    ),
    "chap-wrong-proof": _fault(
        "login",
        _REFUSED,
        "we proved to be {user}, but the proof of {portal} is wrong",
        "check the target's own secret on both sides (--target-secret-file; 'outgoing user' there)",
    ),
    "chap-other-name": _fault(
        "login", _REFUSED, "{portal} proved to be somebody else: {reason}", "check --target-user against the target's own CHAP name"
    ),
}

_DISKS = {
    "disk": _ok("disks", "LUN {lun}: {size} in blocks of {block} bytes, {vendor} {product}, {wwid}"),
    "no-disk": _ok("disks", "LUN {lun} is no disk but a {type}"),
    "disk-unusable": _warning("disks", "{reason}", "it is left out"),
    "disk-sick": _fault("disks", _IO, "{reason}", "look into the target's log: the unit answers, but does not work"),
    "disk-protected": _hint("disks", "LUN {lun} is write-protected", "use it with -o ro, or allow writing at the target"),
    "disk-nameless": _warning(
        "disks",
        "LUN {lun} has no worldwide name (VPD page 83)",
        "with several paths nothing shows that they lead to one disk: use one portal, or give the unit a name at the target",
    ),
    "disk-absent": _fault("disks", _ABSENT, "there is no LUN {lun} at {portal}; there are: {luns}", "choose one of these"),
    "disks-none": _fault("disks", _ABSENT, "{portal} shows us no disk", "map one to our name, {initiator}, in the target's access lists"),
    "disks-unlisted": _fault("disks", _IO, "the logical units of {portal} could not be looked at: {reason}", "see the target's log"),
    "disks-skipped": _skipped("disks", "logical units were not looked at, since no portal lets us in"),
}

_PATHS = {
    "paths-one": _skipped("paths", "paths were not compared: there is one"),
    "paths-same": _ok("paths", "LUN {lun} is the same disk over all {count} portals"),
    "paths-different": _fault(
        "paths",
        _IO,
        "LUN {lun} is {wwid} over {portal}, but {other} over {first}",
        "these are two disks, not two paths: check how the portals are mapped; isblk refuses the second",
    ),
    "paths-sizes": _fault(
        "paths", _IO, "LUN {lun} has {size} bytes over {portal}, but {other} over {first}", "rescan the target; a resize may be half done"
    ),
    "paths-missing": _warning("paths", "LUN {lun} is not shown over {portal}", "map it there too, or leave that portal out"),
    "access-symmetric": _ok("paths", "LUN {lun} over {portal}: all paths are equal (no ALUA)"),
    "access-best": _ok("paths", "LUN {lun} over {portal}: active/optimized{preferred}"),
    "access-second": _hint(
        "paths",
        "LUN {lun} over {portal}: active/non-optimized",
        "it is used when no optimized path is left, which is as it should be when there is one",
    ),
    "access-shut": _hint("paths", "LUN {lun} over {portal}: {state}", "nothing goes through there until the target changes that"),
    "access-nowhere": _fault("paths", _IO, "no path lets anything through to LUN {lun}", "see the state of its controllers at the target"),
    "access-unknown": _warning(
        "paths", "LUN {lun} over {portal}: the access state cannot be read: {reason}", "it is taken for active/optimized"
    ),
}

_SPEED = {
    "ping": _ok("speed", "{portal}: a ping takes {median} ms, 1 of 100 more than {p99} ms"),
    "ping-uneven": _hint(
        "speed",
        "{portal}: pings take {median} ms, but some {p99} ms",
        "the way or the target is busy now and then; try again while nothing else runs",
    ),
    "ping-unanswered": _fault("speed", _IO, "{portal} does not answer pings: {reason}", "see the target's log, and the network between"),
    "read": _ok("speed", "{portal}: a read of {size} bytes takes {median} ms, 1 of 100 more than {p99} ms"),
    "read-slow": _hint(
        "speed",
        "{portal}: a small read takes {median} ms, a ping {ping} ms",
        "the disk behind the target takes the time, not the network",
    ),
    "read-failed": _fault("speed", _IO, "{portal}: LUN {lun} could not be read: {reason}", "see the target's log"),
    "read-swallowed": _fault(
        "speed",
        _IO,
        "{portal} answers small reads, but not one of {size} bytes within {seconds} s",
        "frames too large for the way are swallowed: give both ends and every switch one MTU (try ping -M do -s 8972)",
    ),
    "throughput": _ok("speed", "{portal}: {rate} MB/s ({size} read in {seconds} s, {block} each, {depth} in flight)"),
    "throughput-uneven": _hint(
        "speed",
        "{portal} is slower by far than the best portal: {rate} of {best} MB/s",
        "compare links (ethtool), routes and MTU; --policy service-time uses the faster one more",
    ),
    "resent": _hint(
        "speed",
        "{portal}: {count} of {segments} segments that we sent had to be sent again",
        "packets are lost on the way: check cables, duplex, and switches that are full",
    ),
    "late-segments": _hint(
        "speed",
        "{portal}: {count} of {segments} segments came late, behind others that were sent after them",
        "packets from there are lost, or overtake each other (links bonded packet by packet): check cables and switches",
    ),
    "probe-declined": _skipped("speed", "throughput was not measured, as asked"),
    "speed-skipped": _skipped("speed", "{portal}: no read was tried: {why}"),
    "speed-nowhere": _skipped("speed", "no speed was measured, since no portal lets us in"),
}

_END = {
    "out-of-time": _warning(
        "end", "the {seconds} s are over; what was not looked at: {rest}", "give it longer with --deadline, or name fewer portals"
    ),
}

SENTENCES: Mapping[str, Sentence] = {
    **_MACHINE,
    **_CONFIGURATION,
    **_RUNNING,
    **_NETWORK,
    **_DISCOVERY,
    **_LOGIN,
    **_DISKS,
    **_PATHS,
    **_SPEED,
    **_END,
}
