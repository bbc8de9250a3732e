"""How a block is stored: a header that names object, version and block and carries a CRC32C of the data, then the data.

Promises that what `read_block` calls whole was stored as exactly that block. Knows nothing of where values lie.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from awscrt.checksums import crc32c

from lazyfs.core.types import Buffer

_MAGIC = b"lfs1"
_HEADER = struct.Struct("<4sIII")  # magic, identity length, data length, CRC32C of the data
HEADER_BYTES = _HEADER.size
"""Of the header without the identity that follows it."""


class Loaded(NamedTuple):
    """Blocks as views into one buffer, one after the other: nobody has to join what is read together."""

    blocks: Mapping[int, Buffer]
    whole: memoryview


NOTHING = Loaded(MappingProxyType({}), memoryview(b""))


def encode_block(identity: bytes, data: Buffer) -> bytes:
    """The header that goes before `data`."""
    return _HEADER.pack(_MAGIC, len(identity), len(data), crc32c(data)) + identity


def read_block(identity: bytes, value: bytes | BinaryIO, data: memoryview) -> bool:
    """Read a stored value (its bytes, or the unbuffered file of it) into `data`; whether it is whole, and this block.

    `data` is as long as the value's data must be. OSError.
    """
    size = HEADER_BYTES + len(identity)
    header: Buffer
    if isinstance(value, bytes):
        if len(value) != size + len(data):
            return False
        header, data[:] = value[:size], value[size:]
    else:
        header = memoryview(bytearray(size))
        if os.preadv(value.fileno(), [header, data], 0) != size + len(data):
            return False
    return _is_block(identity, header, data)


def _is_block(identity: bytes, header: Buffer, data: Buffer) -> bool:
    magic, identity_size, data_size, checksum = _HEADER.unpack_from(header)
    if (magic, identity_size, data_size) != (_MAGIC, len(identity), len(data)):
        return False
    return bytes(header[HEADER_BYTES:]) == identity and bool(crc32c(data) == checksum)
