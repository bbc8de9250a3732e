"""The multipart uploads of this mount, remembered in the index while they are under way.

Promises that parts which a killed daemon sent are not kept, and paid for, for ever: the next mount aborts its uploads.
Not those of others; only of a key whose upload was just being begun, all are: nobody can tell which one is ours.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from lazyfs.core.errors import LazyfsError
from lazyfs.core.types import ANY, Buffer, Condition, Part, Range, Upload
from lazyfs.index.database import Index
from lazyfs.store.base import DEFAULT_PUT, PutOptions, Store
from lazyfs.vfs.together import each

log = logging.getLogger(__name__)

_META = "uploads"
_AT_ONCE = 8
_ABORT_S = 30.0


def uploads_in(text: str | None) -> tuple[dict[str, str], list[str]]:
    """Keys by the ids of uploads, and keys of uploads without, in what was remembered; what is neither is left out: an
    index is a cache, and may be damaged."""
    try:
        remembered = json.loads(text or "{}")
        opened, begun = remembered.get("open", {}).items(), remembered.get("begun", [])
        found = {at: key for at, key in opened if isinstance(key, str)}, [key for key in begun if isinstance(key, str)]
    except (ValueError, RecursionError, AttributeError, TypeError):
        log.warning("what the index remembers of uploads is damaged; some may be left in the bucket")
        return {}, []
    return found


class Uploads:
    """The verbs by which a writer changes `store`; what is begun is remembered until it has ended."""

    def __init__(self, *, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        # Keys by the uploads' ids, and keys of which an upload may exist that we do not know the id of yet.
        self._open, self._begun = uploads_in(index.meta(_META))

    async def put(
        self, key: str, body: Buffer, *, options: PutOptions = DEFAULT_PUT, condition: Condition = ANY
    ) -> str:
        """See Store.put."""
        return await self._store.put(key, body, options=options, condition=condition)

    async def create_upload(self, key: str, *, options: PutOptions = DEFAULT_PUT) -> Upload:
        """See Store.create_upload."""
        self._begun.append(key)
        await self._remember()
        upload = await self._store.create_upload(key, options=options)
        self._begun.remove(key)
        self._open[upload.upload_id] = key
        await self._remember()
        return upload

    async def upload_part(self, upload: Upload, number: int, body: Buffer) -> Part:
        """See Store.upload_part."""
        return await self._store.upload_part(upload, number, body)

    async def complete_upload(self, upload: Upload, parts: Sequence[Part], *, condition: Condition = ANY) -> str:
        """See Store.complete_upload."""
        etag = await self._store.complete_upload(upload, parts, condition=condition)
        await self._over(upload)
        return etag

    async def abort_upload(self, upload: Upload) -> None:
        """See Store.abort_upload. If it fails, the next mount tries again."""
        await self._store.abort_upload(upload)
        await self._over(upload)

    async def in_parts(
        self,
        key: str,
        spans: Sequence[Range],
        send: Callable[[Upload, int, Range], Awaitable[Part | None]],
        *,
        at_once: int,
        options: PutOptions = DEFAULT_PUT,
        condition: Condition = ANY,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> str | None:
        """Make `key` of parts that `send(upload, number, span)` brings, `at_once` of them at a time; its ETag. If one
        fails, or this is cancelled, nothing stays behind; nor if it `is_wanted` no more (`send` may return None then):
        that gives None."""
        upload = await self.create_upload(key, options=options)
        found: dict[int, Part] = {}

        async def send_one(numbered: tuple[int, Range]) -> None:
            number, span = numbered
            part = await send(upload, number, span)
            if part is not None:
                found[number] = part

        try:
            await each(list(enumerate(spans, 1)), send_one, at_once=at_once)
            if is_wanted():
                return await self.complete_upload(
                    upload, [found[number] for number in sorted(found)], condition=condition
                )
        except BaseException:
            with trio.move_on_after(_ABORT_S) as scope:
                scope.shield = True
                await self._abort(upload)
            raise
        await self._abort(upload)
        return None

    async def _abort(self, upload: Upload) -> None:
        """What fails here must not hide why it is aborted."""
        try:
            await self.abort_upload(upload)
        except LazyfsError as error:
            log.warning("upload of %r was not aborted: %s", upload.key, error)

    async def abort_left(self) -> None:
        """Abort what the last mount left because it was killed. What cannot be done now is left for the next one."""

        async def abort(upload: Upload) -> None:
            try:
                await self.abort_upload(upload)
            except LazyfsError as error:
                log.warning("an upload of %r was left by a killed mount, and is not aborted: %s", upload.key, error)

        async def abort_begun(key: str) -> None:
            try:
                for upload in await self._store.list_uploads(key):
                    if upload.key == key:
                        await self._store.abort_upload(upload)
            except LazyfsError as error:
                log.warning("uploads of %r may be left by a killed mount: %s", key, error)
                return
            self._begun.remove(key)
            await self._remember()

        await each([Upload(key, upload_id) for upload_id, key in self._open.items()], abort, at_once=_AT_ONCE)
        await each(list(self._begun), abort_begun, at_once=_AT_ONCE)

    async def _over(self, upload: Upload) -> None:
        if self._open.pop(upload.upload_id, None) is not None:
            await self._remember()

    async def _remember(self) -> None:
        await self._index.set_meta(_META, json.dumps({"open": self._open, "begun": self._begun}))
