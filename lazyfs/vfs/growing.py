"""A multipart upload that grows with its file: parts go up, several at a time, while the program writes the next.

Promises that it ends in `complete` or `withdraw`, and that after the latter nothing of it stays in the bucket: parts
that are on their way are waited for, as one that came after the abort would stay. Parts are flights in the mount's
nursery; their bytes count against the memory budget, and a full budget or a full pipe makes `send` wait.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import trio

from lazyfs.cache.memory import MemoryTier
from lazyfs.core.errors import LazyfsError
from lazyfs.core.types import Condition, Part, Upload
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.flight import Flight
from lazyfs.vfs.uploads import Uploads

log = logging.getLogger(__name__)

PARTS_IN_FLIGHT = 8
_SETTLE_S = _ABORT_S = 30.0
"""How long `withdraw` waits for parts that are on their way, and for the answer to the abort."""


class GrowingUpload:
    """An upload to `key` that begins with its first part; `options` tells what it is created with then."""

    def __init__(
        self,
        *,
        store: Store | Uploads,
        memory: MemoryTier,
        nursery: trio.Nursery,
        key: str,
        options: Callable[[], PutOptions],
    ) -> None:
        self._store = store
        self._memory = memory
        self._nursery = nursery
        self._key = key
        self._options = options
        self._upload: Upload | None = None
        self._flights: list[Flight[Part]] = []
        self._is_withdrawn = False

    @property
    def parts(self) -> int:
        """How many were sent."""
        return len(self._flights)

    async def send(self, body: memoryview) -> None:
        """Let `body` go up as the next part. If it is withdrawn while this waits, nothing goes. StoreError, also of an
        earlier part."""
        if self._upload is None:
            self._upload = await self._store.create_upload(self._key, options=self._options())
        if len(self._flights) >= PARTS_IN_FLIGHT:
            await self._flights[-PARTS_IN_FLIGHT].wait()
        await self._memory.reserve(len(body))
        if self._is_withdrawn:
            self._memory.release(len(body))
            await self.withdraw()  # what was begun meanwhile
            return
        flight: Flight[Part] = Flight()
        self._flights.append(flight)
        self._nursery.start_soon(self._fly, flight, self._upload, len(self._flights), body)

    async def _fly(self, flight: Flight[Part], upload: Upload, number: int, body: memoryview) -> None:
        try:
            await flight.run(lambda: self._store.upload_part(upload, number, body))
        finally:
            self._memory.release(len(body))

    async def arrived(self) -> list[Part]:
        """All parts, when they are there. StoreError."""
        return [await flight.wait() for flight in self._flights]

    async def complete(self, parts: list[Part], condition: Condition) -> str:
        """Make them the object, if `condition` holds; its ETag. StoreError."""
        assert self._upload is not None
        etag = await self._store.complete_upload(self._upload, parts, condition=condition)
        self._upload = None
        return etag

    async def withdraw(self) -> None:
        """Abort it, unless it is complete; also while being cancelled, but not for ever."""
        self._is_withdrawn = True
        upload, self._upload = self._upload, None
        if upload is None:
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_SETTLE_S):
                for flight in self._flights:
                    with contextlib.suppress(LazyfsError):
                        await flight.wait()
            why: object = "no answer"
            with trio.move_on_after(_ABORT_S):
                try:
                    await self._store.abort_upload(upload)
                    return
                except LazyfsError as error:
                    why = error
            log.warning("upload of %r was not aborted: %s", upload.key, why)
