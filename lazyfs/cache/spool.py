"""The spool: local files that hold what is being written, and afterwards serve it until the SSD tier has it.

Promises that what was written can be read back, at any place and in any order, and that the spool stays below its
limit. Its files have no name (O_TMPFILE): they are nobody else's, and nothing of them stays, however the mount ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from lazyfs.core.errors import NoRoomError, SpoolError
from lazyfs.core.types import Buffer

T = TypeVar("T")

THREADS = 8
"""That read and write spool files at a time."""


class Spool:
    """Room for files in `directory`, at most `limit_bytes` together."""

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._directory = directory
        self._limiter = trio.CapacityLimiter(THREADS)

    async def open(self) -> SpoolFile:
        """A new, empty file. SpoolError."""

        def create() -> int:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)

        try:
            return SpoolFile(self, await trio.to_thread.run_sync(create, limiter=self._limiter), self._limiter)
        except OSError as error:
            raise SpoolError(f"spool {self._directory}: {error.strerror}") from error


class SpoolFile:
    """One file of the spool. Whoever has it closes it. Methods raise SpoolError; those that need room, NoRoomError."""

    def __init__(self, spool: Spool, descriptor: int, limiter: trio.CapacityLimiter) -> None:
        self.size = 0
        self._spool = spool
        self._descriptor = descriptor
        self._limiter = limiter
        self._users = 0
        self._closed = False

    async def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`; a gap before it is zeros."""
        self._grow(max(self.size, offset + len(data)))
        await self._run(lambda: _write_all(self._descriptor, data, offset))

    async def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, which the file has."""
        found = await self._run(lambda: os.pread(self._descriptor, stop - start, start))
        if len(found) != stop - start:
            raise SpoolError(f"the spool lost bytes: {len(found)} of {stop - start}")
        return found

    async def truncate(self, size: int) -> None:
        """Make it `size` bytes long."""
        self._grow(size)
        await self._run(lambda: os.ftruncate(self._descriptor, size))

    def close(self) -> None:
        """Give its room back, when the calls that are on their way are over."""
        self._closed = True
        self._settle()

    def _grow(self, size: int) -> None:
        """It will be `size` bytes long: take or give back room."""
        if size > self.size and self._spool.used_bytes + size - self.size > self._spool.limit_bytes:
            raise NoRoomError("the spool is full (--spool-size)")
        self._spool.used_bytes += size - self.size
        self.size = size

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise SpoolError("the spool file is closed")
        self._users += 1
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise SpoolError(f"spool: {error.strerror}") from error
        finally:
            self._users -= 1
            self._settle()

    def _settle(self) -> None:
        if self._closed and not self._users and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._spool.used_bytes -= self.size
            self.size = 0


def _write_all(descriptor: int, data: Buffer, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
