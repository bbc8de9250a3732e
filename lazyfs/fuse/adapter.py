"""pyfuse3's requests turned into verbs of the file system, and errors into errno.

Never decides anything about files. Hard point: pyfuse3 ends its main loop on any exception but FUSEError, and the
caller hangs; so every handler passes the errno door (`_door`), and a test proves that none is missing.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from lazyfs.core.errors import (
    BadNameError,
    LazyfsError,
    NoEntryError,
    NotPermittedError,
    NotSupportedError,
    UsageError,
)
from lazyfs.core.posix import MAX_ID, Posix
from lazyfs.core.types import Attributes, Buffer, Changes, Range
from lazyfs.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

BLOCK = 512
IO_SIZE = 1024**2
"""st_blksize: what cp and Python's buffered readers then ask for at a time."""
VIRTUAL_BYTES = 2**60
"""The size that statfs tells: a bucket has none."""


def _door(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The one place where errors become errno. What nobody expected is logged and becomes EIO."""

    @functools.wraps(handler)
    async def through(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except LazyfsError as error:
            log.debug("%s: %s: %s", handler.__name__, type(error).__name__, error)
            raise FUSEError(error.errno) from None
        except Exception:
            log.exception("unexpected error in %s", handler.__name__)
            raise FUSEError(errno.EIO) from None

    through.is_door = True  # type: ignore[attr-defined]  # for the test that counts the doors
    return through


def _name(name: bytes) -> str:
    """A name as text. Keys are UTF-8, so nothing else can be one. BadNameError."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise BadNameError(f"{name!r} is not UTF-8") from None


def to_entry(attributes: Attributes) -> EntryAttributes:
    """Attributes as the kernel takes them."""
    entry = EntryAttributes()
    entry.st_ino = attributes.ino
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.links
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size
    entry.st_blksize = IO_SIZE
    entry.st_blocks = -(-attributes.size // BLOCK)
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.mtime_ns
    entry.entry_timeout = entry.attr_timeout = attributes.timeout_s
    return entry


def _made(mode: int, ctx: RequestContext) -> Posix:
    """Whose a new file is, and who may do what with it. The kernel has taken the umask off already; an id that means
    nothing outside of somebody's container is nobody's."""
    uid, gid = (one if one <= MAX_ID else None for one in (ctx.uid, ctx.gid))
    return Posix(mode=mode, uid=uid, gid=gid)


class Adapter(pyfuse3.Operations):
    """One FileSystem behind pyfuse3. Lookup counts are not kept: inode numbers are never used twice."""

    supports_dot_lookup = False

    def __init__(self, filesystem: FileSystem) -> None:
        super().__init__()
        self._fs = filesystem
        self._ino_of: dict[int, int] = {}
        """The inode of each open file, which pyfuse3 does not tell in reads and writes."""

    # -- names ------------------------------------------------------------------------------------------------

    @_door
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """An entry; one with inode 0 tells the kernel for how long it may believe that there is none."""
        try:
            text = _name(name)
        except BadNameError:
            raise FUSEError(errno.ENOENT) from None
        try:
            return to_entry(await self._fs.lookup(parent_inode, text))
        except NoEntryError:
            absent = EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = self._fs.namespace.absence_lease_s(parent_inode, text)
            return absent

    @_door
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Nothing is remembered for the kernel."""

    @_door
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Attributes of an inode."""
        return to_entry(await self._fs.getattr(inode))

    @_door
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        """chmod, chown, truncate, utimens."""
        changes = Changes(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return to_entry(await self._fs.setattr(inode, changes))

    @_door
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        """Create a directory."""
        return to_entry(await self._fs.make_directory(parent_inode, _name(name), _made(mode, ctx)))

    @_door
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        await self._fs.remove_directory(parent_inode, _name(name))

    @_door
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Delete a file."""
        await self._fs.unlink(parent_inode, _name(name))

    @_door
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Rename a file."""
        if flags & pyfuse3.RENAME_EXCHANGE:
            raise UsageError("two files cannot be exchanged at once in a bucket")
        replace = not flags & pyfuse3.RENAME_NOREPLACE
        await self._fs.rename(parent_inode_old, _name(name_old), parent_inode_new, _name(name_new), replace=replace)

    # -- directories ------------------------------------------------------------------------------------------

    @_door
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """A handle to list by."""
        return await self._fs.open_directory(inode)

    @_door
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """As many entries as the kernel has room for."""
        for name, attributes, offset in await self._fs.read_directory(fh, start_id):
            if not pyfuse3.readdir_reply(token, name.encode(), to_entry(attributes), offset):
                return

    @_door
    async def releasedir(self, fh: FileHandleT) -> None:
        """The listing is over."""
        self._fs.close_directory(fh)

    @_door
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """What the namespace holds, and room without end."""
        files, size = self._fs.namespace.totals()
        result = StatvfsData()
        result.f_bsize = result.f_frsize = 4096
        result.f_blocks = VIRTUAL_BYTES // 4096
        result.f_bfree = result.f_bavail = max(0, VIRTUAL_BYTES - size) // 4096
        result.f_files = files + 2**40
        result.f_ffree = result.f_favail = 2**40
        result.f_namemax = 255
        return result

    # -- files ------------------------------------------------------------------------------------------------

    @_door
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """A handle. The kernel keeps its pages: an inode is one version, so they cannot be another's."""
        return self._opened(inode, await self._fs.open(inode, flags, ctx.pid))

    @_door
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """A new file, open for writing."""
        fh, attributes = await self._fs.create(parent_inode, _name(name), ctx.pid, _made(mode, ctx))
        return self._opened(attributes.ino, fh), to_entry(attributes)

    def _opened(self, ino: int, fh: int) -> FileInfo:
        self._ino_of[fh] = ino
        return FileInfo(fh=fh, keep_cache=self._fs.keeps_pages(ino))

    @_door
    async def read(self, fh: FileHandleT, off: int, size: int) -> Buffer:  # type: ignore[override]
        """Bytes, without a copy where they lie in one block. pyfuse3 takes any buffer."""
        return await self._fs.read(self._ino_of[fh], fh, Range(off, off + size))

    @_door
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Take bytes."""
        return await self._fs.write(self._ino_of[fh], fh, off, buf)

    @_door
    async def flush(self, fh: FileHandleT) -> None:
        """One descriptor is closed. On a read-only mount the kernel is told once never to ask again."""
        if self._fs.policy.read_only:
            raise FUSEError(errno.ENOSYS)
        await self._fs.flush(self._ino_of[fh], fh)

    @_door
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        """Make it durable in the bucket."""
        await self._fs.fsync(self._ino_of[fh], fh)

    @_door
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        """Names are durable when the call that made them returned."""

    @_door
    async def release(self, fh: FileHandleT) -> None:
        """The last descriptor of a handle is gone."""
        await self._fs.release(self._ino_of.pop(fh), fh)

    @_door
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a symbolic link. Its target may be any bytes."""
        return to_entry(await self._fs.make_link(parent_inode, _name(name), bytes(target), _made(0o777, ctx)))

    @_door
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Where it leads, as it was told."""
        return FileNameT(await self._fs.read_link(inode))

    # -- extended attributes: where they are off, the kernel is told once never to ask again -------------------

    def _check_xattrs(self) -> None:
        if not self._fs.policy.xattrs:
            raise FUSEError(errno.ENOSYS)

    @_door
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """One attribute."""
        self._check_xattrs()
        return await self._fs.xattrs.get(inode, name)

    @_door
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """The names of all."""
        self._check_xattrs()
        return [XAttrNameT(name) for name in await self._fs.xattrs.names(inode)]

    @_door
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Make or replace one; pyfuse3 has looked at XATTR_CREATE and XATTR_REPLACE."""
        self._check_xattrs()
        await self._fs.xattrs.set(inode, name, value)

    @_door
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Take one away."""
        self._check_xattrs()
        await self._fs.xattrs.remove(inode, name)

    @_door
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """A bucket has no hard links."""
        raise NotSupportedError("hard links")

    @_door
    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """A bucket has no devices, pipes and sockets; files are made by `create`."""
        raise NotPermittedError("devices, pipes and sockets")
