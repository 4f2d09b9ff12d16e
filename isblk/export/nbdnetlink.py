"""The kernel's NBD client over generic netlink: connect, reconnect, resize, disconnect (Linux, include/uapi/linux/nbd-netlink.h).

Theory of operation: the kernel is given connected sockets and speaks the transmission phase on them, with simple replies; the handshake is
the caller's business. A device is known by its index, /dev/nbdINDEX. Each function here is one message and its answer; the kernel does
what is asked before it answers, so `disconnect`, which waits for requests that are being sent, belongs into a thread where the caller
serves those requests itself. The group that announces dead links is not listened to: the other end of each socket is the caller's, and its
end says the same.

pyroute2 packs the messages. It is imported here alone, and takes a tenth of a second: import this module where a command needs it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket, GenericNetlinkSocket

from isblk.errors import IsblkError, RequestFailed, UsageError

FAMILY = "nbd"
VERSION = 1
CONNECT, DISCONNECT, RECONFIGURE, LINK_DEAD, STATUS = range(1, 6)


class nbdmsg(genlmsg):  # type: ignore[misc]  # pyroute2 has no types, and its messages have such names
    """NBD_ATTR_*"""

    prefix = "NBD_ATTR_"
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "device_list"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):  # type: ignore[misc]
        """NBD_SOCK_ITEM*"""

        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "sock"))

        class sock(nla):  # type: ignore[misc]
            """NBD_SOCK_*"""

            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))

    class device_list(nla):  # type: ignore[misc]
        """NBD_DEVICE_ITEM*"""

        nla_map = (("NBD_DEVICE_ITEM_UNSPEC", "none"), ("NBD_DEVICE_ITEM", "device"))

        class device(nla):  # type: ignore[misc]
            """NBD_DEVICE_*"""

            nla_map = (("NBD_DEVICE_UNSPEC", "none"), ("NBD_DEVICE_INDEX", "uint32"), ("NBD_DEVICE_CONNECTED", "uint8"))


class _AsyncSocket(AsyncGenericNetlinkSocket):  # type: ignore[misc]
    module_err_level = "debug"  # A family that is not there is ours to tell, in one sentence.


class _Socket(GenericNetlinkSocket):  # type: ignore[misc]
    async_class = _AsyncSocket


def connect(
    index: int | None,
    descriptors: Sequence[int],
    size: int,
    block_size: int,
    flags: int,
    *,
    timeout: int,
    dead_connection_timeout: int,
    backend: str,
) -> int:
    """Make /dev/nbdINDEX (a free one when None) of connected sockets; its index. The kernel keeps its own references to the sockets.

    `size` and `block_size` in bytes, `flags` the NBD protocol's transmission flags, times in seconds. A request that is not answered for
    `timeout` (0: never, with one connection) costs its connection; without any connection requests wait for `dead_connection_timeout`.
    Only who names the same `backend` may change the device later. The process that calls this is what /sys/block/nbdINDEX/pid shows, so
    call it from the main thread. Raises UsageError when the device is in use or cannot be, or where the kernel or the permissions do not
    allow it.

    Client flags: none, and that is said, for the kernel keeps DESTROY_ON_DISCONNECT of the last connection otherwise. It would remove the
    device file, which others expect to be there, and have a connection refused that comes while it does; DISCONNECT_ON_CLOSE would end the
    device when the first program, such as udev's probe, closes it.
    """
    chosen = [] if index is None else [("NBD_ATTR_INDEX", index)]
    attributes = [
        ("NBD_ATTR_SIZE_BYTES", size),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", block_size),
        ("NBD_ATTR_TIMEOUT", timeout),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", dead_connection_timeout),
        ("NBD_ATTR_SERVER_FLAGS", flags),
        ("NBD_ATTR_CLIENT_FLAGS", 0),
        _sockets(descriptors),
        ("NBD_ATTR_BACKEND_IDENTIFIER", backend),
    ]
    for answer in _ask(CONNECT, index, [*chosen, *attributes]):
        if answer.get("cmd") == CONNECT and answer.get_attr("NBD_ATTR_INDEX") is not None:
            return int(answer.get_attr("NBD_ATTR_INDEX"))
    raise RequestFailed("the kernel connected an NBD device and did not say which; `lsblk` may show it")


def reconnect(index: int, descriptors: Sequence[int], backend: str) -> None:
    """Put sockets in the place of those that are dead; there may be fewer dead ones. Raises UsageError unless it is the same backend's."""
    attributes = [("NBD_ATTR_INDEX", index), ("NBD_ATTR_BACKEND_IDENTIFIER", backend), _sockets(descriptors)]
    _ask(RECONFIGURE, index, attributes)


def resize(index: int, size: int, backend: str) -> None:
    """Let the device have so many bytes. Raises UsageError unless it is the same backend's."""
    attributes = [("NBD_ATTR_INDEX", index), ("NBD_ATTR_BACKEND_IDENTIFIER", backend), ("NBD_ATTR_SIZE_BYTES", size)]
    _ask(RECONFIGURE, index, attributes)


def disconnect(index: int) -> None:
    """Disconnect: what was sent before is answered, what is sent after fails. Nothing happens to a device that is not connected."""
    _ask(DISCONNECT, index, [("NBD_ATTR_INDEX", index)])


def check() -> None:
    """Raise UsageError unless this kernel has the NBD client and this process may use it."""
    with _opened():
        pass
    if os.geteuid() != 0 and not _capable():
        raise _refusal(errno.EPERM, CONNECT, None)


def _sockets(descriptors: Sequence[int]) -> tuple[str, Any]:
    items = [("NBD_SOCK_ITEM", {"attrs": [("NBD_SOCK_FD", descriptor)]}) for descriptor in descriptors]
    return "NBD_ATTR_SOCKETS", {"attrs": items}


def _ask(command: int, index: int | None, attributes: Sequence[tuple[str, Any]]) -> list[Any]:
    """Send a message; the kernel's messages back. Raises UsageError, or RequestFailed for what is nobody's fault."""
    message = nbdmsg()
    message["cmd"], message["version"] = command, VERSION
    message["attrs"] = list(attributes)
    with _opened() as kernel:
        try:
            return list(kernel.nlm_request(message, msg_type=kernel.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK))
        except NetlinkError as error:
            raise _refusal(error.code, command, index) from None


@contextmanager
def _opened() -> Iterator[Any]:
    """A netlink socket that knows the family. Raises UsageError."""
    try:
        kernel = _Socket()
    except OSError as error:
        raise UsageError(f"the kernel's NBD client cannot be reached over netlink: {error.strerror or error}") from None
    with closing(kernel):
        try:
            kernel.bind(FAMILY, nbdmsg)
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise _refusal(error.code, STATUS, None) from None
            raise UsageError(
                "this kernel has no NBD client: `modprobe nbd` loads it where there is such a module; "
                "without it `isblk mount` shows a LUN as a file"
            ) from None
        yield kernel


def _refusal(number: int, command: int, index: int | None) -> IsblkError:
    """A sentence for what the kernel answered."""
    device = "an NBD device" if index is None else f"/dev/nbd{index}"
    if number == errno.EPERM:
        return UsageError(f"{device} cannot be attached or detached by this user: it needs root (CAP_SYS_ADMIN)")
    if number == errno.EBUSY:
        return UsageError(f"{device} is in use: name another, or `any` for one that is free")
    if number == errno.EINVAL and command == CONNECT:
        return UsageError(f"{device} cannot be: the kernel has no device of that number, or it is just going away")
    if number == errno.EINVAL:
        return UsageError(f"{device} is not connected, or serves another disk")
    return RequestFailed(f"the kernel refuses to have {device} changed: {os.strerror(number)}", number)


def _capable() -> bool:
    """Whether this process has CAP_SYS_ADMIN (capabilities(7), proc_pid_status(5))."""
    with open("/proc/self/status") as status:
        effective = next((line.split()[1] for line in status if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> 21 & 1)
