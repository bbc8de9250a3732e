"""What lies in memory only of a file that is written: up to a part of it, at its end.

Knows nothing of parts: whoever takes `view` lets it go up, and `clear`s what it was. A little is an array that grows;
more lies in warm memory, which is not moved and not made anew for each part.
"""

from __future__ import annotations

from lazyfs.cache.warm import WarmMemory
from lazyfs.core.types import Buffer

SMALL_BYTES = 256 * 1024
"""What is no longer is an array. Most files are, and warm memory is lent in whole parts."""


class Tail:
    """Bytes that may be changed in any way."""

    def __init__(self, content: Buffer, memory: WarmMemory) -> None:
        self._memory = memory
        self._array = bytearray(content)
        self._lent: memoryview | None = None
        self._size = len(self._array)

    def __len__(self) -> int:
        return self._size

    def put(self, start: int, data: Buffer) -> None:
        """Replace bytes that are there."""
        stop = start + len(data)
        assert stop <= self._size
        (self._array if self._lent is None else self._lent)[start:stop] = data

    def append(self, data: Buffer, *, room: int) -> None:
        """Put `data` behind the rest; it will not become longer than `room`."""
        size = self._size + len(data)
        if self._lent is None and size > SMALL_BYTES:
            self._lent = self._memory.lend(max(room, size))
            self._lent[: self._size] = self._array
            self._array = bytearray()
        if self._lent is None:
            try:
                self._array += data
            except BufferError:  # somebody still holds a view of it: the traceback of an error does
                self._array = self._array + data
        else:
            self._lent[self._size : size] = data
        self._size = size

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes."""
        self._size = min(size, self._size)
        if self._lent is None:
            self._array = self._array[: self._size]  # not in place: somebody may hold a view of it

    def read(self, start: int, stop: int) -> bytes:
        """A copy of the bytes from `start` to `stop`, as far as they are there."""
        return bytes(self.view()[max(0, start) : max(0, stop)])

    def view(self) -> memoryview:
        """All of it, as it is until something is put or appended; it stays what it was when this is cleared."""
        return memoryview(self._array) if self._lent is None else self._lent[: self._size]

    def clear(self) -> None:
        """Hold nothing."""
        self._array, self._lent, self._size = bytearray(), None, 0
