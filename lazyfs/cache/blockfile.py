"""How neighbouring blocks are stored as one value: their bytes, and beside it a label with size and CRC32C of each.

Promises that what `StoredRun.is_whole` says yes to was stored as exactly those blocks of that version: the identity
(object, version, first block) goes into every checksum. Knows nothing of where labels and values lie.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from awscrt.checksums import crc32c

from lazyfs.core.types import Buffer

RUN_BLOCKS = 4
"""Blocks that one value holds at the most. With blocks of 256 KiB that is 1 MiB: of what was measured the cheapest to
write, and a file and a row for each MiB in place of four; docs/decisions/003-the-ssd-tier.md."""
_LABEL = struct.Struct("<4sII" + "II" * RUN_BLOCKS)  # magic, CRC32C of the rest, count; size and CRC32C of each block
_CHECKED_FROM = 8
_MAGIC = b"lfs3"


class Loaded(NamedTuple):
    """Blocks as views into one buffer, one after the other: nobody has to join what is read together."""

    blocks: Mapping[int, Buffer]
    whole: memoryview


NOTHING = Loaded(MappingProxyType({}), memoryview(b""))


class StoredRun:
    """What a label says of its value: blocks one after the other, counted from 0."""

    __slots__ = ("_checksums", "_identity", "_starts")

    def __init__(self, identity: bytes, starts: Sequence[int], checksums: Sequence[int]) -> None:
        self._identity = identity
        self._starts = starts
        self._checksums = checksums

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._checksums)

    def start(self, block: int) -> int:
        """Where in the value the block begins; of `len(self)`: where the last one ends."""
        return self._starts[block]

    def is_whole(self, blocks: range, data: memoryview) -> bool:
        """Whether `data` is exactly the bytes of `blocks`."""
        first = self._starts[blocks.start]
        return all(
            _checksum(self._identity, data[self._starts[block] - first : self._starts[block + 1] - first])
            == self._checksums[block]
            for block in blocks
        )


def label(identity: bytes, blocks: Sequence[Buffer]) -> bytes:
    """The label of a value that is `blocks`, 1 to RUN_BLOCKS of them."""
    entries = [number for data in blocks for number in (len(data), _checksum(identity, data))]
    entries += [0] * (2 * (RUN_BLOCKS - len(blocks)))
    rest = _LABEL.pack(_MAGIC, 0, len(blocks), *entries)[_CHECKED_FROM:]
    return _LABEL.pack(_MAGIC, _checksum(identity, rest), len(blocks), *entries)


def read_label(identity: bytes, found: object) -> StoredRun | None:
    """What the label says, or None if it is not one that was made for `identity`."""
    if not isinstance(found, bytes) or len(found) != _LABEL.size:
        return None
    magic, checksum, count, *entries = _LABEL.unpack(found)
    if magic != _MAGIC or checksum != _checksum(identity, found[_CHECKED_FROM:]):
        return None
    starts = [0]
    for size in entries[: 2 * count : 2]:
        starts.append(starts[-1] + size)
    return StoredRun(identity, starts, entries[1 : 2 * count : 2])


def _checksum(identity: bytes, data: Buffer) -> int:
    return int(crc32c(data, crc32c(identity)))
