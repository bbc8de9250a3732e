"""A read of an open file: observe, take what is resident, fetch the rest, ask ahead."""

from __future__ import annotations

from dataclasses import dataclass

from lazyfs.cache.spool import SpoolFile
from lazyfs.core.ranges import blocks_of
from lazyfs.core.readahead import ReadAhead
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId, Range
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.tally import Tally


@dataclass(slots=True)
class OpenObject:
    """One version of an object while somebody has it open, shared by all its handles."""

    oid: ObjectId
    size: int
    readahead: ReadAhead


class Reader:
    """Reads byte ranges of open objects.

    Objects up to `whole_object_bytes` come in one GET; of larger ones exactly the blocks that a read touches, and for a
    sequential reader more ahead of it.
    """

    def __init__(self, *, fetcher: Fetcher, whole_object_bytes: int, stats: Stats) -> None:
        self._fetcher = fetcher
        self._whole_object_bytes = whole_object_bytes
        self._stats = stats

    async def read(self, file: OpenObject, span: Range, tally: Tally | None = None) -> Buffer:
        """The bytes of `span` that the object has; short only at its end. StaleError, StoreError.

        What came from where, and what was waited for, is noted in `tally` unless it was in memory. Where the one block
        that `span` touches is in memory this does not yield.
        """
        span = span.clamp(file.size)
        if not span.size:
            return b""
        block_size = self._fetcher.block_size
        blocks = blocks_of(span, block_size)
        self._ask_ahead(file, span, blocks)
        run = self._fetcher.run(file.oid, blocks)
        if run is not None:
            self._stats.add("read.bytes.memory", span.size)
        else:
            wanted = blocks_of(Range(0, file.size), block_size) if file.size <= self._whole_object_bytes else blocks
            found = await self._fetcher.fetch(file.oid, file.size, wanted, span, tally)
            run = self._fetcher.run(file.oid, blocks)  # what arrived by one GET needs no joining
            if run is None:
                return _cut(found, span, blocks, block_size)
        start = blocks.start * block_size
        return run[span.start - start : span.stop - start]

    def keep(self, oid: ObjectId, content: Buffer) -> None:
        """Keep what was just written, as if it had been read."""
        self._fetcher.keep(oid, content)

    def copied(self, source: ObjectId, copy: ObjectId) -> None:
        """The server has made `copy` of `source`: what is here of one is also the other's."""
        self._fetcher.copied(source, copy)

    def keep_spooled(self, oid: ObjectId, spooled: SpoolFile, *, formerly: ObjectId | None = None) -> None:
        """Serve what was just written out of the spool, until the SSD tier has it; closes the file then. Readers on
        their way may still know it as `formerly`."""
        self._fetcher.keep_spooled(oid, spooled, formerly=formerly)

    def _ask_ahead(self, file: OpenObject, span: Range, blocks: range) -> None:
        """Send off what is likely to be read next, nearest first. Not the `blocks` of the read itself, in one of which
        the range ahead may begin or end: a reader that waits for it must not wait for what follows."""
        ahead = blocks_of(file.readahead.observe(span, file.size), self._fetcher.block_size)
        if not ahead:
            return
        if ahead.stop <= blocks.stop:  # it runs backward
            self._fetcher.prefetch(file.oid, file.size, range(min(ahead.stop, blocks.start) - 1, ahead.start - 1, -1))
        else:
            self._fetcher.prefetch(file.oid, file.size, ahead[ahead.start == blocks[-1] :])


def _cut(found: dict[int, Buffer], span: Range, blocks: range, block_size: int) -> Buffer:
    """`span` out of the blocks that hold it."""
    pieces = []
    for block in blocks:
        start = block * block_size
        pieces.append(memoryview(found[block])[max(0, span.start - start) : span.stop - start])
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
