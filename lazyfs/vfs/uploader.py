"""Carries out the backlog: the part of write-back that talks to the bucket.

Promises that each change reaches the bucket once, however often it must be tried: it is tried until it succeeds, is
withdrawn, or somebody else has the key. What may have been done before the answer was lost, or the daemon killed, is
recognised by a mark in the object's metadata, which no other write ever has.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import trio

from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.spool import SpoolFile
from lazyfs.core.backoff import Backoff
from lazyfs.core.changes import MARK, Change, Op
from lazyfs.core.content import content_type
from lazyfs.core.errors import LazyfsError, NotFoundError, PreconditionFailedError
from lazyfs.core.parts import PartSizes
from lazyfs.core.types import ANY, Condition, Part, Range, Upload
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.copying import Copier
from lazyfs.vfs.uploads import Uploads

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Changes that are tried at a time."""
PARTS_AT_ONCE = 16
"""Parts of all files on their way at a time."""
MAX_FAILING = 256
"""Changes that wait for their next attempt. While there are more, nothing new is begun."""


class Uploader:
    """Brings the changes of `backlog` to the bucket. `metadata(change)` tells what an object shall say now,
    `landed(change, etag)` makes it true for the mount that it is there, `keep(change, etag, content)` takes its
    content, `restate(change, etag, sent, wanted)` tells the bucket what was set while it was sent, and `lost(change)`
    takes one whose key somebody else has.
    `backoff` says how long to wait between attempts; its deadline does not count.
    """

    def __init__(
        self,
        *,
        backlog: Backlog,
        store: Store,
        uploads: Uploads,
        copier: Copier,
        memory: MemoryTier,
        part_sizes: PartSizes,
        options: PutOptions,
        conditional: bool,
        backoff: Backoff,
        metadata: Callable[[Change], Mapping[str, str]],
        landed: Callable[[Change, str], Awaitable[None]],
        restate: Callable[[Change, str, Mapping[str, str], Mapping[str, str]], Awaitable[None]],
        keep: Callable[[Change, str, SpoolFile | None], None],
        lost: Callable[[Change], Awaitable[None]],
    ) -> None:
        self._backlog = backlog
        self._store = store
        self._uploads = uploads
        self._copier = copier
        self._memory = memory
        self._part_sizes = part_sizes
        self._options = options
        self._conditional = conditional
        self._metadata = metadata
        self._landed = landed
        self._restate = restate
        self._keep = keep
        self._lost = lost
        self._places = trio.Semaphore(AT_ONCE)
        self._parts = trio.Semaphore(PARTS_AT_ONCE)
        self._unfinished = trio.Semaphore(AT_ONCE + MAX_FAILING)
        self._backoff = backoff

    async def run(self) -> None:
        """Until cancelled. What is under way then is begun anew by the next mount."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._unfinished.acquire()
                await self._places.acquire()
                nursery.start_soon(self._carry_out, await self._backlog.next())

    async def _carry_out(self, change: Change) -> None:
        """Try until it is done; who calls has taken a place for the first attempt."""
        for attempt in itertools.count(1):
            try:
                await self._attempt(change)
                break
            except LazyfsError as error:
                self._failed(change, error)
            except Exception:
                log.exception("unexpected error in the %s of %r", change.op, change.key)
                self._failed(change, LazyfsError("a bug; see the log"))
            finally:
                self._places.release()
            delay_s = self._backoff.delay_s(attempt, 0.0, random.random)
            await self._backlog.until_withdrawn(change, timeout_s=delay_s or self._backoff.cap_s)
            await self._places.acquire()
        self._unfinished.release()

    def _failed(self, change: Change, error: LazyfsError) -> None:
        level = logging.INFO if self._backlog.failures else logging.WARNING  # of an outage, the first one
        log.log(level, "%s of %r failed, and will be tried again: %s", change.op, change.key, error)
        self._backlog.failed(change, error)

    async def _attempt(self, change: Change) -> None:
        """Do what `change` says, once; nothing if it is not wanted any more. LazyfsError: it shall be tried again."""
        if not self._backlog.pending.is_wanted(change):
            await self._backlog.give_up(change)
        elif change.op is Op.DELETE:
            await self._store.delete(change.key)
            await self._finish(change, "", {})
        elif change.op is Op.COPY:
            assert change.source is not None
            try:
                etag = await self._copier.copy(change.source, change.key, change.size)
            except (NotFoundError, PreconditionFailedError):
                await self._lost(change)
            else:
                await self._finish(change, etag, change.metadata)
        else:
            await self._put(change)

    async def _put(self, change: Change) -> None:
        sent = self._metadata(change)
        try:
            etag = await self._send(change, sent)
        except (PreconditionFailedError, NotFoundError):
            etag = await self._found(change)
        if etag is not None:
            await self._finish(change, etag, sent)
        elif self._backlog.pending.is_wanted(change):
            await self._lost(change)
        else:
            await self._backlog.give_up(change)

    async def _finish(self, change: Change, etag: str, sent: Mapping[str, str]) -> None:
        wanted = sent

        async def apply() -> None:
            nonlocal wanted
            wanted = self._metadata(change)
            await self._landed(change, etag)

        with self._backlog.finishing():
            self._keep(change, etag, await self._backlog.done(change, etag, apply))
            if wanted != sent:
                await self._restate(change, etag, sent, wanted)

    async def _found(self, change: Change) -> str | None:
        """The ETag of the object if it is what we meant to write, else None."""
        try:
            info = await self._store.head(change.key)
        except NotFoundError:
            return None
        is_ours = change.is_marker or info.metadata.get(MARK) == change.token  # one marker is as good as another
        return info.etag if is_ours and info.size == change.size else None

    async def _send(self, change: Change, metadata: Mapping[str, str]) -> str | None:
        """Upload the content; the ETag, None if it was withdrawn meanwhile."""
        condition = self._backlog.pending.current(change).condition if self._conditional else ANY
        marks = {MARK: change.token} if change.token else {}
        options = replace(
            self._options,
            content_type=content_type(change.key),
            metadata={**self._options.metadata, **metadata, **marks},
        )
        if change.size <= self._part_sizes.size(1):
            async with self._parts, self._memory.held(change.size):
                body = memoryview(await self._backlog.body(change, Range(0, change.size)))
                return await self._store.put(change.key, body, options=options, condition=condition)

        return await self._send_parts(change, options, condition)

    async def _send_parts(self, change: Change, options: PutOptions, condition: Condition) -> str | None:
        spans, arrived = self._part_sizes.cut(change.size), self._backlog.parts

        def is_wanted() -> bool:
            return self._backlog.pending.is_wanted(change)

        async def send(upload: Upload, number: int, span: Range) -> Part | None:
            async with self._parts, self._memory.held(span.size):
                if not is_wanted():
                    return None
                body = memoryview(await self._backlog.body(change, span))
                part = await self._uploads.upload_part(upload, number, body)
            arrived[change.number] = (arrived[change.number][0] + 1, len(spans))
            return part

        arrived[change.number] = (0, len(spans))
        try:
            return await self._uploads.in_parts(
                change.key,
                spans,
                send,
                at_once=PARTS_AT_ONCE,
                options=options,
                condition=condition,
                is_wanted=is_wanted,
            )
        finally:
            del arrived[change.number]
