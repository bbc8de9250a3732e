"""Which bytes of a file are here, and the word for that: Lustre HSM's, as their users know them.

Pure. Promises that ranges are ascending, apart from each other, and never reach beyond the file's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from lazyfs.core.types import Range


class State(StrEnum):
    """Where the bytes of a file are."""

    RELEASED = "released"
    """In the bucket only."""
    PARTIAL = "partial"
    """In the bucket, and some of them here."""
    ARCHIVED = "archived"
    """In the bucket, and all of them here."""
    DIRTY = "dirty"
    """Here only, or newer here than in the bucket."""
    UPLOADING = "uploading"
    """On their way to the bucket now."""
    FAILED = "failed"
    """Here only: bringing them to the bucket has failed, and is tried again."""
    STALE = "stale"
    """Of a version that somebody else has replaced or deleted, told to who still has it open."""

    @property
    def is_here_only(self) -> bool:
        """Whether the bucket does not have all of them."""
        return self in (State.DIRTY, State.UPLOADING, State.FAILED)


def state_of_clean(size: int, resident: int) -> State:
    """The state of a file that the bucket has as it is here. An empty one has nothing that could be released."""
    if resident >= size:
        return State.ARCHIVED
    return State.PARTIAL if resident else State.RELEASED


def runs_of(blocks: Iterable[int]) -> list[range]:
    """Neighbouring blocks (ascending, without repeats) as runs."""
    runs: list[range] = []
    for block in blocks:
        if runs and runs[-1].stop == block:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs


def ranges_of(runs: Iterable[range], block_size: int, size: int) -> list[Range]:
    """The bytes that runs of blocks have of a file of `size` bytes."""
    spans = (Range(run.start * block_size, run.stop * block_size).clamp(size) for run in runs)
    return [span for span in spans if span.size]


def union(*tiers: Sequence[Range]) -> list[Range]:
    """The bytes that are in any of them, each of which is ascending."""
    merged: list[Range] = []
    for span in sorted(span for tier in tiers for span in tier):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = Range(merged[-1].start, max(merged[-1].stop, span.stop))
        else:
            merged.append(span)
    return merged


def total(ranges: Iterable[Range]) -> int:
    """Their bytes together."""
    return sum(span.size for span in ranges)


def format_ranges(ranges: Iterable[Range]) -> str:
    """`0-262144,1048576-2097152`: half-open, in bytes."""
    return ",".join(f"{span.start}-{span.stop}" for span in ranges)


def format_tiers(tiers: Iterable[tuple[str, Sequence[Range]]], *, limit: int) -> str:
    """`memory 0-262144; disk 0-1048576`, of at most `limit` characters; where something is left off it ends in `…`."""
    text = "; ".join(f"{name} {format_ranges(ranges)}" for name, ranges in tiers if ranges)
    return text if len(text) <= limit else text[: limit - 1].rpartition(",")[0] + "…"
