"""Read-ahead: from what was read, guess what will be.

Pure: `observe` takes one read and returns what to fetch ahead of need. A file may have several readers at once
(mmap, thread pools, one descriptor read from many places), so the state is a handful of cursors per inode, each
following one stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lazyfs.core.types import Range

EMPTY = Range(0, 0)
PROVEN = 2 * 1024**2
"""Bytes after which a stream is no chance. Until then it is given ahead no more than it has consumed."""


@dataclass(frozen=True, slots=True)
class ReadAheadPolicy:
    """The knobs, in bytes.

    first_window   what the second sequential read asks for ahead; small, as two neighbouring reads may be chance
    max_window     the most that one cursor may be ahead of its reader
    growth         how many times what it has consumed a proven stream is given ahead; so much is fetched in vain if it
                   ends. With 3 the window is full after three round trips to S3, with 1 after five
    step           how much is asked for at a time once the window is large: one request. Asking for what was consumed,
                   step by step, has requests arrive in the order of need; half a window at once would share the link
                   between what is needed now and what is needed last
    bridge         a gap, or a step back, of at most this or the read's own size still counts as sequence: the kernel's
                   parallel read-ahead delivers neighbouring requests slightly out of order
    max_cursors    streams followed per file; the least recently used is forgotten
    """

    first_window: int = 1024**2
    max_window: int = 64 * 1024**2
    growth: int = 3
    step: int = 4 * 1024**2
    bridge: int = 512 * 1024
    max_cursors: int = 8


@dataclass(slots=True)
class _Cursor:
    """One stream: reads that follow each other."""

    position: int
    """Where its furthest read ended."""
    fetched: int
    """Up to where it has been told to fetch ahead."""
    began: int
    """Where its first read ended: what was consumed since says how much it is given ahead."""
    is_stream: bool = False
    """Whether a second read has followed the first."""

    def follows(self, read: Range, bridge: int, step: int) -> bool:
        """Whether `read` continues this stream: it begins or ends within `bridge` of where the stream is. A second
        look at the place of a single read is no sequence.

        A stream that has come some way may also be read up to a `step` out of order, within what was fetched ahead of
        it: so the kernel reads around page faults of a mapping (its window is 4 MiB, the last part comes first).
        """
        if self.position - self.began >= PROVEN:
            return self.position - step <= read.stop and read.start <= max(self.fetched, self.position) + bridge
        near = read.start <= self.position + bridge and read.stop >= self.position - bridge
        return near and (self.is_stream or read.stop > self.position)


@dataclass(slots=True)
class ReadAhead:
    """The cursors of one file, most recently used last."""

    policy: ReadAheadPolicy
    _cursors: list[_Cursor] = field(default_factory=list)

    def observe(self, read: Range, size: int) -> Range:
        """Learn that `read` was asked of a file of `size` bytes; the range to fetch ahead, empty for none.

        The range starts at or after `read.stop` and never overlaps one that this stream was told before. A reader
        that is not sequential is told nothing.
        """
        cursor = self._find(read)
        if cursor is None:
            self._begin(read)
            return EMPTY
        cursor.is_stream = True
        cursor.position = max(cursor.position, read.stop)
        start = max(cursor.fetched, cursor.position)
        consumed = cursor.position - cursor.began
        growth = self.policy.growth if consumed >= PROVEN else 1
        window = min(self.policy.first_window + growth * consumed, self.policy.max_window)
        stop = min(cursor.position + window, size)
        if stop < size:
            step = min(self.policy.step, window // 2)
            if step == self.policy.step:
                stop -= stop % step  # requests begin and end where those of other readers do
            if stop - start < step:
                return EMPTY
        elif start >= stop:
            return EMPTY
        cursor.fetched = stop
        return Range(start, stop)

    def _find(self, read: Range) -> _Cursor | None:
        bridge = max(self.policy.bridge, read.size)  # large requests change places as small ones do
        for index in reversed(range(len(self._cursors))):
            if self._cursors[index].follows(read, bridge, self.policy.step):
                self._cursors.append(self._cursors.pop(index))
                return self._cursors[-1]
        return None

    def _begin(self, read: Range) -> None:
        self._cursors.append(_Cursor(position=read.stop, fetched=read.stop, began=read.stop))
        if len(self._cursors) > self.policy.max_cursors:
            del self._cursors[0]
