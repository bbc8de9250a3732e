"""Read-ahead: from what was read, guess what will be.

Pure: `observe` takes one read and returns what to fetch ahead of need. A file may have several readers at once
(mmap, thread pools, one descriptor read from many places), so the state is a handful of cursors per inode, each
following one stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lazyfs.core.types import Range

EMPTY = Range(0, 0)


@dataclass(frozen=True, slots=True)
class ReadAheadPolicy:
    """The knobs, in bytes.

    first_window   what the second sequential read asks for ahead
    max_window     the most that one cursor may be ahead of its reader
    bridge         a gap, or a step back, of at most this still counts as sequence: the kernel's parallel
                   read-ahead delivers neighbouring requests slightly out of order
    max_cursors    streams followed per file; the least recently used is forgotten
    """

    first_window: int = 2 * 1024**2
    max_window: int = 64 * 1024**2
    bridge: int = 512 * 1024
    max_cursors: int = 8


@dataclass(slots=True)
class _Cursor:
    position: int
    """Where the furthest read of this stream ended."""
    window: int
    fetched: int
    """Up to where this stream has asked for data ahead."""
    hits: int = 0


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
            self._remember(_Cursor(read.stop, 0, read.stop))
            return EMPTY
        cursor.position = max(cursor.position, read.stop)
        cursor.hits += 1
        wanted = min(cursor.position + max(cursor.window, self.policy.first_window), size)
        start = max(cursor.fetched, cursor.position)
        # Ask again only when half of the window is used up, so that requests stay large.
        if wanted - start < max(cursor.window, self.policy.first_window) // 2 and wanted < size:
            return EMPTY
        if start >= wanted:
            return EMPTY
        cursor.window = min(max(cursor.window, self.policy.first_window) * 2, self.policy.max_window)
        cursor.fetched = wanted
        return Range(start, wanted)

    def _find(self, read: Range) -> _Cursor | None:
        for index in range(len(self._cursors) - 1, -1, -1):
            cursor = self._cursors[index]
            if cursor.position - self.policy.bridge <= read.start <= cursor.position + self.policy.bridge:
                if read.start < cursor.position and read.stop <= cursor.position and cursor.hits == 0:
                    continue  # a second look at the same place is not a sequence
                self._cursors.append(self._cursors.pop(index))
                return cursor
        return None

    def _remember(self, cursor: _Cursor) -> None:
        self._cursors.append(cursor)
        if len(self._cursors) > self.policy.max_cursors:
            del self._cursors[0]
