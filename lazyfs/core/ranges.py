"""Arithmetic of byte ranges, blocks and extents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lazyfs.core.errors import UsageError
from lazyfs.core.types import Range
from lazyfs.core.units import parse_size


def blocks_of(span: Range, block_size: int) -> range:
    """The indices of the blocks that `span` touches; empty for an empty span."""
    if span.start >= span.stop:
        return range(0)
    return range(span.start // block_size, (span.stop - 1) // block_size + 1)


def block_range(index: int, block_size: int, size: int) -> Range:
    """The bytes of block `index` in an object of `size` bytes; the last block may be short."""
    start = index * block_size
    return Range(start, min(start + block_size, size))


def plan_extents(blocks: Iterable[int], max_blocks: int) -> list[range]:
    """Runs of neighbouring blocks, each to be fetched by one GET, none longer than `max_blocks`.

    `blocks` is ascending, or descending for a reader that goes backward, without repeats; the runs are in its order.
    Every block is in exactly one extent, and no block that was not asked for is in any.
    """
    extents: list[range] = []
    for block in blocks:
        last = extents[-1] if extents else range(0)
        if 0 < len(last) < max_blocks and block in (last.start - 1, last.stop):
            extents[-1] = range(min(last.start, block), max(last.stop, block + 1))
        else:
            extents.append(range(block, block + 1))
    return extents


def plan_runs(blocks: Iterable[int], max_blocks: int) -> list[range]:
    """Runs of neighbouring blocks, each to be stored as one value: of up to `max_blocks` where one begins at a multiple
    of that, of one block elsewhere. So whoever looks for a block looks in two places at most.

    `blocks` is ascending without repeats; every block is in exactly one run.
    """
    runs: list[range] = []
    for block in blocks:
        last = runs[-1] if runs else None
        if last is not None and last.stop == block and last.start % max_blocks == 0 and block % max_blocks != 0:
            runs[-1] = range(last.start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs


class RangeSpec(NamedTuple):
    """A range of every file, whatever its size; as in HTTP's Range, without a start it is the last `stop` bytes."""

    start: int | None
    stop: int | None

    def of(self, size: int) -> Range:
        """Its bytes in a file of `size` bytes; empty if it has none of them."""
        if self.start is None:
            return Range(max(0, size - (self.stop or 0)), size)
        return Range(self.start, size if self.stop is None else self.stop).clamp(size)


def parse_range(text: str) -> RangeSpec:
    """`0-1MiB` is the first MiB (half-open), `1GiB-` all behind the first GiB, `-64KiB` the last 64 KiB. UsageError."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    if not dash or not (first or last):
        raise UsageError(f"not a range: {text!r} (write it like 0-1MiB, 1GiB- or -64KiB)")
    spec = RangeSpec(parse_size(first) if first else None, parse_size(last) if last else None)
    if spec.start is not None and spec.stop is not None and spec.start >= spec.stop:
        raise UsageError(f"an empty range: {text!r}")
    return spec


def block_runs(specs: Sequence[RangeSpec], size: int, block_size: int) -> list[range]:
    """The blocks that `specs` touch in an object of `size` bytes, ascending, in runs that lie apart."""
    runs: list[range] = []
    for run in sorted((blocks_of(spec.of(size), block_size) for spec in specs), key=lambda run: run.start):
        if not run:
            continue
        if runs and run.start <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(runs[-1].stop, run.stop))
        else:
            runs.append(run)
    return runs
