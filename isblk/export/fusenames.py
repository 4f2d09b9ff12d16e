"""What the kernel asks of names, attributes and directories, answered from files.Volume: bodies of replies, or an IsblkError's errno."""

from __future__ import annotations

import errno
import os

from isblk.errors import RequestInvalid
from isblk.export import fusewire as wire
from isblk.export.files import PREFERRED_BLOCK, Attributes, Volume
from isblk.export.fusewire import Header, Opcode, OpenFlag, Setattr, SetattrFlag

ATTRIBUTE_SECONDS = 3600.0
"""How long the kernel may believe names and sizes: it is told when a disk is resized."""
XATTR_PREFIX = b"user.isblk."


class Names:
    """The answers of one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def lookup(self, header: Header, body: bytes) -> bytes:
        """A name in the directory; ENOENT where there is none."""
        return wire.entry_reply(_attr(self._volume.lookup(header.node, wire.decode_name(body))), ATTRIBUTE_SECONDS)

    def getattr(self, header: Header, body: bytes) -> bytes:
        """Size, mode and owner, as files.py has them."""
        wire.decode_getattr(body)
        return wire.attr_reply(_attr(self._volume.attributes(header.node)), ATTRIBUTE_SECONDS)

    def statx(self, header: Header, body: bytes) -> bytes:
        """The same, and when it was mounted as the time of birth."""
        wire.decode_statx(body)
        return wire.statx_reply(_attr(self._volume.attributes(header.node)), ATTRIBUTE_SECONDS)

    def setattr(self, header: Header, asked: Setattr, is_open_with_truncation: bool) -> bytes:
        """The same size, any times: done, without effect. Another size: EINVAL, unless it is open(2)'s. Another mode or owner: EPERM."""
        now = self._volume.attributes(header.node)
        if asked.valid & SetattrFlag.SIZE and not is_open_with_truncation:
            self._volume.check_resize(header.node, asked.size)
        same_mode = not asked.valid & SetattrFlag.MODE or asked.mode & 0o7777 == now.mode & 0o7777
        same_owner = not asked.valid & SetattrFlag.UID or asked.uid == now.owner.uid
        same_group = not asked.valid & SetattrFlag.GID or asked.gid == now.owner.gid
        if not (same_mode and same_owner and same_group):
            raise RequestInvalid("mode and owner of a mounted disk stay as they are", errno.EPERM)
        return wire.attr_reply(_attr(now), ATTRIBUTE_SECONDS)

    def statfs(self, header: Header, body: bytes) -> bytes:
        """What df shows: full."""
        space = self._volume.space()
        return wire.statfs_reply(space.block_size, space.blocks, space.files)

    def access(self, header: Header, body: bytes) -> bytes:
        """The kernel checks modes by itself (default_permissions); what it cannot know is a write protection."""
        mask = wire.decode_access(body)
        self._volume.attributes(header.node)
        if mask & os.W_OK and header.node in self._volume.devices and self._volume.is_read_only(header.node):
            raise RequestInvalid("the disk is write-protected or mounted read-only", errno.EROFS)
        return b""

    def opendir(self, header: Header, body: bytes) -> bytes:
        """The handle of a directory is its inode number; its entries never change, so they may be cached."""
        wire.decode_open(body)
        self._volume.check_directory(header.node)
        return wire.open_reply(header.node, OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE)

    def readdir(self, header: Header, body: bytes) -> bytes:
        """READDIR and READDIRPLUS: the entries behind a cookie, as many as fit."""
        asked = wire.decode_readdir(body)
        self._volume.check_directory(header.node)
        entries = ((name, _attr(found), cookie) for name, found, cookie in self._volume.entries(asked.offset))
        return wire.directory(entries, asked.size, ATTRIBUTE_SECONDS if header.opcode == Opcode.READDIRPLUS else None)

    def releasedir(self, header: Header, body: bytes) -> bytes:
        """Nothing is kept for a directory."""
        wire.decode_release(body)
        return b""

    def fsyncdir(self, header: Header, body: bytes) -> bytes:
        """The directory cannot change."""
        wire.decode_fsync(body)
        return b""

    def getxattr(self, header: Header, body: bytes) -> bytes:
        """`user.isblk.target`, `.lun`, `.wwid`, `.paths`, as far as they are known; ENODATA for all others."""
        size, name = wire.decode_getxattr(body)
        value = self._labels(header).get(name)
        if value is None:
            raise RequestInvalid("no such attribute", errno.ENODATA)
        return _fitting(wire.xattr_reply(value, size))

    def listxattr(self, header: Header, body: bytes) -> bytes:
        """The names of those."""
        size = wire.decode_listxattr(body)
        return _fitting(wire.xattr_reply(b"".join(name + b"\0" for name in self._labels(header)), size))

    def _labels(self, header: Header) -> dict[bytes, bytes]:
        self._volume.attributes(header.node)
        labels = self._volume.details(header.node).labels()
        return {XATTR_PREFIX + name.encode(): value.encode() for name, value in labels.items()}


def _attr(found: Attributes) -> wire.Attr:
    owner = found.owner
    return wire.Attr(
        found.inode, found.mode, found.size, found.blocks, found.links, owner.uid, owner.gid, owner.mounted_ns, PREFERRED_BLOCK
    )


def _fitting(body: bytes | None) -> bytes:
    if body is None:
        raise RequestInvalid("the attribute is longer than what it was asked into", errno.ERANGE)
    return body
