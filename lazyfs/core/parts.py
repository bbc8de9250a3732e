"""Cutting a growing file into multipart parts.

Limits of S3: 10,000 parts, each at least 5 MiB except the last, object at most 50 TB.
Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import md5

from lazyfs.core.types import Part

MAX_PARTS = 10_000
MIN_PART_SIZE = 5 * 1024**2
MAX_PART_SIZE = 5 * 1024**3
MAX_OBJECT_SIZE = 50 * 1024**4
_GROW_EVERY = 1_000


@dataclass(frozen=True, slots=True)
class PartSizes:
    """Part sizes that start at `first` bytes and double every thousand parts, so that no length is too long.

    With 8 MiB this reaches 50 TB before part 10,000, and a short file never pays for a long one.
    """

    first: int

    def size(self, number: int) -> int:
        """Bytes of part `number` (from 1) unless it is the last, which may be shorter."""
        return min(self.first << ((number - 1) // _GROW_EVERY), MAX_PART_SIZE)


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
