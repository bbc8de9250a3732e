"""Preload: bring every object of the mount into the SSD tier while nobody waits for it.

Promises to give way to readers in all that is scarce (slots, memory), to end before it evicts what it has brought, and
to go on after an object that fails. What is there already, or comes with a reader meanwhile, is not fetched again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import trio

from lazyfs.cache.disk import DiskTier
from lazyfs.core.errors import LazyfsError, StaleError, StaleInodeError
from lazyfs.core.types import ROOT_INO, Kind, ObjectId
from lazyfs.index.base import is_archived
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.namespace import Namespace

log = logging.getLogger(__name__)

BATCH = 256
"""Objects that are looked up in the SSD tier at a time: one hop to a thread for all."""
JOBS = 64
"""Objects under way at a time; how many requests are is for the slots to say."""
PASSES = 3
"""What did not come to the disk in one pass (too much waited to be written, a request failed) is tried in the next."""
GIVE_UP_AFTER = 16
"""Failures in a row: it is not the objects then."""
_PAGE = 512
_DISK_POLL_S = 1.0


@dataclass(slots=True)
class PreloadProgress:
    """How far a preload is. `state` is waiting, running, done, full or failed. Of this pass: `files` and `bytes` that
    it found on the disk or brought there, `failures` to fetch an object; `error` is the last one's reason."""

    state: str = "waiting"
    files: int = 0
    bytes: int = 0
    failures: int = 0
    error: str = ""


class Preloader:
    """Brings the objects that `namespace` knows to `disk`, by way of `fetcher`, in the order of their names."""

    def __init__(self, *, namespace: Namespace, fetcher: Fetcher, disk: DiskTier) -> None:
        self.progress = PreloadProgress()
        self._namespace = namespace
        self._fetcher = fetcher
        self._disk = disk
        self._fetched = False
        self._failures_in_a_row = 0

    async def run(self) -> None:
        """Return when everything is there, when the tier is full, or when nothing can be fetched."""
        progress = self.progress
        progress.state = "running"
        for _ in range(PASSES):
            progress.files = progress.bytes = progress.failures = 0
            self._fetched = False
            await self._pass()
            await self._disk.written()  # or the next pass would not find it there
            if progress.state != "running" or not self._fetched:
                break
        if progress.state == "running":
            progress.state = "failed" if progress.failures else "done"
        log.info("preload: %s, %d files, %d bytes, %d failures %s",
                 progress.state, progress.files, progress.bytes, progress.failures, progress.error)  # fmt: skip

    async def _pass(self) -> None:
        jobs = trio.Semaphore(JOBS)
        files, room = self._files(), self._disk.limit_bytes
        async with trio.open_nursery() as nursery:
            while self.progress.state == "running" and (batch := list(islice(files, BATCH))):
                while not self._disk.is_on:  # noqa: ASYNC110 - it is on again by the clock, which nobody tells
                    await trio.sleep(_DISK_POLL_S)
                wanted = [(oid, self._fetcher.blocks(size)) for oid, size in batch]
                for (oid, size), missing in zip(batch, await self._disk.missing(wanted), strict=True):
                    room -= size
                    if room < 0:
                        self.progress.state = "full"
                    if self.progress.state != "running":
                        return
                    if missing:
                        await jobs.acquire()
                        nursery.start_soon(self._fetch, oid, size, missing, jobs)
                    else:
                        self._note(size)

    async def _fetch(self, oid: ObjectId, size: int, blocks: list[int], jobs: trio.Semaphore) -> None:
        try:
            await self._fetcher.preload(oid, size, blocks)
        except StaleError:
            pass  # it was replaced or deleted, and the namespace has been told
        except LazyfsError as error:
            self._fail(oid, error)
        else:
            self._fetched = True
            self._failures_in_a_row = 0
            self._note(size)
        finally:
            jobs.release()

    def _note(self, size: int) -> None:
        self.progress.files += 1
        self.progress.bytes += size

    def _fail(self, oid: ObjectId, error: LazyfsError) -> None:
        if not self.progress.failures:
            log.warning("preload of %r: %s; going on with the rest", oid.key, error)
        self.progress.failures += 1
        self.progress.error = str(error)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= GIVE_UP_AFTER:
            self.progress.state = "failed"

    def _files(self) -> Iterator[tuple[ObjectId, int]]:
        """What can be fetched, directory by directory in the order of names; reads the index as it goes."""
        above = [(ROOT_INO, "")]
        while above:
            parent, after = above.pop()
            page = self._namespace.children(parent, after=after, limit=_PAGE)
            try:
                prefix = self._namespace.key(self._namespace.node(parent))
            except StaleInodeError:
                continue  # the directory went meanwhile
            if len(page) == _PAGE:
                above.append((parent, page[-1].entry))
            above += [(node.ino, "") for node in reversed(page) if node.kind is Kind.DIRECTORY]
            for node in page:
                if node.kind is not Kind.DIRECTORY and node.size and not node.is_local and not is_archived(node):
                    yield ObjectId(prefix + node.entry, node.etag), node.size
