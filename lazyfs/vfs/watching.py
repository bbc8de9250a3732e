"""Follows what the bucket's server tells of changes, so that the namespace need not wait for leases to end.

Promises that a change that was told is asked about at once, and that whatever may have been missed, because a stream
was lost, is caught up with by a refresh that begins after the next stream did. Believes nothing but that a key is
worth asking about: events that come twice, late or in another order cost requests and do no harm.

When full: a batch is applied before the next is taken; what waits meanwhile waits in the stream, or in the queue.
"""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

import trio

from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import LazyfsError, StoreError, TransientStoreError
from lazyfs.core.stats import Stats
from lazyfs.vfs.namespace import Namespace

if TYPE_CHECKING:  # the module brings the SDK, which takes 0.1 s to import, and few mounts need it
    from lazyfs.store.events import EventSource, EventStream

log = logging.getLogger(__name__)

CHECKS = 8
"""Changed names that are asked about at a time; each costs two requests, and programs come first."""
HEALTHY_S = 60.0
"""A stream that lived this long was a good one: the next is tried at once."""


class Watcher:
    """Keeps `namespace` in step with `source`.

    `backoff` says how long to wait before the next stream; its deadline holds only until the first stream is there.
    Counts `events.applied` (keys asked about), `events.lost` (streams) and `events.refreshes`.
    """

    def __init__(
        self,
        *,
        source: EventSource,
        namespace: Namespace,
        backoff: Backoff,
        stats: Stats,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._source = source
        self._namespace = namespace
        self._backoff = backoff
        self._stats = stats
        self._random = random
        self._connected = False
        self._missed, self._catch_up = trio.open_memory_channel[None](1)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow for ever; started once nothing can be missed any more. StoreError if no stream comes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh_when_missed)
            error = await self._listen_on(task_status)
            nursery.cancel_scope.cancel()
        raise error

    async def _listen_on(self, task_status: trio.TaskStatus[None]) -> StoreError:
        """One stream after another; why the first would not come."""
        began_s, attempt = trio.current_time(), 0
        while True:
            tried_s = trio.current_time()
            error = await self._listen(task_status)
            now_s = trio.current_time()
            if not self._connected and not isinstance(error, TransientStoreError):
                return error
            attempt = 1 if self._connected and now_s - tried_s >= HEALTHY_S else attempt + 1
            delay_s = self._backoff.delay_s(attempt, 0.0 if self._connected else now_s - began_s, self._random)
            if delay_s is None and not self._connected:
                return error
            delay_s = self._backoff.cap_s if delay_s is None else delay_s
            self._stats.add("events.lost")
            log.info("no events (%s); listening again in %.1f s", error, delay_s)
            await trio.sleep(delay_s)

    async def _listen(self, task_status: trio.TaskStatus[None]) -> StoreError:
        """Follow one stream; why it ended."""
        try:
            async with self._source.listen() as stream:
                self._namespace.missed()
                if self._connected:
                    self._miss()
                else:
                    self._connected = True
                    task_status.started()
                await self._follow(stream)
        except* StoreError as group:
            error = _first(group)
        return error

    async def _follow(self, stream: EventStream) -> NoReturn:
        while True:
            batch = await stream.next()
            await self._apply(iter(batch.keys))
            await stream.applied(batch)

    async def _apply(self, keys: Iterator[str]) -> None:
        """Ask about each key, a few at a time. The first transient error, once all are done: the rest is refreshed."""
        errors: list[StoreError] = []

        async def work() -> None:
            for key in keys:
                try:
                    await self._namespace.learn(key)
                except TransientStoreError as error:
                    errors.append(error)
                    return
                except LazyfsError as error:  # it will be no better the next time; who asks for the name learns it
                    log.info("a changed object could not be asked about: %s", error)
                self._stats.add("events.applied")

        async with trio.open_nursery() as nursery:
            for _ in range(CHECKS):
                nursery.start_soon(work)
        if errors:
            raise errors[0]

    def _miss(self) -> None:
        """Something may have been missed; one refresh that has not begun yet is enough for all of it."""
        try:
            self._missed.send_nowait(None)
        except trio.WouldBlock:
            return

    async def _refresh_when_missed(self) -> None:
        async for _ in self._catch_up:
            attempt = 1
            while not await self._refreshed():
                await trio.sleep(self._backoff.delay_s(attempt, 0.0, self._random) or self._backoff.cap_s)
                attempt += 1

    async def _refreshed(self) -> bool:
        self._stats.add("events.refreshes")
        try:
            await self._namespace.refresh()
        except LazyfsError as error:
            log.info("catching up with what events did not tell: %s", error)
            return False
        return True


def _first(group: BaseExceptionGroup[StoreError]) -> StoreError:
    """The first error in a group of groups."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
