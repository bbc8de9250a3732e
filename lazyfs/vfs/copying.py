"""Copies by the server: one request for what is small, parts for what is not.

Promises that a copy of any size ends: a single request would be silent for as long as the server takes, until it times
out, and S3 takes no more than 5 GB in one. What a copy in parts says of itself besides mode, owner and the like is its
content type and storage class; other headers are lost.
"""

from __future__ import annotations

import trio

from lazyfs.core.parts import MAX_PARTS
from lazyfs.core.types import ObjectId, Part, Range
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.together import each
from lazyfs.vfs.uploads import Uploads

AT_ONCE_BYTES = 1024**3
"""Copied by one request. Servers copy some 100 MB/s at least, and a request may be silent for 30 s."""
PART_BYTES = 256 * 1024**2
PARTS_AT_ONCE = 8
_ABORT_S = 30.0


class Copier:
    """Copies objects of `store`; what it begins is remembered by `uploads`."""

    def __init__(self, *, store: Store, uploads: Uploads) -> None:
        self._store = store
        self._uploads = uploads

    async def copy(self, source: ObjectId, key: str, size: int) -> str:
        """Copy this version, which has `size` bytes, metadata included, to `key`; the new ETag. NotFoundError,
        PreconditionFailedError, StoreError: `key` is as it was."""
        if size <= AT_ONCE_BYTES:
            return await self._store.copy(source, key)
        info = await self._store.head(source.key)
        content_type = {"content_type": info.content_type} if info.content_type else {}
        storage_class = info.storage_class if info.storage_class not in {"", "STANDARD"} else None
        options = PutOptions(metadata=info.metadata, storage_class=storage_class, **content_type)
        upload = await self._uploads.create_upload(key, options=options)
        found: dict[int, Part] = {}

        async def copy_part(numbered: tuple[int, Range]) -> None:
            number, span = numbered
            found[number] = await self._store.copy_part(upload, number, source, span)

        try:
            await each(list(enumerate(_cut(size), 1)), copy_part, at_once=PARTS_AT_ONCE)
            return await self._uploads.complete_upload(upload, [found[number] for number in sorted(found)])
        except BaseException:
            with trio.move_on_after(_ABORT_S) as scope:
                scope.shield = True
                await self._uploads.abort_upload(upload)
            raise


def _cut(size: int) -> list[Range]:
    """Ranges of equal size, the last may be shorter, as few as S3 allows."""
    step = max(PART_BYTES, -(-size // MAX_PARTS))
    return [Range(start, min(start + step, size)) for start in range(0, size, step)]
