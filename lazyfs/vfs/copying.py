"""Copies and renames by the server: one request for what is small, parts for what is not.

Promises that a copy of any size ends: a single request would be silent for as long as the server takes, until it times
out, and S3 takes no more than 5 GB in one. What a copy in parts says of itself besides mode, owner and the like is its
content type and storage class; other headers are lost.
"""

from __future__ import annotations

from uuid import uuid4

from lazyfs.core.parts import MAX_PARTS
from lazyfs.core.types import ObjectId, Part, Range, Upload
from lazyfs.store.base import DEFAULT_PUT, PutOptions, Store
from lazyfs.vfs.uploads import Uploads

AT_ONCE_BYTES = 1024**3
"""Copied by one request. Servers copy some 100 MB/s at least, and a request may be silent for 30 s."""
PART_BYTES = 256 * 1024**2
PARTS_AT_ONCE = 8


class Copier:
    """Copies objects of `store`; what it begins is remembered by `uploads`. `renames`: it has RenameObject."""

    def __init__(self, *, store: Store, uploads: Uploads, renames: bool = False) -> None:
        self._store = store
        self._uploads = uploads
        self._renames = renames

    async def move(self, source: ObjectId, key: str, size: int) -> str:
        """Give this version the key `key`; its ETag there. Errors as of `copy`, or of deleting what was copied.

        In one step and without a copy where the bucket can, else a copy and then a delete.
        """
        if self._renames:
            return await self._store.rename(source, key, token=uuid4().hex)
        etag = await self.copy(source, key, size)
        await self._store.delete(source.key)
        return etag

    async def copy(self, source: ObjectId, key: str, size: int) -> str:
        """Copy this version, which has `size` bytes, metadata included, to `key`; the new ETag. NotFoundError,
        PreconditionFailedError, StoreError: `key` is as it was."""
        if size <= AT_ONCE_BYTES:
            return await self._store.copy(source, key)
        info = await self._store.head(source.key)
        options = PutOptions(
            content_type=info.content_type or DEFAULT_PUT.content_type,
            metadata=info.metadata,
            storage_class=info.storage_class if info.storage_class not in {"", "STANDARD"} else None,
        )

        async def send(upload: Upload, number: int, span: Range) -> Part:
            return await self._store.copy_part(upload, number, source, span)

        etag = await self._uploads.in_parts(key, _cut(size), send, at_once=PARTS_AT_ONCE, options=options)
        assert etag is not None, "it was wanted all the time"
        return etag


def _cut(size: int) -> list[Range]:
    """Ranges of equal size, the last may be shorter, as few as S3 allows."""
    step = max(PART_BYTES, -(-size // MAX_PARTS))
    return [Range(start, min(start + step, size)) for start in range(0, size, step)]
