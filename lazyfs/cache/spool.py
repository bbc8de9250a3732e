"""The spool: local files that hold what is being written, and afterwards serve it until the SSD tier has it.

Large writes go past the page cache (see `cache.directio`): the pages of the mount's own file are there already.

Promises that what was written can be read back, at any place and in any order, and that the spool stays below its
limit; what only serves as cache gives way to what is being written. Its files have no name (O_TMPFILE): they are nobody
else's, and nothing of them stays, however the mount ends. Only for write-back `SpoolFile.keep_as` gives a file a name,
durably, under which it waits for its upload, over restarts too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import trio

from lazyfs.cache.directio import UNIT, aligned, is_aligned, sync_directory
from lazyfs.core.errors import LazyfsError, NoRoomError, SpoolError
from lazyfs.core.types import Buffer

T = TypeVar("T")

THREADS = 8
"""That read and write spool files at a time."""
DIRECT_BYTES = 1024**2
"""Written directly at a time; smaller writes are patches, which the page cache collects."""
ROOM_S = 120.0
"""How long a writer waits for room that uploads shall make, if none of them makes any."""
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
"""What open(2) says where a file system has no O_TMPFILE (NFS, older overlayfs) or the kernel does not know it."""


class Spool:
    """Room for files in `directory`, at most `limit_bytes` together."""

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._directory = directory
        self._spare: dict[SpoolFile, None] = {}
        """Files whose content is in the bucket, oldest first: they are closed when others need their room."""
        self._buffers: list[memoryview] = []
        self._freed = trio.Event()
        self.room_will_come: Callable[[], bool] = lambda: False
        """Whether what takes the room is on its way to the bucket; then who needs some waits for it."""
        self.limiter = trio.CapacityLimiter(THREADS)

    @contextlib.contextmanager
    def buffer(self) -> Iterator[memoryview]:
        """DIRECT_BYTES of memory for direct I/O, warm if it can be, for the body of the ``with``; in any thread."""
        try:
            found = self._buffers.pop()
        except IndexError:
            found = aligned(DIRECT_BYTES)
        yield found
        self._buffers.append(found)

    async def open(self) -> SpoolFile:
        """A new, empty file. SpoolError."""

        def create() -> tuple[int, int]:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = self._create()
            try:
                return made, os.open(f"/proc/self/fd/{made}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            except OSError:  # this file system has no direct I/O
                return made, -1

        try:
            return SpoolFile(self, *await trio.to_thread.run_sync(create, limiter=self.limiter))
        except OSError as error:
            raise _told(error, f"spool {self._directory}: {error.strerror}") from error

    def _create(self) -> int:
        try:
            return os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        descriptor, name = tempfile.mkstemp(dir=self._directory)
        os.unlink(name)
        return descriptor

    async def take(self, size: int) -> None:
        """`size` bytes more will be used. Waits if the room that is missing will come. NoRoomError."""
        while not self._fits(size):
            with trio.move_on_after(ROOM_S) as waiting:
                if not self.room_will_come():
                    break
                await self._freed.wait()
            if waiting.cancelled_caught:
                break
        if not self._fits(size):
            raise NoRoomError("the spool is full (--spool-size)")
        self.used_bytes += size

    def _fits(self, size: int) -> bool:
        while self.used_bytes + size > self.limit_bytes and self._spare:
            next(iter(self._spare)).close()
        return self.used_bytes + size <= self.limit_bytes

    def hold(self, size: int) -> None:
        """`size` bytes are used already, by a file that an earlier mount has kept."""
        self.used_bytes += size

    def give_back(self, size: int) -> None:
        """`size` bytes are used no more."""
        self.used_bytes -= size
        self.look_again()

    def look_again(self) -> None:
        """Let who waits for room see whether it is there, or will still come."""
        self._freed.set()
        self._freed = trio.Event()

    async def read_kept(self, path: Path, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop` of a kept file, which has them. SpoolError."""

        def read() -> bytes:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                return os.pread(descriptor, stop - start, start)
            finally:
                os.close(descriptor)

        try:
            found = await trio.to_thread.run_sync(read, limiter=self.limiter)
        except OSError as error:
            raise SpoolError(f"{path}: {error.strerror}") from error
        if len(found) != stop - start:
            raise SpoolError(f"{path} lost bytes: {len(found)} of {stop - start}")
        return found

    async def adopt(self, path: Path, size: int) -> SpoolFile:
        """The kept file, which loses its name: it is closed like any other. SpoolError."""

        def open_unnamed() -> int:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            os.unlink(path)
            return descriptor

        try:
            return SpoolFile(self, await trio.to_thread.run_sync(open_unnamed, limiter=self.limiter), -1, size)
        except OSError as error:
            raise SpoolError(f"{path}: {error.strerror}") from error

    async def drop(self, path: Path, size: int) -> None:
        """A kept file is not wanted any more. Never fails: a name that stays is swept by the next mount."""
        with contextlib.suppress(OSError):
            await trio.to_thread.run_sync(os.unlink, path, limiter=self.limiter)
        self.give_back(size)

    def spare(self, file: SpoolFile) -> None:
        """`file` may be closed for the sake of others."""
        self._spare[file] = None
        self.look_again()

    def forget(self, file: SpoolFile) -> None:
        """`file` is closed."""
        self._spare.pop(file, None)


class SpoolFile:
    """One file of the spool. Whoever has it closes it. Methods raise SpoolError; those that need room, NoRoomError."""

    def __init__(self, spool: Spool, descriptor: int, direct: int, size: int = 0) -> None:
        self.size = size
        self._spool = spool
        self._descriptor = descriptor
        self._direct = direct
        """The same file opened for direct I/O; -1 if that cannot be."""
        self._users = 0
        self._closed = False
        self._kept = False
        """Whether it has a name, which has its room."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be read any more."""
        return self._closed

    def spare(self) -> None:
        """From now on whoever needs its room may close it."""
        self._spool.spare(self)

    async def grow(self, size: int) -> None:
        """Take the room for `size` bytes, if it is not taken yet."""
        self._check()
        if size > self.size:
            await self._spool.take(size - self.size)
            if self._closed:  # while this waited
                self._spool.give_back(size - self.size)
                self._check()
            self.size = size

    async def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`; a gap before it is zeros."""
        await self.grow(offset + len(data))
        await self._run(lambda: self._write(memoryview(data), offset))

    async def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, which the file has."""
        found = await self._run(lambda: os.pread(self._descriptor, stop - start, start))
        if len(found) != stop - start:
            raise SpoolError(f"the spool lost bytes: {len(found)} of {stop - start}")
        return found

    async def truncate(self, size: int) -> None:
        """Make it `size` bytes long."""
        if size < self.size:
            self._check()
            self._spool.give_back(self.size - size)
            self.size = size
        await self.grow(size)
        await self._run(lambda: os.ftruncate(self._descriptor, size))

    async def keep_as(self, path: Path) -> None:
        """Give the file the name `path`, which is new; when this returns both are durable, and its room is the name's:
        see Spool.drop and Spool.adopt. Nobody writes to it any more."""

        def keep() -> None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                # Only where a directory is given Python calls linkat(2), which can follow the link to what has no name.
                os.link(f"/proc/self/fd/{self._descriptor}", path, src_dir_fd=self._descriptor, follow_symlinks=True)
                os.fsync(self._descriptor)
            except FileNotFoundError:  # a file system without O_TMPFILE: what was unlinked gets no name again
                self._copy_to(path)
            sync_directory(path.parent)

        try:
            await self._run(keep)
        except LazyfsError:
            with contextlib.suppress(OSError):
                path.unlink()  # noqa: ASYNC240 - one call, after an error
            raise
        self._kept = True

    def _copy_to(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(f"/proc/self/fd/{self._descriptor}", "rb") as source, os.fdopen(descriptor, "wb") as target:
            shutil.copyfileobj(source, target, DIRECT_BYTES)
            target.flush()
            os.fsync(target.fileno())

    def close(self) -> None:
        """Give its room back; the descriptor is closed when the calls that are on their way are over."""
        if not self._closed:
            self._closed = True
            self._spool.forget(self)
            if not self._kept:
                self._spool.give_back(self.size)
        self._settle()

    def _check(self) -> None:
        if self._closed:
            raise SpoolError("the spool file is closed")

    async def _run(self, work: Callable[[], T]) -> T:
        self._check()
        self._users += 1
        try:
            return await trio.to_thread.run_sync(work, limiter=self._spool.limiter)
        except OSError as error:
            raise _told(error, f"spool: {error.strerror}") from error
        finally:
            self._users -= 1
            self._settle()

    def _settle(self) -> None:
        if self._closed and not self._users and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._direct >= 0:
                os.close(self._direct)

    def _write(self, data: memoryview, offset: int) -> None:
        """In a thread. What is large and lies on whole units goes directly, the rest through the page cache."""
        while self._direct >= 0 and offset % UNIT == 0 and len(data) >= DIRECT_BYTES:
            try:
                written = self._write_directly(data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)  # this file system opens so, but does not write so
                self._direct = -1
                break
            data, offset = data[written:], offset + written
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written

    def _write_directly(self, data: memoryview, offset: int) -> int:
        """All units, if the memory is fit for it; else as much as can be copied to such."""
        if is_aligned(data):
            return os.pwrite(self._direct, data[: len(data) // UNIT * UNIT], offset)
        with self._spool.buffer() as buffer:
            buffer[:] = data[:DIRECT_BYTES]
            return os.pwrite(self._direct, buffer, offset)


def _told(error: OSError, message: str) -> LazyfsError:
    return (NoRoomError if error.errno in (errno.ENOSPC, errno.EDQUOT) else SpoolError)(message)
