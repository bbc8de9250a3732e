"""How neighbouring blocks are stored as one value: a header that names object, version and first block and carries the
size and CRC32C of each, then their bytes.

Promises that what `StoredRun.read` calls whole was stored as exactly those blocks. Knows nothing of where values lie.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from awscrt.checksums import crc32c

from lazyfs.core.types import Buffer

RUN_BLOCKS = 4
"""Blocks that one value holds at the most. With blocks of 256 KiB that is 1 MiB: of what was measured the cheapest to
write, and a file and a row for each MiB in place of four; docs/decisions/003-the-ssd-tier.md."""
_MAGIC = b"lfs2"
_HEADER = struct.Struct("<4sIII")  # magic, identity length, number of blocks, CRC32C of what follows
_TABLE = struct.Struct("<" + "II" * RUN_BLOCKS)  # size and CRC32C of each block
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
HEADER_BYTES = _HEADER.size + _TABLE.size
"""Of the header without the identity that follows it."""


class Loaded(NamedTuple):
    """Blocks as views into one buffer, one after the other: nobody has to join what is read together."""

    blocks: Mapping[int, Buffer]
    whole: memoryview


NOTHING = Loaded(MappingProxyType({}), memoryview(b""))


def encode_run(identity: bytes, blocks: Sequence[Buffer]) -> bytes:
    """The header that goes before `blocks`, of which there are 1 to RUN_BLOCKS."""
    entries = [number for data in blocks for number in (len(data), crc32c(data))]
    body = _TABLE.pack(*entries, *[0] * (2 * (RUN_BLOCKS - len(blocks)))) + identity
    return _HEADER.pack(_MAGIC, len(identity), len(blocks), _checked(len(blocks), body)) + body


class StoredRun:
    """A stored value of which the header was read and found right."""

    __slots__ = ("_checksums", "_starts", "_value")

    def __init__(self, value: bytes | BinaryIO, starts: Sequence[int], checksums: Sequence[int]) -> None:
        self._value = value
        self._starts = starts
        self._checksums = checksums

    def __len__(self) -> int:
        """How many blocks it holds."""
        return len(self._checksums)

    def sizes(self, blocks: range) -> list[int]:
        """Bytes of each of its `blocks`, counted from 0."""
        return [self._starts[block + 1] - self._starts[block] for block in blocks]

    def read(self, blocks: range, data: memoryview) -> bool:
        """Read `blocks`, counted from 0, into `data`, which is as long as they are; whether they are whole. OSError."""
        start, stop = self._starts[blocks.start], self._starts[blocks.stop]
        if isinstance(self._value, bytes):
            data[:] = self._value[start:stop]
        elif os.preadv(self._value.fileno(), [data], start) != len(data):
            return False
        return all(
            crc32c(data[self._starts[block] - start : self._starts[block + 1] - start]) == self._checksums[block]
            for block in blocks
        )


def open_run(identity: bytes, value: bytes | BinaryIO) -> StoredRun | None:
    """The blocks in a stored value (its bytes, or the unbuffered file of it), or None if it is not what was stored
    under `identity`. OSError."""
    size = HEADER_BYTES + len(identity)
    if isinstance(value, bytes):
        header, length = value[:size], len(value)
    else:
        header, length = os.pread(value.fileno(), size, 0), os.fstat(value.fileno()).st_size
    if len(header) != size:
        return None
    magic, identity_size, count, checksum = _HEADER.unpack_from(header)
    if (magic, identity_size) != (_MAGIC, len(identity)) or not 1 <= count <= RUN_BLOCKS:
        return None
    if header[HEADER_BYTES:] != identity or _checked(count, header[_HEADER.size :]) != checksum:
        return None
    table = _TABLE.unpack_from(header, _HEADER.size)
    starts = [size]
    for block_size in table[: 2 * count : 2]:
        starts.append(starts[-1] + block_size)
    return StoredRun(value, starts, table[1 : 2 * count : 2]) if starts[-1] == length else None


def write_run(path: str, pieces: Sequence[Buffer]) -> None:
    """Make the file `path` of `pieces`, for its owner alone, and the directory that it lies in. OSError; then half of
    it may be there."""
    try:
        file = private(path, _NEW)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o700)
        file = private(path, _NEW)
    try:
        if os.writev(file, pieces) != sum(map(len, pieces)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(file)


def private(path: str, flags: int) -> int:
    """Open `path`; a file that is made is its owner's alone."""
    return os.open(path, flags, 0o600)


def _checked(count: int, body: bytes) -> int:
    return int(crc32c(body, count))  # the CRC goes on from the count, so that it covers that too
