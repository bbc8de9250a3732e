"""How neighbouring blocks travel as one value of the shared tier, and under which names they are looked for. Pure.

A value is a header that names object, version and first block and carries the size and CRC32C of each block, then
their bytes. Promises that what `decode` returns was stored as exactly those blocks, and copies nothing: the blocks are
views of the value. (`blockfile` keeps its label beside the value; here they
travel together, and the identity with them.)
"""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from awscrt.checksums import crc32c

from lazyfs.core.types import Buffer

_MAGIC = b"lsv1"
_HEADER = struct.Struct("<4sIII")  # magic, identity length, number of blocks, CRC32C of the rest of the header
_ENTRY = struct.Struct("<II")  # size and CRC32C of a block


def encode(identity: bytes, blocks: Sequence[Buffer]) -> list[Buffer]:
    """The pieces of the value of `blocks`, stored under `identity`."""
    rest = b"".join(_ENTRY.pack(len(data), crc32c(data)) for data in blocks) + identity
    return [_HEADER.pack(_MAGIC, len(identity), len(blocks), _checked(len(blocks), rest)) + rest, *blocks]


class Held(NamedTuple):
    """What a value holds: blocks by number, as views into `whole`, which is them in their order and nothing else."""

    blocks: Mapping[int, memoryview]
    whole: memoryview


def decode(identity: bytes, first: int, value: Buffer) -> Held | None:
    """The blocks in a value, of which `first` is the first, or None if it is not what was stored under `identity`, or
    not whole."""
    view = memoryview(value).toreadonly()
    if len(view) < _HEADER.size:
        return None
    magic, identity_size, count, checksum = _HEADER.unpack_from(view)
    start = _HEADER.size + count * _ENTRY.size + len(identity)
    if magic != _MAGIC or identity_size != len(identity) or len(view) < start:
        return None
    rest = bytes(view[_HEADER.size : start])
    if _checked(count, rest) != checksum or rest[count * _ENTRY.size :] != identity:
        return None
    whole = view[start:]
    blocks: dict[int, memoryview] = {}
    start = 0
    for number, (size, block_checksum) in enumerate(_ENTRY.iter_unpack(rest[: count * _ENTRY.size]), first):
        blocks[number] = whole[start : start + size]
        if len(blocks[number]) != size or crc32c(blocks[number]) != block_checksum:
            return None
        start += size
    return Held(blocks, whole) if start == len(whole) else None


def overhead(identity: bytes, blocks: int) -> int:
    """Bytes of a value besides those of its `blocks` blocks."""
    return _HEADER.size + blocks * _ENTRY.size + len(identity)


def plan_lookup(blocks: Sequence[int], run_blocks: int) -> list[int]:
    """The first blocks of the values that may hold `blocks` (ascending).

    A value of several blocks begins at a multiple of `run_blocks` (`core.ranges.plan_runs`), so that is where each is
    looked for. Whoever starts in the middle of a run may have stored single blocks, so a lookup that does too asks for
    them as well; one that starts at the run's beginning does not: it would be several requests to save one.
    """
    firsts: dict[int, None] = {}
    inside: dict[int, bool] = {}
    for block in blocks:
        run = block - block % run_blocks
        firsts.setdefault(run)
        if inside.setdefault(run, block != run):
            firsts.setdefault(block)
    return list(firsts)


def plan_more(missing: Sequence[int], found: Container[int], asked: Container[int], run_blocks: int) -> list[int]:
    """The single blocks to look for after a first lookup, which `asked` for values by their first blocks and `found`
    some of them: a run that ends before what is `missing` was stored by a reader who went on in single blocks."""
    return [block for block in missing if block - block % run_blocks in found and block not in asked]


def _checked(count: int, rest: bytes) -> int:
    return int(crc32c(rest, count))  # the CRC goes on from the count, so that it covers that too
