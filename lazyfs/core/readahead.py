"""Read-ahead: from what was read, guess what will be.

Pure: `observe` takes one read and returns what to fetch ahead of need. A file may have several readers at once
(mmap, thread pools, one descriptor read from many places), so the state is a handful of cursors per inode, each
following one stream. A stream that runs backward is one that runs forward in the file's mirror image: what is said
of streams is said in the direction in which they run.
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
    growth         how many times what it has consumed a proven stream is given ahead, if it is the file's only one; so
                   much is fetched in vain if it ends. With 3 the window is full after three round trips to S3, with 1
                   after five. Of several streams each gets as much as it has consumed: they fill the link together, and
                   so columns of a table are read, which end soon
    step           how much is asked for at a time once the window is large: one request. Asking for what was consumed,
                   step by step, has requests arrive in the order of need; half a window at once would share the link
                   between what is needed now and what is needed last
    bridge         a gap, or a step back, of at most this or the read's own size still counts as sequence: the kernel's
                   parallel read-ahead delivers neighbouring requests slightly out of order
    eager_window   what is asked for ahead of a first read that begins the file and is `eager_read` or larger: whoever
                   begins so has nearly always come for all of it, and would otherwise wait for two more round trips
    max_cursors    streams followed per file; the least recently used is forgotten
    """

    first_window: int = 1024**2
    max_window: int = 64 * 1024**2
    growth: int = 3
    step: int = 4 * 1024**2
    bridge: int = 512 * 1024
    eager_window: int = 8 * 1024**2
    eager_read: int = 256 * 1024
    max_cursors: int = 8


@dataclass(slots=True)
class _Cursor:
    """One stream: reads that follow each other. Positions are those of the mirror image if it runs backward."""

    first: Range
    """Its first read, as it lies in the file."""
    is_step_back: bool
    """Whether its first read ended where an earlier one began. Alone that proves nothing: a footer is read so, and
    neighbouring requests that change places look so."""
    position: int
    """Where its furthest read ended."""
    fetched: int
    """Up to where it has been told to fetch ahead."""
    began: int
    """Where its first read ended."""
    read_bytes: int = 0
    """What was read since then."""
    is_stream: bool = False
    """Whether a second read has followed the first."""
    is_backward: bool = False

    @property
    def passed(self) -> int:
        """How far it has come, holes included."""
        return self.position - self.began

    @property
    def consumed(self) -> int:
        """How much of that was read. What it is given ahead follows this: it earns nothing by its holes."""
        return min(self.passed, self.read_bytes)

    def follows(self, read: Range, bridge: int, step: int) -> bool:
        """Whether `read` continues this stream: it begins or ends within `bridge` of where the stream is. A second
        look at the place of a single read is no sequence.

        A stream that has come some way may also be read up to a `step` out of order, within what was fetched ahead of
        it: so the kernel reads around page faults of a mapping (its window is 4 MiB, the last part comes first).
        """
        if self.consumed >= PROVEN:
            reach = min(max(self.fetched, self.position), self.position + step)
            return self.position - step <= read.stop and read.start <= reach + bridge
        near = read.start <= self.position + bridge and read.stop >= self.position - bridge
        return near and (self.is_stream or read.stop > self.position)

    def precedes(self, read: Range, bridge: int) -> bool:
        """Whether `read` lies just before what is still a single read."""
        return not self.is_stream and read.start < self.first.start <= read.stop + bridge

    def turn(self, size: int) -> None:
        """Run backward from the first read on."""
        self.is_backward = True
        self.position = self.fetched = self.began = size - self.first.start


@dataclass(slots=True)
class ReadAhead:
    """The cursors of one file, most recently used last."""

    policy: ReadAheadPolicy
    _cursors: list[_Cursor] = field(default_factory=list)

    def observe(self, read: Range, size: int) -> Range:
        """Learn that `read` was asked of a file of `size` bytes; the range to fetch ahead, empty for none.

        The range lies where the stream of this read is going: at or after `read.stop`, or at or before `read.start` if
        three reads have run backward. It never overlaps one that this stream was told before. A reader that is not
        sequential is told nothing, unless it begins with much of the file's beginning.
        """
        bridge = max(self.policy.bridge, read.size)  # large requests change places as small ones do
        cursor = self._find(read, size, bridge)
        if cursor is None:
            return self._begin(read, size, bridge)
        if not cursor.is_backward:
            return self._advance(cursor, read, size, grid=0)
        ahead = self._advance(cursor, _mirrored(read, size), size, grid=size)
        return _mirrored(ahead, size) if ahead.size else EMPTY

    def _advance(self, cursor: _Cursor, read: Range, size: int, *, grid: int) -> Range:
        """Move `cursor` on; what it is given ahead of it, in its own direction. Steps lie on multiples from `grid`."""
        cursor.is_stream = True
        cursor.position = max(cursor.position, read.stop)
        cursor.read_bytes += read.size
        if cursor.passed - cursor.consumed > max(cursor.consumed, read.size):
            return EMPTY  # mostly holes: more only if they are filled, be it by a request that the kernel sent late
        start = max(cursor.fetched, cursor.position)
        growth = self.policy.growth if cursor.consumed >= PROVEN and self._is_only_stream(cursor) else 1
        window = min(self.policy.first_window + growth * cursor.consumed, self.policy.max_window)
        stop = min(cursor.position + window, size)
        if stop < size:
            step = min(self.policy.step, window // 2)
            if step == self.policy.step:
                stop -= (stop - grid) % step  # requests begin and end where those of other readers do
            if stop - start < max(step, 1):
                return EMPTY
        elif start >= stop:
            return EMPTY
        cursor.fetched = stop
        return Range(start, stop)

    def _is_only_stream(self, cursor: _Cursor) -> bool:
        return not any(other.is_stream for other in self._cursors if other is not cursor)

    def _find(self, read: Range, size: int, bridge: int) -> _Cursor | None:
        mirrored = _mirrored(read, size)
        for index in reversed(range(len(self._cursors))):
            cursor = self._cursors[index]
            found = cursor.follows(mirrored if cursor.is_backward else read, bridge, self.policy.step)
            if not found and cursor.is_step_back and cursor.precedes(read, bridge):
                cursor.turn(size)
                found = True
            if found:
                self._cursors.append(self._cursors.pop(index))
                return cursor
        return None

    def _begin(self, read: Range, size: int, bridge: int) -> Range:
        is_first = not self._cursors
        is_step_back = any(cursor.precedes(read, bridge) for cursor in self._cursors)
        self._cursors.append(_Cursor(read, is_step_back, position=read.stop, fetched=read.stop, began=read.stop))
        if len(self._cursors) > self.policy.max_cursors:
            del self._cursors[0]
        stop = min(read.stop + min(self.policy.eager_window, self.policy.max_window), size)
        if not is_first or read.start > 0 or read.size < self.policy.eager_read or read.stop >= stop:
            return EMPTY
        self._cursors[-1].fetched = stop
        return Range(read.stop, stop)


def _mirrored(span: Range, size: int) -> Range:
    """`span` in the mirror image of the file; twice gives it back."""
    return Range(size - span.stop, size - span.start)
