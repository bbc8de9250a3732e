"""What the kernel is told on /dev/fuse, as bytes: answers, and notifications that nobody asked for. Pure.

The layouts are those of linux/fuse.h, in the byte order of this machine. Lengths are checked by the kernel, which
refuses an answer that is not exactly as long as it expects.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Iterable
from struct import Struct

from lazyfs.core.types import Attributes, Buffer
from lazyfs.fuse.protocol import IO_BYTES, MAJOR, MINOR

_SECTOR = 512
_NS = 1_000_000_000
_PAGE = 4096

OUT_HEADER = Struct("=IiQ")
_ATTR = "QQQqqqIIIIIIIIII"
_ENTRY_OUT, _ATTR_OUT = Struct("=QQQQII" + _ATTR), Struct("=QII" + _ATTR)
_OPEN_OUT, _WRITE_OUT, _XATTR_OUT = Struct("=QII"), Struct("=II"), Struct("=II")
_STATFS_OUT = Struct("=QQQQQIIIIIIIIII")
_INIT_OUT = Struct("=IIIIHHIIHHI28x")
_DIRENT = Struct("=QQII")
_INVAL_INODE, _INVAL_ENTRY, _STORE, _DELETE = Struct("=Qqq"), Struct("=QII"), Struct("=QQII"), Struct("=QQII")


def answer(unique: int, size: int, errno: int = 0) -> bytes:
    """What goes before the `size` bytes of an answer."""
    return OUT_HEADER.pack(OUT_HEADER.size + size, -errno, unique)


def _attr(found: Attributes) -> tuple[int, ...]:
    seconds, nsec = divmod(found.mtime_ns, _NS)
    blocks = -(-found.size // _SECTOR)
    times = (seconds, seconds, seconds, nsec, nsec, nsec)
    return (found.ino, found.size, blocks, *times, found.mode, found.links, found.uid, found.gid, 0, IO_BYTES, 0)


def _timeout(seconds: float) -> tuple[int, int]:
    return divmod(round(seconds * _NS), _NS)


def entry(found: Attributes) -> bytes:
    """An inode under a name. Its number is never used again, so that one generation is enough."""
    valid, nsec = _timeout(found.timeout_s)
    return _ENTRY_OUT.pack(found.ino, 0, valid, valid, nsec, nsec, *_attr(found))


def absence(timeout_s: float) -> bytes:
    """There is no such name, which may be believed for so long."""
    valid, nsec = _timeout(timeout_s)
    return _ENTRY_OUT.pack(0, 0, valid, 0, nsec, 0, *([0] * 16))


def attributes(found: Attributes) -> bytes:
    """The answer to GETATTR and SETATTR."""
    return _ATTR_OUT.pack(*_timeout(found.timeout_s), 0, *_attr(found))


def opened(fh: int, flags: int) -> bytes:
    """The answer to OPEN and OPENDIR, and, after an `entry`, to CREATE."""
    return _OPEN_OUT.pack(fh, flags, 0)


def written(size: int) -> bytes:
    """How much of a WRITE was taken."""
    return _WRITE_OUT.pack(size, 0)


def xattr_size(size: int) -> bytes:
    """How much room an attribute, or the list of all, takes."""
    return _XATTR_OUT.pack(size, 0)


def statfs(*, blocks: int, free: int, files: int, files_free: int, block_size: int, name_bytes: int) -> bytes:
    """The answer to STATFS."""
    return _STATFS_OUT.pack(blocks, free, free, files, files_free, block_size, name_bytes, block_size, *([0] * 7))


def init(*, max_readahead: int, flags: int, max_background: int, congestion_threshold: int) -> bytes:
    """The answer to INIT: what we speak, and want of what was offered."""
    pages = IO_BYTES // _PAGE
    return _INIT_OUT.pack(
        MAJOR, MINOR, max_readahead, flags, max_background, congestion_threshold, IO_BYTES, 1, pages, 0, 0
    )


def directory(entries: Iterable[tuple[str, Attributes, int]], size: int, *, plus: bool) -> bytes:
    """As many of the entries (name, attributes, offset of the next) as fit into `size` bytes; `plus` tells what they
    are, too."""
    found, room = [], size
    for text, one, offset in entries:
        name = text.encode()
        record = (entry(one) if plus else b"") + _DIRENT.pack(one.ino, offset, len(name), stat.S_IFMT(one.mode) >> 12)
        record += name + bytes(-(len(record) + len(name)) % 8)
        if len(record) > room:
            break
        found.append(record)
        room -= len(record)
    return b"".join(found)


# -- notifications --------------------------------------------------------------------------------------------------


class Notify(enum.IntEnum):
    """What it is about; it stands where answers have their errno."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    DELETE = 6


def _notification(code: Notify, *pieces: Buffer) -> bytes:
    body = b"".join(pieces)
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def forget_inode(ino: int, offset: int = 0, length: int = 0) -> bytes:
    """Attributes and, from `offset` on, pages are no longer true; 0 bytes mean to the end."""
    return _notification(Notify.INVAL_INODE, _INVAL_INODE.pack(ino, offset, length))


def forget_entry(parent: int, name: bytes) -> bytes:
    """A name no longer means what it did."""
    return _notification(Notify.INVAL_ENTRY, _INVAL_ENTRY.pack(parent, len(name), 0), name, b"\0")


def delete_entry(parent: int, child: int, name: bytes) -> bytes:
    """A name is gone, and so the directory that it meant, even if somebody is in it."""
    return _notification(Notify.DELETE, _DELETE.pack(parent, child, len(name), 0), name, b"\0")


def store(ino: int, offset: int, data: Buffer) -> bytes:
    """Pages for the kernel to keep."""
    return _notification(Notify.STORE, _STORE.pack(ino, offset, len(data), 0), data)
