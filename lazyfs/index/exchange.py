"""Where snapshots lie: a file of this machine, or an object of any bucket at the mount's endpoint.

Promises that a place named `s3://BUCKET/KEY` is written whole or not at all, and that a fetched snapshot is one version
of one object. All work on files happens in worker threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import trio

from lazyfs.core.errors import StoreError
from lazyfs.core.parts import PartSizes
from lazyfs.core.types import ObjectId, Part, Range
from lazyfs.index.snapshot import SnapshotError, install, pack
from lazyfs.store.base import PutOptions, Store

T = TypeVar("T")

PART = 8 * 1024**2
"""The most that is held of a snapshot at a time; a larger one is uploaded in parts of this size."""

OpenStore = Callable[[str], AbstractAsyncContextManager[Store]]
"""The store of a bucket by its name, for the length of a ``with``."""


async def export_snapshot(index: Path, place: str, open_store: OpenStore) -> dict[str, int]:
    """Write a snapshot of the index file to `place`, a path or s3://BUCKET/KEY; what it holds. Raises SnapshotError."""
    if not place.startswith("s3://"):
        return await _in_thread(lambda: pack(index, Path(place), trio.from_thread.check_cancelled))
    bucket, key = _bucket_and_key(place)
    with tempfile.TemporaryDirectory(dir=index.parent, prefix=f".{index.name}.snapshot-") as folder:
        packed = Path(folder) / "packed.gz"
        facts = await _in_thread(lambda: pack(index, packed, trio.from_thread.check_cancelled))
        try:
            async with open_store(bucket) as store:
                await _upload(store, key, packed, facts["packed"])
        except StoreError as error:
            raise SnapshotError(f"cannot write the snapshot {place}: {error}") from error
    return facts


async def install_snapshot(place: str, index: Path, identity: Mapping[str, str], open_store: OpenStore) -> bool:
    """Install the snapshot at `place` unless the index file, which nobody uses, is as new. SnapshotError."""

    async def use(path: Path) -> bool:
        pause = trio.from_thread.check_cancelled
        return await _in_thread(lambda: install(path, index, identity, name=place, pause=pause))

    if not place.startswith("s3://"):
        return await use(Path(place))
    bucket, key = _bucket_and_key(place)
    with tempfile.TemporaryDirectory(dir=index.parent, prefix=f".{index.name}.snapshot-") as folder:
        packed = Path(folder) / "packed.gz"
        try:
            async with open_store(bucket) as store:
                await _download(store, key, packed)
        except (StoreError, OSError) as error:
            raise SnapshotError(f"cannot fetch the snapshot {place}: {error}") from error
        return await use(packed)


async def _upload(store: Store, key: str, path: Path, size: int) -> None:
    options = PutOptions(content_type="application/gzip")
    if size <= PART:
        await store.put(key, await _read(path, Range(0, size)), options=options)
        return
    upload = await store.create_upload(key, options=options)
    try:
        parts: list[Part] = []
        start, sizes = 0, PartSizes(PART)
        while start < size:
            number = len(parts) + 1
            span = Range(start, min(start + sizes.size(number), size))
            parts.append(await store.upload_part(upload, number, await _read(path, span)))
            start = span.stop
        await store.complete_upload(upload, parts)
    except BaseException:
        with trio.CancelScope(shield=True):
            await store.abort_upload(upload)
        raise


async def _download(store: Store, key: str, path: Path) -> None:
    info = await store.head(key)
    oid = ObjectId(key, info.etag)
    async with await trio.open_file(path, "xb") as file:
        for start in range(0, info.size, PART):
            await file.write(await store.get_range(oid, Range(start, min(start + PART, info.size))))


async def _read(path: Path, span: Range) -> bytes:
    async with await trio.open_file(path, "rb") as file:
        await file.seek(span.start)
        return await file.read(span.size)


async def _in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


def _bucket_and_key(place: str) -> tuple[str, str]:
    bucket, _, key = place.removeprefix("s3://").partition("/")
    return bucket, key
