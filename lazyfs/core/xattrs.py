"""Extended attributes `user.NAME` as user metadata of the object: its key is NAME, its value the text.

Promises that what fits comes back byte for byte, and that what does not is told apart before anything is sent: S3 takes
2 KiB of user metadata, in headers, whose names know no case. Values that a header would change are kept in base64.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from lazyfs.core.posix import KEYS

MAX_METADATA_BYTES = 2048
"""Of all keys and values of an object together, as S3 counts."""
_PREFIX = b"user."
_NAME = re.compile(rb"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_PLAIN = re.compile(rb"[!-~]+( [!-~]+)*")
_ENCODED = "base64:"
_RESERVED = KEYS | {"mode", "uid", "gid", "mtime", "atime", "ctime", "xattr"}
"""Keys that say other things of a file: those of FSx, and of s3fs and rclone."""


def key_of(name: bytes) -> str | None:
    """The metadata key of attribute `name`; None if it can have none."""
    bare = name.removeprefix(_PREFIX)
    if bare == name or _NAME.fullmatch(bare) is None or _is_reserved(key := bare.decode()):
        return None
    return key


def text_of(value: bytes) -> str:
    """The metadata value that holds `value`."""
    text = value.decode("ascii", "replace")
    if _PLAIN.fullmatch(value) and not text.startswith(_ENCODED):
        return text
    return _ENCODED + base64.b64encode(value).decode()


def value_of(text: str) -> bytes:
    """The value that a metadata value holds; never raises, as others may have written it."""
    if text.startswith(_ENCODED):
        try:
            return base64.b64decode(text[len(_ENCODED) :], validate=True)
        except (binascii.Error, ValueError):
            pass
    return text.encode(errors="surrogateescape")


def attributes_of(metadata: Mapping[str, str]) -> dict[bytes, bytes]:
    """The attributes that user metadata hold, by name."""
    found = {}
    for key, text in metadata.items():
        name = _PREFIX + key.lower().encode(errors="replace")
        if key_of(name) is not None:
            found[name] = value_of(text)
    return found


def fits(metadata: Mapping[str, str]) -> bool:
    """Whether S3 takes these user metadata."""
    return sum(len(key) + len(text.encode(errors="replace")) for key, text in metadata.items()) <= MAX_METADATA_BYTES


def _is_reserved(key: str) -> bool:
    return key in _RESERVED or key.startswith("lazyfs")
