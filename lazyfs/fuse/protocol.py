"""What the kernel says on /dev/fuse, from bytes. Pure: no I/O, no clock. What it is answered: `answers`.

Promises that `decode` gives a request, or raises MalformedError or UnknownRequestError, whatever the bytes are. The
layouts are those of linux/fuse.h from 7.31 (Linux 5.4) on, in the byte order of this machine, and so are the names.
Hard points: names end in NUL and may be any other bytes (`_names`); INIT and SETXATTR have grown over time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from struct import Struct, error
from typing import NamedTuple, TypeAlias

from lazyfs.core.types import Buffer

MAJOR, MINOR = 7, 31
"""What we speak. A newer kernel keeps to it; an older one is refused."""
ROOT_ID = 1
IO_BYTES = 1024**2
"""The most that one READ or WRITE carries, and st_blksize: what cp and Python's readers then ask for at a time."""
BUFFER_BYTES = IO_BYTES + 4096
"""Room for any request: the kernel refuses to hand one over to who has less than a WRITE with its headers."""
_NS = 1_000_000_000


class MalformedError(Exception):
    """These bytes are no request of a FUSE kernel."""


class UnknownRequestError(Exception):
    """A request that this module does not know: ENOSYS is the answer."""


class Opcode(enum.IntEnum):
    """What the kernel asks for; those without an answer are FORGET, BATCH_FORGET and INTERRUPT."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})


class InitFlag(enum.IntFlag):
    """Abilities that INIT agrees on."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22


class Valid(enum.IntFlag):
    """Which fields of SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    MTIME = 1 << 5
    MTIME_NOW = 1 << 8


KEEP_CACHE = 1 << 1
"""Of OPEN: the kernel keeps the pages that it has."""
NOFLUSH = 1 << 5
"""Of OPEN: closing a descriptor asks nothing."""
RENAME_NOREPLACE, RENAME_EXCHANGE = 1 << 0, 1 << 1
XATTR_CREATE, XATTR_REPLACE = 1 << 0, 1 << 1


# -- requests -------------------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """Who asks, about which inode, and by which number the answer is known."""

    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int


class Empty(NamedTuple):
    """READLINK, STATFS, DESTROY: the header says it all."""


class Name(NamedTuple):
    """LOOKUP, UNLINK, RMDIR, REMOVEXATTR."""

    name: bytes


class Forget(NamedTuple):
    """Inodes, each with how many of its look-ups are forgotten."""

    nodes: tuple[tuple[int, int], ...]


class Setattr(NamedTuple):
    """`mtime_ns` is what the kernel holds, of no meaning with MTIME_NOW."""

    valid: int
    fh: int
    size: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int


class Symlink(NamedTuple):
    """A name that leads to `target`."""

    name: bytes
    target: bytes


class Make(NamedTuple):
    """MKDIR, MKNOD, CREATE; `flags` of open(2) for the last."""

    mode: int
    flags: int
    name: bytes


class Rename(NamedTuple):
    """RENAME and RENAME2."""

    newdir: int
    flags: int
    name: bytes
    new_name: bytes


class Link(NamedTuple):
    """A hard link."""

    oldnodeid: int
    name: bytes


class Open(NamedTuple):
    """OPEN and OPENDIR: flags of open(2)."""

    flags: int


class Read(NamedTuple):
    """READ, READDIR, READDIRPLUS."""

    fh: int
    offset: int
    size: int


class Write(NamedTuple):
    """Bytes to be written."""

    fh: int
    offset: int
    data: Buffer


class OnHandle(NamedTuple):
    """GETATTR, FLUSH, FSYNC, FSYNCDIR, RELEASE, RELEASEDIR."""

    fh: int


class Setxattr(NamedTuple):
    """Make or replace an attribute."""

    flags: int
    name: bytes
    value: bytes


class Getxattr(NamedTuple):
    """GETXATTR, and LISTXATTR without a name. `size` 0 asks how long the answer is."""

    size: int
    name: bytes


class Init(NamedTuple):
    """What the kernel speaks and offers."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Interrupt(NamedTuple):
    """Whoever waits for request `unique` got a signal."""

    unique: int


Request: TypeAlias = (
    Empty | Name | Forget | Setattr | Symlink | Make | Rename | Link | Open | Read | Write | OnHandle | Setxattr
    | Getxattr | Init | Interrupt
)  # fmt: skip

HEADER = Struct("=IIQQIIIHH")
_FORGET, _FORGET_ONE, _COUNT = Struct("=Q"), Struct("=QQ"), Struct("=II")
_SETATTR = Struct("=IIQQQqqqIIIIIIII")
_READ, _WRITE = Struct("=QQIIQII"), Struct("=QQIIQII")
_MKDIR, _MKNOD, _CREATE = Struct("=II"), Struct("=IIII"), Struct("=IIII")
_RENAME, _RENAME2, _LINK = Struct("=Q"), Struct("=QII"), Struct("=Q")
_OPEN, _XATTR, _INIT, _INTERRUPT = Struct("=II"), Struct("=II"), Struct("=IIII"), Struct("=Q")
_GETATTR, _FLUSH, _RELEASE, _FSYNC = Struct("=IIQ"), Struct("=QIIQ"), Struct("=QIIQ"), Struct("=QII")


def decode(message: Buffer) -> tuple[Header, Request]:
    """One request as it was read from the device; the data of a WRITE are a view of it. MalformedError,
    UnknownRequestError."""
    header = decode_header(message)
    reader = _READERS.get(header.opcode)
    if reader is None:
        raise UnknownRequestError(f"opcode {header.opcode}")
    if header.length != len(message):
        raise MalformedError(f"{len(message)} bytes that say they are {header.length}")
    body = memoryview(message)[HEADER.size :]
    try:
        request = _write(body) if header.opcode == Opcode.WRITE else reader(bytes(body))
    except error as problem:
        raise MalformedError(f"opcode {header.opcode}: {problem}") from None
    if header.opcode == Opcode.FORGET and isinstance(request, Forget):
        request = Forget(((header.nodeid, request.nodes[0][1]),))
    return header, request


def decode_header(message: Buffer) -> Header:
    """Who asks, if no more can be understood. MalformedError."""
    if len(message) < HEADER.size:
        raise MalformedError(f"a request of {len(message)} bytes")
    return Header._make(HEADER.unpack_from(message)[:7])


def _names(body: bytes, start: int, count: int) -> list[bytes]:
    """Exactly `count` names, each with its NUL, from `start` to the end."""
    names = body[start:].split(b"\0")
    if len(names) != count + 1 or names[-1] or not all(names[:-1]):
        raise MalformedError(f"{body[start:]!r} is not {count} names")
    return names[:-1]


def _empty(_body: bytes) -> Empty:
    return Empty()


def _name(body: bytes) -> Name:
    return Name(*_names(body, 0, 1))


def _forget(body: bytes) -> Forget:
    (nlookup,) = _FORGET.unpack_from(body)
    return Forget(((0, nlookup),))  # whose it is, the header says


def _batch_forget(body: bytes) -> Forget:
    count, _ = _COUNT.unpack_from(body)
    ones = body[_COUNT.size :]
    if len(ones) != count * _FORGET_ONE.size:
        raise MalformedError(f"{len(ones)} bytes for {count} inodes")
    return Forget(tuple(_FORGET_ONE.iter_unpack(ones)))


def _setattr(body: bytes) -> Setattr:
    found = _SETATTR.unpack_from(body)
    valid, _, fh, size, _, _, mtime, _, _, mtime_nsec, _, mode, _, uid, gid, _ = found
    return Setattr(valid, fh, size, mtime * _NS + mtime_nsec, mode, uid, gid)


def _symlink(body: bytes) -> Symlink:
    return Symlink(*_names(body, 0, 2))


def _mkdir(body: bytes) -> Make:
    mode, _ = _MKDIR.unpack_from(body)
    return Make(mode, 0, *_names(body, _MKDIR.size, 1))


def _mknod(body: bytes) -> Make:
    mode, *_ = _MKNOD.unpack_from(body)
    return Make(mode, 0, *_names(body, _MKNOD.size, 1))


def _create(body: bytes) -> Make:
    flags, mode, *_ = _CREATE.unpack_from(body)
    return Make(mode, flags, *_names(body, _CREATE.size, 1))


def _rename(body: bytes) -> Rename:
    (newdir,) = _RENAME.unpack_from(body)
    return Rename(newdir, 0, *_names(body, _RENAME.size, 2))


def _rename2(body: bytes) -> Rename:
    newdir, flags, _ = _RENAME2.unpack_from(body)
    return Rename(newdir, flags, *_names(body, _RENAME2.size, 2))


def _link(body: bytes) -> Link:
    (oldnodeid,) = _LINK.unpack_from(body)
    return Link(oldnodeid, *_names(body, _LINK.size, 1))


def _open(body: bytes) -> Open:
    flags, _ = _OPEN.unpack_from(body)
    return Open(flags)


def _read(body: bytes) -> Read:
    fh, offset, size, *_ = _READ.unpack_from(body)
    return Read(fh, offset, size)


def _write(body: Buffer) -> Write:
    fh, offset, size, *_ = _WRITE.unpack_from(body)
    data = body[_WRITE.size :]
    if len(data) != size:
        raise MalformedError(f"a write of {size} bytes with {len(data)}")
    return Write(fh, offset, data)


def _on_handle(layout: Struct, position: int) -> Callable[[bytes], OnHandle]:
    return lambda body: OnHandle(layout.unpack_from(body)[position])


def _setxattr(body: bytes) -> Setxattr:
    size, flags = _XATTR.unpack_from(body)
    name, end, value = body[_XATTR.size :].partition(b"\0")
    if not name or not end or len(value) != size:
        raise MalformedError(f"an attribute of {size} bytes with {len(value)}")
    return Setxattr(flags, name, value)


def _getxattr(body: bytes) -> Getxattr:
    size, _ = _XATTR.unpack_from(body)
    return Getxattr(size, *_names(body, _XATTR.size, 1))


def _listxattr(body: bytes) -> Getxattr:
    size, _ = _XATTR.unpack_from(body)
    return Getxattr(size, b"")


def _init(body: bytes) -> Init:
    return Init._make(_INIT.unpack_from(body))


def _interrupt(body: bytes) -> Interrupt:
    return Interrupt._make(_INTERRUPT.unpack_from(body))


_READERS: dict[int, Callable[[bytes], Request]] = {
    Opcode.LOOKUP: _name,
    Opcode.FORGET: _forget,
    Opcode.GETATTR: _on_handle(_GETATTR, 2),
    Opcode.SETATTR: _setattr,
    Opcode.READLINK: _empty,
    Opcode.SYMLINK: _symlink,
    Opcode.MKNOD: _mknod,
    Opcode.MKDIR: _mkdir,
    Opcode.UNLINK: _name,
    Opcode.RMDIR: _name,
    Opcode.RENAME: _rename,
    Opcode.LINK: _link,
    Opcode.OPEN: _open,
    Opcode.READ: _read,
    Opcode.WRITE: _write,
    Opcode.STATFS: _empty,
    Opcode.RELEASE: _on_handle(_RELEASE, 0),
    Opcode.FSYNC: _on_handle(_FSYNC, 0),
    Opcode.SETXATTR: _setxattr,
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _listxattr,
    Opcode.REMOVEXATTR: _name,
    Opcode.FLUSH: _on_handle(_FLUSH, 0),
    Opcode.INIT: _init,
    Opcode.OPENDIR: _open,
    Opcode.READDIR: _read,
    Opcode.RELEASEDIR: _on_handle(_RELEASE, 0),
    Opcode.FSYNCDIR: _on_handle(_FSYNC, 0),
    Opcode.CREATE: _create,
    Opcode.INTERRUPT: _interrupt,
    Opcode.DESTROY: _empty,
    Opcode.BATCH_FORGET: _batch_forget,
    Opcode.READDIRPLUS: _read,
    Opcode.RENAME2: _rename2,
}
