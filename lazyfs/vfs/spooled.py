"""What is settled of a file that is written, kept in the spool: a part is on its way to the disk while the program
writes the next one.

Promises that what was kept can be read back and changed, in any order, as soon as `kept` has returned; `read` waits for
it by itself. What is on its way counts against the memory budget. Never decides whether the file can do without.
"""

from __future__ import annotations

import trio

from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.spool import Spool, SpoolFile
from lazyfs.core.errors import LazyfsError
from lazyfs.core.types import Buffer
from lazyfs.vfs.flight import Flight


class Spooled:
    """A file of the spool that is made when it is needed; `spool` None: there is none. Methods that wait raise
    NoRoomError and SpoolError."""

    def __init__(self, spool: Spool | None, *, memory: MemoryTier, nursery: trio.Nursery) -> None:
        self._spool = spool
        self._memory = memory
        self._nursery = nursery
        self._file: SpoolFile | None = None
        self._on_its_way: Flight[None] | None = None
        self.error: LazyfsError | None = None
        """Why nothing is kept any more, if so."""

    @property
    def can_be(self) -> bool:
        """Whether there is a spool for it."""
        return self._spool is not None

    @property
    def is_there(self) -> bool:
        """Whether something was kept, or tried to."""
        return self._file is not None

    async def keep(self, part: Buffer, at: int) -> None:
        """Let the disk have `part`, when it has what came before. Its room is taken at once: who has none hears of it
        now."""
        await self.kept()
        assert self._spool is not None
        file = self._file = self._file or await self._spool.open()
        await file.grow(at + len(part))
        await self._memory.reserve(len(part))
        self._on_its_way = Flight()
        self._nursery.start_soon(self._fly, self._on_its_way, file, part, at)

    async def _fly(self, flight: Flight[None], file: SpoolFile, part: Buffer, at: int) -> None:
        try:
            await flight.run(lambda: file.write(at, part))
        finally:
            self._memory.release(len(part))

    async def kept(self) -> None:
        """Return when the disk has what it was given. What it did not take is told once: whoever can do without goes on
        with the rest, and all others write no more."""
        if self._on_its_way is not None:
            try:
                await self._on_its_way.wait()
            except LazyfsError:
                self._on_its_way = None
                raise
            self._on_its_way = None

    async def change(self, at: int, data: Buffer) -> None:
        """Put `data` at `at`, over what was kept."""
        await self.kept()
        assert self._file is not None
        await self._file.write(at, data)

    async def truncate(self, size: int) -> None:
        """Make it `size` bytes long."""
        await self.kept()
        assert self._file is not None
        await self._file.truncate(size)

    async def read(self, start: int, stop: int) -> bytes:
        """Bytes that were kept. Others may go on with it meanwhile."""
        file, on_its_way = self._file, self._on_its_way
        assert file is not None
        if on_its_way is not None:
            await on_its_way.wait()
        return await file.read(start, stop)

    def take(self, size: int) -> SpoolFile | None:
        """The file, if it is `size` bytes long; the caller closes it."""
        if self._file is None or self._on_its_way is not None or self._file.size != size:
            return None
        file, self._file = self._file, None
        return file

    def drop(self, error: LazyfsError) -> None:
        """Keep nothing any more, because of `error`."""
        self.close()
        self._file = self._on_its_way = self._spool = None
        self.error = error

    def begin_anew(self) -> None:
        """Forget what was kept."""
        self.close()
        self._file = self._on_its_way = None

    def close(self) -> None:
        """Give back the room."""
        if self._file is not None:
            self._file.close()
