"""Writing one file: parts go up while the program writes; the object appears at commit, whole, or not at all.

Bytes that are still in memory may be rewritten, read back, truncated and extended at will, so a file of up to one part
takes any pattern of writes. Full parts are sent and, where there is a spool, kept there too: touching them again only
means that the upload begins anew at commit, out of the spool. Without a spool it is refused and poisons the file, so
that nothing wrong is ever uploaded. The spool gets a part while the program writes the next one.

A writer is used by one call at a time (`Filesystem` holds a lock for each), but for `read`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.spool import Spool, SpoolFile
from lazyfs.core.content import content_type
from lazyfs.core.errors import (
    LazyfsError,
    NoRoomError,
    OutOfOrderError,
    PreconditionFailedError,
    SpoolError,
)
from lazyfs.core.parts import PartSizes
from lazyfs.core.types import Buffer, Condition, Range
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.growing import GrowingUpload
from lazyfs.vfs.spooled import Spooled
from lazyfs.vfs.tail import Tail
from lazyfs.vfs.uploads import Uploads

log = logging.getLogger(__name__)


class Writer:
    """The unfinished new content of `key`.

    `content` is what the file held before (empty for a new or truncated one); `condition` is what must still be true of
    the key at commit. `spool` None: there is none. Without `streaming` nothing goes up before the commit.
    """

    def __init__(
        self,
        *,
        store: Store | Uploads,
        memory: MemoryTier,
        nursery: trio.Nursery,
        key: str,
        content: Buffer,
        condition: Condition,
        options: PutOptions,
        part_sizes: PartSizes,
        spool: Spool | None,
        streaming: bool = True,
    ) -> None:
        self.key = key
        self.etag: str | None = None
        """The version that the last commit made."""
        self.metadata: Callable[[], Mapping[str, str]] = dict
        """What the object is to say of the file besides its bytes; asked when an upload begins."""
        self.sent: Mapping[str, str] = {}
        """What `metadata` said then."""
        self._store = store
        self._nursery = nursery
        self._memory = memory
        self._condition = condition
        self._options = options
        self._part_sizes = part_sizes
        self._tail = Tail(content, memory.warm)
        """What lies in memory only: the bytes from `_settled` on."""
        self._settled = 0
        """Up to where the bytes are in the spool file, if there is one, and in the upload, if one is on its way."""
        self._cuts = 0
        """How often what was settled became less: a read on its way may find less than it expected."""
        self._spooled = Spooled(spool, memory=memory, nursery=nursery)
        self._upload: GrowingUpload | None = None
        self._streaming = streaming
        """Whether full parts are sent at once; else all goes up at commit."""
        self._dirty = True
        self._error: LazyfsError | None = None
        self._length_hint = 0
        self.is_handed_over = False
        """Whether write-back is taking over what was written: it cannot be read here any more."""

    @property
    def size(self) -> int:
        """How long the file is for whoever asks now."""
        return max(self._settled + len(self._tail), self._length_hint)

    @property
    def can_spool(self) -> bool:
        """Whether more than one part can be changed."""
        return self._spooled.can_be

    @property
    def is_readable(self) -> bool:
        """Whether all of it can be read back."""
        return self._settled == 0 or self._spooled.is_there

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

    @property
    def condition(self) -> Condition:
        """What must still be true of the key at commit."""
        return self._condition

    def expect(self, condition: Condition) -> None:
        """The key is so now, by our own doing."""
        if self._condition.is_set:
            self._condition = condition

    async def load(self, data: Buffer) -> None:
        """Append what the object holds already, of which there is more than a part. NoRoomError, SpoolError."""
        self._streaming = False
        await self._keep(data)
        await self._if_it_can(self._spooled.kept())
        self._settled += len(data)

    async def write(self, offset: int, data: Buffer) -> int:
        """Put `data` at `offset`; returns its length. OutOfOrderError, TooBigError, NoRoomError, SpoolError, StoreError
        (of earlier parts)."""
        self._check()
        self._part_sizes.check(offset + len(data), self.key)
        self._change_from(offset)
        async with self._whole_or_withdrawn():
            await self._extend(offset)
            settled = max(0, min(len(data), self._settled - offset))
            if settled:
                await self._spooled.change(offset, memoryview(data)[:settled])
            rest, start = memoryview(data)[settled:], offset + settled - self._settled
            known = min(len(rest), len(self._tail) - start)
            self._tail.put(start, rest[:known])
            await self._append(rest[known:])
        return len(data)

    async def truncate(self, size: int) -> None:
        """Make the file `size` bytes long. Growing a file that goes up in order is free until commit. Errors as of
        `write`."""
        self._check()
        self._part_sizes.check(size, self.key)
        if size == self.size:
            return
        self._change_from(size)
        self._length_hint = size
        if size >= self._settled:
            self._tail.cut(size - self._settled)
            if self._spooled.is_there and not self._streaming:  # room is taken now: close() must need none
                async with self._whole_or_withdrawn():
                    await self._settle_tail()
                    await self._spooled.truncate(size)
                    self._settled = size
            return
        # First what readers go by, then the file: one that comes now must not ask for bytes that are going.
        self._tail.clear()
        self._settled, self._cuts = size, self._cuts + 1
        async with self._whole_or_withdrawn():
            await self._spooled.truncate(size)

    async def read(self, span: Range) -> Buffer:
        """Read back what was written. OutOfOrderError for what has been sent, where there is no spool; NoRoomError or
        SpoolError where that failed."""
        while True:
            self._check()
            span = span.clamp(self.size)
            settled, cuts = self._settled, self._cuts
            tail = self._tail.read(span.start - settled, span.stop - settled)
            if span.start < settled and span.size:
                if not self._spooled.is_there:
                    raise self._not_kept("reading back what is being uploaded")
                try:
                    tail = await self._spooled.read(span.start, min(span.stop, settled)) + tail
                except SpoolError:
                    if self._cuts == cuts:
                        raise
                    continue  # it was cut meanwhile, and may have grown again
            return tail + bytes(span.size - len(tail))

    def take_spool(self) -> SpoolFile | None:
        """The whole file, as the bucket has it now, if it lies in the spool; the caller closes it."""
        return None if self._tail else self._spooled.take(self._settled)

    @property
    def small_content(self) -> bytes | None:
        """The whole file, if it was never more than memory held."""
        return bytes(self._tail.view()) if self._settled == 0 else None

    def close(self) -> None:
        """Give back the room in the spool."""
        self._spooled.close()

    async def commit(self, rescue: Callable[[], Awaitable[None]] | None = None) -> None:
        """Make the bucket hold what was written; returns when it does. Costs nothing when it already does.

        On an error everything that was sent is withdrawn, and the file takes no more writes. If it is that somebody
        else was faster, `rescue` is called before, while what was written can still be read.
        """
        self._check()
        if not self._dirty:
            return
        async with self._whole_or_withdrawn():
            await self._extend(self._length_hint)
            try:
                self.etag = await self._finish()
            except PreconditionFailedError:
                if rescue is not None:
                    await rescue()
                raise
        self._condition = Condition(etag=self.etag)
        self._dirty = False

    async def hand_over(self) -> SpoolFile:
        """All that was written, for write-back. The writer is of no use afterwards. NoRoomError, SpoolError."""
        self._check()
        async with self._whole_or_withdrawn():
            await self._extend(self._length_hint)
            await self._settle_tail()
        self.is_handed_over = True
        file = self._spooled.take(self._settled)
        assert file is not None
        return file

    def give_up(self, error: BaseException) -> None:
        """Nothing of this file may be uploaded any more, be it that what was handed over was not kept."""
        self._error = error if isinstance(error, LazyfsError) else LazyfsError("the write was interrupted")

    def follow(self, etag: str) -> None:
        """The bucket has the same bytes, and nothing else of ours has changed, as another version now."""
        if etag != self.etag:
            self.etag, self._condition = etag, Condition(etag=etag)

    def unlink(self) -> None:
        """The name is gone: nothing goes up, and the file lives on here until it is closed, if all of it is here."""
        self._streaming = False
        self._withdraw_soon()
        if self.is_dirty and not self.is_readable:
            self._error = self._not_kept("unlinked while parts of it were only in the upload")

    async def discard(self) -> None:
        """Forget everything that was not committed: the mount ends."""
        self._error = OutOfOrderError(f"{self.key!r} was not finished when the mount ended")
        await self._abort()

    def _created_with(self) -> PutOptions:
        self.sent = self.metadata()
        metadata = {**self._options.metadata, **self.sent}
        return replace(self._options, content_type=content_type(self.key), metadata=metadata)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _change_from(self, offset: int) -> None:
        """What is written now begins at `offset`: if that is in what was settled, the upload begins anew at commit."""
        is_settled = offset < self._settled or (self._settled > 0 and not self._dirty)
        if is_settled and not self._spooled.is_there:
            self.give_up(error := self._not_kept(f"changing at {offset} what was already uploaded"))
            self._nursery.start_soon(self._abort)
            raise error
        self._dirty = True
        if is_settled and self._streaming:
            self._streaming = False
            self._withdraw_soon()

    async def _extend(self, size: int) -> None:
        """Fill with zeros up to `size`, a part at a time."""
        while (missing := size - self._settled - len(self._tail)) > 0:
            await self._append(bytes(min(missing, self._part_size)))

    async def _append(self, data: Buffer) -> None:
        """Put `data` at the end. A full part is settled when something follows it: a file of exactly one part stays a
        single PUT."""
        rest = memoryview(data)
        while rest:
            size = self._part_size
            if len(self._tail) >= size:
                await self._settle_full_part()
                continue
            room = size - len(self._tail)
            self._tail.append(rest[:room], room=size)
            rest = rest[room:]

    @property
    def _part_size(self) -> int:
        return self._part_sizes.size(1 + (0 if self._upload is None else self._upload.parts))

    async def _settle_full_part(self) -> None:
        part = self._tail.view()
        if self._spooled.can_be:
            await self._keep(part)
        elif not self._streaming:
            raise NoRoomError(f"{self.key!r}: an unlinked file over --part-size needs a spool")
        self._settled += len(part)
        self._tail.clear()
        if self._streaming:
            await self._send(part)

    async def _keep(self, part: Buffer) -> None:
        """Let the spool have what lies behind what is settled."""
        await self._if_it_can(self._spooled.keep(part, self._settled))

    async def _if_it_can(self, spooling: Awaitable[None]) -> None:
        """A stream goes on without the spool, if it must."""
        try:
            await spooling
        except (NoRoomError, SpoolError) as error:
            if not self._streaming:
                raise
            log.info("%r goes up without the spool, and must be written in order: %s", self.key, error)
            self._spooled.drop(error)
        self._check()

    def _not_kept(self, what: str) -> LazyfsError:
        """`what` needs bytes that are in the upload only."""
        message = f"{self.key!r}: {what}"
        why = self._spooled.error
        return OutOfOrderError(message) if why is None else type(why)(f"{message}: {why}")

    async def _settle_tail(self) -> None:
        await self._keep(self._tail.view())
        await self._if_it_can(self._spooled.kept())
        self._settled += len(self._tail)
        self._tail.clear()

    async def _send(self, body: memoryview) -> None:
        """Let `body` go up as the next part. The file may be discarded while this waits: then nothing goes."""
        if self._upload is None:
            self._upload = GrowingUpload(
                store=self._store,
                memory=self._memory,
                nursery=self._nursery,
                key=self.key,
                options=self._created_with,
            )
        await self._upload.send(body)
        self._check()

    async def _finish(self) -> str:
        if self.size <= self._part_sizes.size(1):
            await self._take_back()
        elif not self._streaming:
            await self._send_all_again()
        elif self._tail:
            part = self._tail.view()
            if self._spooled.is_there:
                await self._keep(part)
            self._tail.clear()
            self._settled += len(part)
            await self._send(part)
        if self._upload is None:
            body = memoryview(bytes(self._tail.view()))  # what is still being sent when this is given up stays as it is
            return await self._store.put(self.key, body, options=self._created_with(), condition=self._condition)
        parts = await self._upload.arrived()
        await self._if_it_can(self._spooled.kept())
        etag = await self._upload.complete(parts, self._condition)
        self._upload, self._streaming = None, False
        return etag

    async def _take_back(self) -> None:
        """Have all of a file in memory that was cut to no more than a part: it is as if it had never been more."""
        if self._settled:
            self._tail = Tail(await self.read(Range(0, self.size)), self._memory.warm)
            self._settled, self._streaming, self._cuts = 0, True, self._cuts + 1
            self._spooled.begin_anew()

    async def _send_all_again(self) -> None:
        """Send the whole file out of the spool and what lies behind it; then have all of it there, if there is room."""
        start = 0
        while start < self.size:
            stop = min(start + self._part_size, self.size)
            await self._send(memoryview(await self.read(Range(start, stop))))
            start = stop
        with contextlib.suppress(NoRoomError, SpoolError):
            await self._settle_tail()

    # -- ending badly -------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args)

    @asynccontextmanager
    async def _whole_or_withdrawn(self) -> AsyncIterator[None]:
        """If the body does not end well, cancellation included, nothing of this file may be uploaded any more: what was
        taken from the tail may be in no part."""
        try:
            yield
        except BaseException as error:
            self.give_up(error)
            await self._abort()
            raise

    async def _abort(self) -> None:
        """Nothing of this file stays behind, here or there; also while being cancelled, but not for ever."""
        upload, self._upload = self._upload, None
        self._tail.clear()
        self.close()
        if upload is not None:
            await upload.withdraw()

    def _withdraw_soon(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            self._nursery.start_soon(upload.withdraw)
