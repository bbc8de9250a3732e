"""The content type of an object by its name, as browsers and data catalogues want it."""

from __future__ import annotations

import mimetypes

UNKNOWN = "application/octet-stream"
_ENCODED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_TYPES = mimetypes.MimeTypes()
"""Python's own table, not that of the machine: the same name has the same type everywhere."""
for _ending, _type in {
    ".parquet": "application/vnd.apache.parquet",
    ".arrow": "application/vnd.apache.arrow.file",
    ".jsonl": "application/x-ndjson",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".md": "text/markdown",
}.items():
    _TYPES.add_type(_type, _ending)


def content_type(key: str) -> str:
    """The type of an object with this key. What is compressed is told as that: no client shall unpack it by itself."""
    found, encoding = _TYPES.guess_type(f"x/{key.rpartition('/')[2]}")  # a key is no URL
    return _ENCODED.get(encoding, UNKNOWN) if encoding is not None else found or UNKNOWN
