"""The shared tier's engine on a bucket that is nearer than the origin: S3 Express One Zone, a MinIO of the cluster.

One object a run of up to four neighbouring blocks, 1 MiB, that begins at a multiple of four. One a block would be
sixteen requests for an extent of 4 MiB, and a PUT costs the daemon milliseconds of CPU; one an extent could not be
found by a reader whose extents are cut elsewhere, and a random reader would be sent 4 MiB for a block. A file of up to
1 MiB, which is fetched whole, is one object.

Values check themselves (`sharedvalue`), so whichever version of an object comes will do: no HEAD, no If-Match. Nothing
is tried again, because a miss is cheaper. Old objects are for a lifecycle rule of the bucket to delete.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from lazyfs.cache.engine import Name, Value
from lazyfs.core.errors import AccessDeniedError, CacheError, CacheRefusedError, NotFoundError, StoreError
from lazyfs.core.types import Buffer
from lazyfs.store.base import Blobs

CONNECTIONS = 32
"""Of the bucket's own store: eight extents' runs at a time."""


class BucketEngine:
    """See `engine.Engine`. The values lie below `prefix`."""

    run_blocks = 4
    gets = 8
    deadline_s = 1.0
    """S3's slowest answers take some hundred milliseconds to begin; after a second the origin would have answered."""

    def __init__(self, blobs: Blobs, *, where: str, prefix: str) -> None:
        self.where = where
        self._blobs = blobs
        self._prefix = prefix

    async def get_many(self, names: Sequence[Name], *, limit_bytes: int) -> Sequence[Buffer | None]:
        """See Engine.get_many."""
        values: list[Buffer | None] = [None] * len(names)

        async def get(index: int) -> None:
            try:
                values[index] = await self._blobs.get_any(self._key(names[index]), limit_bytes=limit_bytes)
            except NotFoundError:
                return

        await _all(get, len(names))
        return values

    async def put_many(self, values: Sequence[Value]) -> None:
        """See Engine.put_many."""

        async def put(index: int) -> None:
            name, pieces = values[index]
            await self._blobs.put(self._key(name), b"".join(pieces))

        try:
            await _all(put, len(values))
        except _DeniedError as error:
            raise CacheRefusedError(str(error)) from None  # whoever may only read, reads

    async def delete_many(self, names: Sequence[Name]) -> None:
        """See Engine.delete_many."""
        await _all(lambda index: self._blobs.delete(self._key(names[index])), len(names))

    async def aclose(self) -> None:
        """See Engine.aclose."""
        await self._blobs.aclose()

    def _key(self, name: Name) -> str:
        # The hash comes first: S3 divides a bucket's load by the beginning of its keys.
        return f"{self._prefix}{name.version[:2]}/{name.version}/{name.first}"


class _DeniedError(CacheError):
    """The credentials do not allow it."""


async def _all(call: Callable[[int], Awaitable[None]], count: int) -> None:
    """`call` for each number below `count`, all at once; the first error of one, as CacheError."""
    failures: list[StoreError] = []

    async def guarded(index: int) -> None:
        try:
            await call(index)
        except StoreError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for index in range(count):
            nursery.start_soon(guarded, index)
    if failures:
        kind = _DeniedError if isinstance(failures[0], AccessDeniedError) else CacheError
        raise kind(str(failures[0]))
