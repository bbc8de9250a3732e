"""Files that go past the kernel's page cache (O_DIRECT), where the file system has that.

What lazyfs serves is in the page cache already, as pages of the mount's own files; those of a block file would be a
second copy. Making them was two fifths of the daemon's CPU in a cold read (docs/decisions/003-the-ssd-tier.md).

Hard point: direct I/O wants memory, offsets and lengths in whole units of the device. So files are written out of one
aligned buffer and padded to a unit, and what is read into comes from `aligned`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from lazyfs.core.types import Buffer

UNIT = 4096
"""Bytes; no device has larger logical blocks."""


def aligned(size: int) -> memoryview:
    """Zeroes at an address that direct I/O takes: `size` bytes, and what is missing to whole units."""
    memory = bytearray(padded(size) + UNIT)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % UNIT
    return memoryview(memory)[start : start + padded(size)]


def is_aligned(memory: memoryview) -> bool:
    """Whether direct I/O takes it, as far as its address goes. What cannot be written to is never looked at: no."""
    return not memory.readonly and ctypes.addressof(ctypes.c_ubyte.from_buffer(memory)) % UNIT == 0


def sync_directory(path: Path) -> None:
    """Make durable which names the directory has. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DirectFiles:
    """Writes and opens files below `directory`. `write` is one thread's at a time, `open` anybody's."""

    def __init__(self, directory: str) -> None:
        self._buffer = memoryview(b"")
        self._flag = os.O_DIRECT
        if not self._is_supported(os.path.join(directory, f".direct-{secrets.token_hex(8)}")):
            self._flag = 0

    def write(self, path: str, pieces: Sequence[Buffer]) -> int:
        """Make the file `path` of `pieces`, for its owner alone, and the directory that it lies in; its size, which
        may be padded. OSError; then half of it may be there."""
        try:
            file = self._create(path)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(path), 0o700)
            file = self._create(path)
        try:
            content = self._joined(pieces)
            if os.write(file, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return len(content)
        finally:
            os.close(file)

    def open(self, path: str) -> BinaryIO:
        """The file, to be given to `read_at`. OSError; a pipe or a link that somebody put in its place is not waited
        for nor followed."""
        flag = self._flag | os.O_NONBLOCK | os.O_NOFOLLOW
        return open(path, "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | flag))

    def _is_supported(self, path: str) -> bool:
        """Whether this file system takes direct I/O: some refuse to open, some only to write or to read."""
        try:
            self.write(path, [b"x"])
            with self.open(path) as file:
                return read_at(file, 0, aligned(1), 0, 1)
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)

    def _create(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | self._flag, 0o600)

    def _joined(self, pieces: Sequence[Buffer]) -> memoryview:
        size = sum(map(len, pieces))
        if len(self._buffer) < size:
            self._buffer = aligned(size)
        start = 0
        for piece in pieces:
            self._buffer[start : start + len(piece)] = piece
            start += len(piece)
        return self._buffer[: padded(size)]


def read_at(file: BinaryIO, start: int, memory: memoryview, at: int, size: int) -> bool:
    """Read the `size` bytes that begin at `start` into `memory`, which is `aligned`, from `at` on; whether there were
    so many. What follows them in `memory`, up to a whole unit, is overwritten too. OSError.
    """
    if start % UNIT == 0 and at % UNIT == 0:
        return os.preadv(file.fileno(), [memory[at : at + padded(size)]], start) >= size
    lead = start % UNIT
    room = aligned(lead + size)
    if os.preadv(file.fileno(), [room], start - lead) < lead + size:
        return False
    memory[at : at + size] = room[lead : lead + size]
    return True


def padded(size: int) -> int:
    """`size` and what is missing to whole units."""
    return -(-size // UNIT) * UNIT
