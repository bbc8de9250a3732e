"""CRC32C as S3 wants it: base64 of four bytes, big end first. awscrt computes some 50 GB/s of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from awscrt import checksums

from lazyfs.core.types import Buffer, Part


def crc32c(body: Buffer) -> str:
    """The checksum of `body`."""
    return _encode(checksums.crc32c(body))


def crc32c_of_parts(parts: Sequence[Part]) -> str | None:
    """The checksum of the parts joined, from those of each; None if one of them is unknown."""
    if not parts or not all(part.checksum for part in parts):
        return None
    crc = 0
    for part in parts:
        one = int.from_bytes(base64.b64decode(part.checksum), "big")
        crc = checksums.combine_crc32c(crc, one, part.size)
    return _encode(crc)


def _encode(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()
