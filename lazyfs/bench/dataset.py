"""The files that are trained on: listed or made, downloaded, and checked byte by byte.

Never writes to a bucket but in `fill`, which is for a bucket of the benchmark's own. All work on S3 goes through
the same store, retries included, as that of a mount.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

import trio

from lazyfs.bench.training import BenchError
from lazyfs.config import BucketConfig
from lazyfs.config.endpoint import s3_settings
from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import StoreError, first_error
from lazyfs.core.listing import component_problem
from lazyfs.core.stats import Stats
from lazyfs.core.types import ObjectId, ObjectInfo, Range
from lazyfs.store.base import Store
from lazyfs.store.remote import open_s3_store
from lazyfs.store.retrying import Retrying

CONNECTIONS = 64
"""Requests at a time of the download, twice a mount's, so that it does not look slow: on two processors, 2,000 files of
110 KB, 32, 64 and 128 could not be told apart, whether the first byte took 25 ms or none."""
PIECE = 8 * 1024**2
"""The most that one GET of the download asks for, as in a mount; a large object comes in pieces side by side."""
DEADLINE_S = 60.0
FILES_A_FOLDER = 1000

T = TypeVar("T")
Advance = Callable[[int], None]
"""Told how many files are done."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Files by name, relative to the bucket's prefix, and what they hold.

    A digest that is not known is that of the first reading; from then on every reading must agree with it.
    """

    files: Mapping[str, ObjectInfo]
    digests: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(info.size for info in self.files.values())

    def check(self, name: str, size: int, digest: bytes) -> None:
        """BenchError unless this is what the file holds. Called by many threads."""
        if size != self.files[name].size:
            raise BenchError(f"{name} has {size} bytes where the bucket has {self.files[name].size}")
        if self.digests.setdefault(name, digest) != digest:
            raise BenchError(f"{name} was read with another content than before")


def on_bucket(bucket: BucketConfig, work: Callable[[Store], Awaitable[T]], *, stats: Stats) -> T:
    """The result of `work` on the store of this bucket; requests are counted in `stats`. Raises LazyfsError."""

    async def main() -> T:
        bare = open_s3_store(s3_settings(bucket, max_connections=CONNECTIONS), stats=stats)
        try:
            return await work(Retrying(bare, backoff=Backoff(deadline_s=DEADLINE_S), stats=stats))
        finally:
            with trio.CancelScope(shield=True):
                await bare.aclose()

    try:
        return trio.run(main, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    except StoreError as error:
        raise BenchError(f"bucket {bucket.name}: {error}") from error


async def list_files(store: Store, *, prefix: str, limit: int) -> DataSet:
    """The first `limit` files below `prefix`, in the order of their keys: what a mount would show, but empty files."""
    found: dict[str, ObjectInfo] = {}
    token: str | None = None
    while True:
        page = await store.list_page(prefix, token=token)
        for info in page.objects:
            name = info.key[len(prefix) :]
            if info.size and not any(component_problem(part) for part in name.split("/")):
                found[name] = info
            if len(found) >= limit:
                return DataSet(_without_hidden(found))
        token = page.next_token
        if token is None:
            return DataSet(_without_hidden(found))


async def fill(store: Store, *, files: int, file_size: int, advance: Advance) -> DataSet:
    """Put `files` objects of `file_size` bytes each into a bucket of our own."""
    found: dict[str, ObjectInfo] = {}
    digests: dict[str, bytes] = {}

    async def put(number: int) -> None:
        name = f"train/{number // FILES_A_FOLDER:03}/{number:07}.jpg"
        body = random.Random(number).randbytes(file_size)  # noqa: S311 - content that can be made again
        etag = await store.put(name, body)
        found[name] = ObjectInfo(key=name, etag=etag, size=file_size, mtime_ns=0)
        digests[name] = blake2b(body, digest_size=16).digest()
        advance(len(found))

    await _for_each(range(files), put)
    return DataSet(found, digests)


async def download(store: Store, data: DataSet, directory: Path, *, advance: Advance) -> None:
    """Bring every file into `directory`, each piece by a request of its own, CONNECTIONS at a time."""
    for folder in {(directory / name).parent for name in data.files}:
        folder.mkdir(parents=True, exist_ok=True)
    done = 0

    async def fetch(piece: _Piece) -> None:
        nonlocal done
        body = await store.get_range(piece.oid, piece.span)
        # In a thread: a disk that has to wait must not hold up the other requests.
        await trio.to_thread.run_sync(partial(_write, directory / piece.name, memoryview(body), piece.span.start))
        done += piece.is_last
        advance(done)

    await _for_each(_pieces(data), fetch)


class _Piece(NamedTuple):
    """What one request of the download brings."""

    name: str
    oid: ObjectId
    span: Range
    is_last: bool


def _pieces(data: DataSet) -> Iterator[_Piece]:
    for name, info in data.files.items():
        for start in range(0, info.size, PIECE):
            span = Range(start, start + PIECE).clamp(info.size)
            yield _Piece(name, info.oid, span, span.stop == info.size)


def _write(path: Path, body: memoryview, start: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while body:
                written = os.pwrite(descriptor, body, start)
                body, start = body[written:], start + written
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from error


async def _for_each(items: Iterable[T], act: Callable[[T], Awaitable[None]]) -> None:
    """`act` on every item, CONNECTIONS at a time."""
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await act(item)

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(work)


def _without_hidden(found: dict[str, ObjectInfo]) -> dict[str, ObjectInfo]:
    """Without the files that a directory of the same name hides."""
    directories = {name[:at] for name in found for at, character in enumerate(name) if character == "/"}
    return {name: info for name, info in found.items() if name not in directories}
