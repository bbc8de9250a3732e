"""Arithmetic of byte ranges, blocks and extents."""

from __future__ import annotations

from collections.abc import Iterable

from lazyfs.core.types import Range


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
