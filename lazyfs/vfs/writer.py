"""Writing one file: parts go up while the program writes; the object appears at commit, whole, or not at all.

Bytes that are still in memory may be rewritten, read back, truncated and extended at will, so a file of up to one part
takes any pattern of writes. Once a part has been sent its bytes are settled: touching them again is refused and
poisons the file, so that nothing wrong is ever uploaded.

A writer is used by one call at a time (`Filesystem` holds a lock for each). Parts on their way are flights in the
mount's nursery; their bytes count against the memory budget, and a full budget or a full pipe makes `write` wait.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from lazyfs.cache.memory import MemoryTier
from lazyfs.core.errors import LazyfsError, OutOfOrderError, TooBigError
from lazyfs.core.parts import PartSizes
from lazyfs.core.types import Buffer, Condition, Part, Range, Upload
from lazyfs.core.units import format_size
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.flight import Flight

log = logging.getLogger(__name__)

PARTS_IN_FLIGHT = 8
_SETTLE_S = 30.0
"""How long an abort waits for parts that are on their way: one that arrives after it would stay behind."""
_ABORT_S = 30.0


class Writer:
    """The unfinished new content of `key`.

    `content` is what the file held before (empty for a new or truncated one); `condition` is what must still be true of
    the key at commit.
    """

    def __init__(
        self,
        *,
        store: Store,
        memory: MemoryTier,
        nursery: trio.Nursery,
        key: str,
        content: Buffer,
        condition: Condition,
        options: PutOptions,
        part_sizes: PartSizes,
    ) -> None:
        self.key = key
        self.etag: str | None = None
        """The version that the last commit made."""
        self._store = store
        self._memory = memory
        self._nursery = nursery
        self._condition = condition
        self._options = options
        self._part_sizes = part_sizes
        self._tail = bytearray(content)
        """What was written and not sent yet: the bytes from `_sent` on."""
        self._sent = 0
        self._upload: Upload | None = None
        self._finished = False
        """Whether a multipart upload was completed: its parts are settled for good."""
        self._flights: list[Flight[Part]] = []
        self._dirty = True
        self._error: LazyfsError | None = None
        self._length_hint = 0

    @property
    def size(self) -> int:
        """How long the file is for whoever asks now."""
        return max(self._sent + len(self._tail), self._length_hint)

    @property
    def is_dirty(self) -> bool:
        """Whether there is something that the bucket does not have."""
        return self._dirty and self._error is None

    @property
    def is_clean(self) -> bool:
        """Whether the bucket has all that was written."""
        return not self._dirty and self._error is None

    @property
    def error(self) -> LazyfsError | None:
        """Why nothing more can be written, if so."""
        return self._error

    async def write(self, offset: int, data: Buffer) -> int:
        """Put `data` at `offset`; returns its length. OutOfOrderError, TooBigError, StoreError (of earlier parts)."""
        self._check()
        self._check_reach(offset + len(data))
        if offset < self._sent or self._finished:
            self._poison(OutOfOrderError(f"{self.key!r}: write at {offset} touches what was already uploaded"))
        self._dirty = True
        async with self._whole_or_withdrawn():
            await self._extend(offset)
            start = offset - self._sent
            self._tail[start : start + len(data)] = data
            await self._send_full_parts()
        return len(data)

    async def truncate(self, size: int) -> None:
        """Make the file `size` bytes long. Growing a file is free until commit. OutOfOrderError, TooBigError."""
        self._check()
        self._check_reach(size)
        if size == self.size:
            return
        if size < self._sent or self._finished:
            self._poison(OutOfOrderError(f"{self.key!r}: truncating to {size} cuts what was already uploaded"))
        self._dirty = True
        del self._tail[size - self._sent :]
        self._length_hint = size

    def read(self, span: Range) -> Buffer:
        """Read back what is still here. OutOfOrderError for what has already been sent."""
        self._check()
        span = span.clamp(self.size)
        if span.start < self._sent:
            raise OutOfOrderError(f"{self.key!r}: reading back what is being uploaded")
        held = bytes(self._tail[span.start - self._sent : span.stop - self._sent])
        return held + bytes(span.size - len(held))

    async def commit(self) -> None:
        """Make the bucket hold what was written; returns when it does. Costs nothing when it already does.

        On an error everything that was sent is withdrawn, and the file takes no more writes.
        """
        self._check()
        if not self._dirty:
            return
        async with self._whole_or_withdrawn():
            await self._extend(self._length_hint)
            self.etag = await self._finish()
        self._condition = Condition(etag=self.etag)
        self._dirty = False

    async def discard(self) -> None:
        """Forget everything that was not committed: the file was deleted."""
        self._error = OutOfOrderError(f"{self.key!r} was deleted while it was being written")
        await self._abort()

    # -- sending ------------------------------------------------------------------------------------------------

    async def _extend(self, size: int) -> None:
        """Fill with zeros up to `size`, a part at a time."""
        while (missing := size - self._sent - len(self._tail)) > 0:
            self._tail.extend(bytes(min(missing, self._part_sizes.size(len(self._flights) + 1))))
            await self._send_full_parts()

    async def _send_full_parts(self) -> None:
        """Send every part that is full and is not the last: a file of exactly one part stays a single PUT."""
        while len(self._tail) > (size := self._part_sizes.size(len(self._flights) + 1)):
            part = memoryview(self._tail)[:size]
            self._tail = self._tail[size:]
            self._sent += size
            await self._send(part)

    async def _send(self, body: memoryview) -> None:
        """Let `body` go up as the next part. The file may be discarded while this waits: then nothing goes."""
        if self._upload is None:
            self._upload = await self._store.create_upload(self.key, options=self._options)
        if len(self._flights) >= PARTS_IN_FLIGHT:
            await self._flights[-PARTS_IN_FLIGHT].wait()
        await self._memory.reserve(len(body))
        if self._error is not None:
            self._memory.release(len(body))
            self._check()
        assert self._upload is not None
        flight: Flight[Part] = Flight()
        self._flights.append(flight)
        self._nursery.start_soon(self._fly, flight, self._upload, len(self._flights), body)

    async def _fly(self, flight: Flight[Part], upload: Upload, number: int, body: memoryview) -> None:
        try:
            await flight.run(lambda: self._store.upload_part(upload, number, body))
        finally:
            self._memory.release(len(body))

    async def _finish(self) -> str:
        if self._upload is None:
            return await self._store.put(
                self.key, memoryview(bytes(self._tail)), options=self._options, condition=self._condition
            )
        if self._tail:
            part, self._tail = memoryview(self._tail), bytearray()
            self._sent += len(part)
            await self._send(part)
        parts = [await flight.wait() for flight in self._flights]
        self._check()
        assert self._upload is not None
        etag = await self._store.complete_upload(self._upload, parts, condition=self._condition)
        self._upload = None
        self._finished = True
        return etag

    # -- ending badly -------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args)

    def _check_reach(self, size: int) -> None:
        """Refuse, before anything of it is sent, what would need more parts than an upload may have."""
        if size > self._part_sizes.reach:
            limit = format_size(self._part_sizes.reach)
            raise TooBigError(f"{self.key!r}: {limit} is the most with this --part-size")

    @asynccontextmanager
    async def _whole_or_withdrawn(self) -> AsyncIterator[None]:
        """If the body does not end well, cancellation included, nothing of this file may be uploaded any more: what was
        taken from the tail may be in no part."""
        try:
            yield
        except BaseException as error:
            self._error = error if isinstance(error, LazyfsError) else LazyfsError("the write was interrupted")
            await self._abort()
            raise

    def _poison(self, error: LazyfsError) -> NoReturn:
        """Nothing of this file may be uploaded any more."""
        self._error = error
        self._nursery.start_soon(self._abort)
        raise error

    async def _abort(self) -> None:
        """Abort the upload, if there is one; also while being cancelled, but not for ever."""
        upload, self._upload = self._upload, None
        self._tail = bytearray()
        if upload is None:
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_SETTLE_S):
                for flight in self._flights:
                    with contextlib.suppress(LazyfsError):
                        await flight.wait()
            why: object = "no answer"
            with trio.move_on_after(_ABORT_S):
                try:
                    await self._store.abort_upload(upload)
                    return
                except LazyfsError as error:
                    why = error
            log.warning("upload of %r was not aborted: %s", upload.key, why)
