"""Cutting a growing file into multipart parts.

Limits of S3: 10,000 parts of 5 MiB to 5 GiB, the last may be shorter; so an object has at most 48.8 TiB.
Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import md5

from lazyfs.core.errors import TooBigError
from lazyfs.core.types import Part, Range
from lazyfs.core.units import format_size

MAX_PARTS = 10_000
MIN_PART_SIZE = 5 * 1024**2
MAX_PART_SIZE = 5 * 1024**3
MAX_COPY_BYTES = 5 * 1024**3
"""The largest object that one server-side copy takes."""
MAX_OBJECT_SIZE = MAX_PARTS * MAX_PART_SIZE
_GROW_EVERY = 1_000


@dataclass(frozen=True, slots=True)
class PartSizes:
    """Part sizes that start at `first` bytes and double every thousand parts.

    A short file never pays for a long one: a part is at most a five-hundredth of the file before it, or `first`. The
    price is that a file whose length nobody knows beforehand cannot reach what S3 allows: with 8 MiB it ends at
    7.8 TiB, with 64 MiB at 22 TiB, with 5 GiB at 48.8 TiB (`reach`).
    """

    first: int

    @property
    def reach(self) -> int:
        """The longest file that these parts can hold."""
        return sum(self.size(number) for number in range(1, MAX_PARTS + 1, _GROW_EVERY)) * _GROW_EVERY

    def check(self, size: int, key: str) -> None:
        """TooBigError if a file of `size` bytes would need more parts than an upload may have."""
        if size > self.reach:
            raise TooBigError(f"{key!r}: {format_size(self.reach)} is the most with this --part-size")

    def size(self, number: int) -> int:
        """Bytes of part `number` (from 1) unless it is the last, which may be shorter."""
        return min(self.first << ((number - 1) // _GROW_EVERY), MAX_PART_SIZE)

    def cut(self, size: int) -> list[Range]:
        """The parts of an object of `size` bytes, in order and without a gap; none is empty."""
        ranges: list[Range] = []
        start = 0
        while start < size:
            stop = min(start + self.size(len(ranges) + 1), size)
            ranges.append(Range(start, stop))
            start = stop
        return ranges


def multipart_etag(parts: list[Part]) -> str | None:
    """The ETag that S3 gives the completed object, or None where part ETags are not MD5 sums (SSE-KMS).

    Used to recognise our own upload when the answer to its completion was lost.
    """
    try:
        digests = [bytes.fromhex(part.etag) for part in parts]
    except ValueError:
        return None
    if any(len(digest) != 16 for digest in digests):
        return None
    return f"{md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(parts)}"
