"""The kernel's requests, decoded, turned into verbs of the file system: what `adapter` is for pyfuse3.

Never decides anything about files, and lets errors out as they are: the session has the door. `now` answers without
waiting what can be answered so, `later` everything. Lookup counts are not kept: inode numbers are never used twice.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from lazyfs.core.errors import (
    BadNameError,
    ExistsError,
    NoAttributeError,
    NoEntryError,
    NotPermittedError,
    NotSupportedError,
    UsageError,
)
from lazyfs.core.types import Buffer, Changes, Range
from lazyfs.fuse import answers
from lazyfs.fuse import protocol as p
from lazyfs.fuse.door import STATFS_BLOCK, VIRTUAL_BYTES, VIRTUAL_FILES, made_by, to_name
from lazyfs.fuse.protocol import Header, Opcode
from lazyfs.vfs.filesystem import FileSystem

Later: TypeAlias = Callable[[Header, Any], Awaitable[Buffer]]
Now: TypeAlias = Callable[[Header, Any], Buffer | None]
NOTHING = b""
_OPENED_VERSION = answers.opened(0, p.KEEP_CACHE | p.NOFLUSH)


class RefusedError(Exception):
    """An errno that is for the kernel's ears, not for a program's."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


class Verbs:
    """One FileSystem behind the kernel's own protocol."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._fs = filesystem
        self._now: dict[int, Now] = {
            Opcode.LOOKUP: self._lookup_now,
            Opcode.GETATTR: self._getattr_now,
            Opcode.READ: self._read_now,
            Opcode.OPEN: self._open_now,
            Opcode.FLUSH: self._flush_now,
            Opcode.RELEASE: self._release_now,
            Opcode.OPENDIR: self._opendir_now,
            Opcode.READDIR: self._readdir_now,
            Opcode.READDIRPLUS: self._readdir_now,
            Opcode.RELEASEDIR: self._releasedir_now,
            Opcode.FSYNCDIR: lambda _header, _request: NOTHING,
            Opcode.STATFS: self._statfs_now,
            Opcode.LINK: self._link_now,
            Opcode.MKNOD: self._mknod_now,
        }
        self.may_refuse_open = False
        """Whether this kernel can do without OPEN and RELEASE."""
        if not filesystem.policy.xattrs:
            refused = (Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR)
            self._now |= dict.fromkeys(refused, self._never_again)
        self._later: dict[int, Later] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.FLUSH: self._flush,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdir,
            Opcode.CREATE: self._create,
        }
        if filesystem.policy.read_only:
            self._now |= {
                Opcode.OPEN: self._open_version_now,
                Opcode.READ: self._read_version_now,
                Opcode.FLUSH: self._never_again,
                Opcode.FSYNC: lambda _header, _request: NOTHING,
                Opcode.RELEASE: lambda _header, _request: NOTHING,
            }
            self._later |= {Opcode.OPEN: self._open_version, Opcode.READ: self._read_version}

    def now(self, header: Header, request: p.Request) -> Buffer | None:
        """The answer, if it can be given without waiting; else None, and nothing has happened. LazyfsError,
        RefusedError."""
        verb = self._now.get(header.opcode)
        return None if verb is None else verb(header, request)

    async def later(self, header: Header, request: p.Request) -> Buffer:
        """The answer. LazyfsError, RefusedError."""
        return await self._later[header.opcode](header, request)

    def _never_again(self, _header: Header, _request: p.Request) -> Buffer | None:
        """The kernel is told once, and remembers."""
        raise RefusedError(errno.ENOSYS)

    # -- names ------------------------------------------------------------------------------------------------------

    def _lookup_now(self, header: Header, request: p.Name) -> Buffer | None:
        try:
            name = to_name(request.name)
        except BadNameError:
            raise NoEntryError(repr(request.name)) from None
        try:
            found = self._fs.now.lookup(header.nodeid, name)
        except NoEntryError:
            return self._absence(header.nodeid, name)
        return None if found is None else answers.entry(found)

    async def _lookup(self, header: Header, request: p.Name) -> Buffer:
        name = to_name(request.name)
        try:
            return answers.entry(await self._fs.lookup(header.nodeid, name))
        except NoEntryError:
            return self._absence(header.nodeid, name)

    def _absence(self, parent: int, name: str) -> bytes:
        return answers.absence(self._fs.namespace.absence_lease_s(parent, name))

    def _getattr_now(self, header: Header, _request: p.OnHandle) -> Buffer | None:
        found = self._fs.now.getattr(header.nodeid)
        return None if found is None else answers.attributes(found)

    async def _getattr(self, header: Header, _request: p.OnHandle) -> Buffer:
        return answers.attributes(await self._fs.getattr(header.nodeid))

    async def _setattr(self, header: Header, request: p.Setattr) -> Buffer:
        valid = request.valid
        mtime_ns = time.time_ns() if valid & p.Valid.MTIME_NOW else request.mtime_ns
        changes = Changes(
            size=request.size if valid & p.Valid.SIZE else None,
            mode=request.mode if valid & p.Valid.MODE else None,
            uid=request.uid if valid & p.Valid.UID else None,
            gid=request.gid if valid & p.Valid.GID else None,
            mtime_ns=mtime_ns if valid & (p.Valid.MTIME | p.Valid.MTIME_NOW) else None,
        )
        return answers.attributes(await self._fs.setattr(header.nodeid, changes))

    async def _mkdir(self, header: Header, request: p.Make) -> Buffer:
        posix = made_by(request.mode, header.uid, header.gid)
        return answers.entry(await self._fs.make_directory(header.nodeid, to_name(request.name), posix))

    async def _rmdir(self, header: Header, request: p.Name) -> Buffer:
        await self._fs.remove_directory(header.nodeid, to_name(request.name))
        return NOTHING

    async def _unlink(self, header: Header, request: p.Name) -> Buffer:
        await self._fs.unlink(header.nodeid, to_name(request.name))
        return NOTHING

    async def _rename(self, header: Header, request: p.Rename) -> Buffer:
        if request.flags & p.RENAME_EXCHANGE:
            raise UsageError("two files cannot be exchanged at once in a bucket")
        old, new = to_name(request.name), to_name(request.new_name)
        replace = not request.flags & p.RENAME_NOREPLACE
        await self._fs.rename(header.nodeid, old, request.newdir, new, replace=replace)
        return NOTHING

    async def _symlink(self, header: Header, request: p.Symlink) -> Buffer:
        posix = made_by(0o777, header.uid, header.gid)
        found = await self._fs.make_link(header.nodeid, to_name(request.name), request.target, posix)
        return answers.entry(found)

    async def _readlink(self, header: Header, _request: p.Empty) -> Buffer:
        return await self._fs.read_link(header.nodeid)

    def _link_now(self, _header: Header, _request: p.Link) -> Buffer | None:
        raise NotSupportedError("hard links")

    def _mknod_now(self, _header: Header, _request: p.Make) -> Buffer | None:
        """Files are made by `create`."""
        raise NotPermittedError("devices, pipes and sockets")

    def _statfs_now(self, _header: Header, _request: p.Empty) -> Buffer | None:
        files, size = self._fs.namespace.totals()
        return answers.statfs(
            blocks=VIRTUAL_BYTES // STATFS_BLOCK,
            free=max(0, VIRTUAL_BYTES - size) // STATFS_BLOCK,
            files=files + VIRTUAL_FILES,
            files_free=VIRTUAL_FILES,
            block_size=STATFS_BLOCK,
            name_bytes=255,
        )

    # -- directories ------------------------------------------------------------------------------------------------

    def _opendir_now(self, header: Header, _request: p.Open) -> Buffer | None:
        fh = self._fs.now.open_directory(header.nodeid)
        return None if fh is None else answers.opened(fh, 0)

    async def _opendir(self, header: Header, _request: p.Open) -> Buffer:
        return answers.opened(await self._fs.open_directory(header.nodeid), 0)

    def _readdir_now(self, header: Header, request: p.Read) -> Buffer | None:
        entries = self._fs.now.read_directory(request.fh, request.offset)
        plus = header.opcode == Opcode.READDIRPLUS
        return None if entries is None else answers.directory(entries, request.size, plus=plus)

    async def _readdir(self, header: Header, request: p.Read) -> Buffer:
        entries = await self._fs.read_directory(request.fh, request.offset)
        return answers.directory(entries, request.size, plus=header.opcode == Opcode.READDIRPLUS)

    def _releasedir_now(self, _header: Header, request: p.OnHandle) -> Buffer | None:
        self._fs.close_directory(request.fh)
        return NOTHING

    # -- files ------------------------------------------------------------------------------------------------------

    def _open_now(self, header: Header, request: p.Open) -> Buffer | None:
        fh = self._fs.open_now(header.nodeid, request.flags, header.pid)
        return None if fh is None else self._opened(header.nodeid, fh, request.flags)

    async def _open(self, header: Header, request: p.Open) -> Buffer:
        fh = await self._fs.open(header.nodeid, request.flags, header.pid)
        return self._opened(header.nodeid, fh, request.flags)

    def _opened(self, ino: int, fh: int, flags: int) -> bytes:
        """The kernel keeps its pages: an inode is one version, so they cannot be another's. Of a handle for reading no
        close is told: nothing depends on it."""
        kept = p.KEEP_CACHE if self._fs.keeps_pages(ino) else 0
        return answers.opened(fh, kept | (0 if flags & os.O_ACCMODE else p.NOFLUSH))

    async def _create(self, header: Header, request: p.Make) -> Buffer:
        posix = made_by(request.mode, header.uid, header.gid)
        fh, found = await self._fs.create(header.nodeid, to_name(request.name), header.pid, posix)
        return answers.entry(found) + self._opened(found.ino, fh, os.O_WRONLY)

    def _read_now(self, _header: Header, request: p.Read) -> Buffer | None:
        return self._fs.now.read(request.fh, Range(request.offset, request.offset + request.size))

    async def _read(self, header: Header, request: p.Read) -> Buffer:
        span = Range(request.offset, request.offset + request.size)
        return await self._fs.read(header.nodeid, request.fh, span)

    async def _write(self, header: Header, request: p.Write) -> Buffer:
        return answers.written(await self._fs.write(header.nodeid, request.fh, request.offset, request.data))

    def _flush_now(self, _header: Header, request: p.OnHandle) -> Buffer | None:
        return NOTHING if self._fs.now.flush(request.fh) else None

    async def _flush(self, header: Header, request: p.OnHandle) -> Buffer:
        await self._fs.flush(header.nodeid, request.fh)
        return NOTHING

    async def _fsync(self, header: Header, request: p.OnHandle) -> Buffer:
        await self._fs.fsync(header.nodeid, request.fh)
        return NOTHING

    def _release_now(self, _header: Header, request: p.OnHandle) -> Buffer | None:
        return NOTHING if self._fs.release_now(request.fh) else None

    async def _release(self, header: Header, request: p.OnHandle) -> Buffer:
        await self._fs.release(header.nodeid, request.fh)
        return NOTHING

    # -- files of a read-only mount, which have no handles ------------------------------------------------------------

    def _open_version_now(self, header: Header, request: p.Open) -> Buffer | None:
        """Once what an earlier mount knew has been caught up with, opening finds out nothing that the look-up before it
        did not: the kernel is told never to ask again."""
        if self.may_refuse_open and self._fs.namespace.refreshed:
            raise RefusedError(errno.ENOSYS)
        if not self._fs.now.may_open(header.nodeid, request.flags):
            return None
        self._fs.now.openable(header.nodeid)
        return _OPENED_VERSION

    async def _open_version(self, header: Header, request: p.Open) -> Buffer:
        if request.flags & os.O_ACCMODE:
            self._fs.policy.check_writable()
        await self._fs.prove(header.nodeid)
        self._fs.now.openable(header.nodeid)
        return _OPENED_VERSION

    def _read_version_now(self, header: Header, request: p.Read) -> Buffer | None:
        span = Range(request.offset, request.offset + request.size)
        return self._fs.versions.read_now(header.nodeid, span, header.pid)

    async def _read_version(self, header: Header, request: p.Read) -> Buffer:
        span = Range(request.offset, request.offset + request.size)
        return await self._fs.versions.read(header.nodeid, span, header.pid)

    def forget(self, request: p.Forget) -> None:
        """The kernel does not know these inodes any more. Never raises."""
        for ino, _ in request.nodes:
            self._fs.versions.forget(ino)

    # -- extended attributes ----------------------------------------------------------------------------------------

    async def _getxattr(self, header: Header, request: p.Getxattr) -> Buffer:
        return _sized(await self._fs.xattrs.get(header.nodeid, request.name), request.size)

    async def _listxattr(self, header: Header, request: p.Getxattr) -> Buffer:
        names = await self._fs.xattrs.names(header.nodeid)
        return _sized(b"".join(name + b"\0" for name in names), request.size)

    async def _setxattr(self, header: Header, request: p.Setxattr) -> Buffer:
        if request.flags & (p.XATTR_CREATE | p.XATTR_REPLACE):
            await self._check_xattr(header.nodeid, request.name, there=bool(request.flags & p.XATTR_REPLACE))
        await self._fs.xattrs.set(header.nodeid, request.name, request.value)
        return NOTHING

    async def _check_xattr(self, ino: int, name: bytes, *, there: bool) -> None:
        try:
            await self._fs.xattrs.get(ino, name)
        except NoAttributeError:
            if there:
                raise
        else:
            if not there:
                raise ExistsError(name.decode(errors="replace"))

    async def _removexattr(self, header: Header, request: p.Name) -> Buffer:
        await self._fs.xattrs.remove(header.nodeid, request.name)
        return NOTHING


def _sized(value: bytes, room: int) -> bytes:
    """The value, or how long it is if nobody has room for it yet."""
    if not room:
        return answers.xattr_size(len(value))
    if len(value) > room:
        raise RefusedError(errno.ERANGE)
    return value
