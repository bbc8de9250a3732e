"""Preload: bring objects into the SSD tier while nobody waits for them: all of the mount, or what somebody has named.

Promises to give way to readers in all that is scarce (slots, memory), to end before it evicts what it has brought, and
to go on after an object that fails. What is there already, or comes with a reader meanwhile, is not fetched again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import trio

from lazyfs.cache.disk import DiskTier
from lazyfs.core.errors import LazyfsError, StaleError, StaleInodeError
from lazyfs.core.ranges import RangeSpec, block_range, block_runs
from lazyfs.core.types import ROOT_INO, Kind, ObjectId
from lazyfs.index.base import Node, is_archived
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.namespace import Namespace

log = logging.getLogger(__name__)

BATCH = 256
"""Objects that are looked up in the SSD tier at a time: one hop to a thread for all."""
JOBS = 64
"""Objects under way at a time, if nobody says how many; how many requests are is for the slots to say."""
PASSES = 3
"""What did not come to the disk in one pass (too much waited to be written, a request failed) is tried in the next."""
GIVE_UP_AFTER = 16
"""Failures in a row: it is not the objects then."""
_PAGE = 512
_TOLD_FAILURES = 10_000
"""Keys that failed, of which the reason is remembered: some megabytes. The others are counted."""
_DISK_POLL_S = 1.0

Fail: TypeAlias = Callable[[str, str], None]
"""Hears of a key that could not be brought, and why."""


@dataclass(slots=True)
class PreloadProgress:
    """How far a preload is. `state` is waiting, running, done, full or failed. Of this pass: `files` and `bytes` that
    it found on the disk or brought there, `failures` to fetch an object; `error` is the last one's reason. The totals
    are known if they were asked for."""

    state: str = "waiting"
    files: int = 0
    bytes: int = 0
    failures: int = 0
    error: str = ""
    total_files: int | None = None
    total_bytes: int | None = None


class _Wanted(NamedTuple):
    """What is to come of an object: blocks in runs that lie apart, `bytes` together."""

    oid: ObjectId
    size: int
    runs: list[range]
    bytes: int


def _no_matter(_key: str, _reason: str) -> None:
    """For who only counts."""


class Preloader:
    """Brings objects to `disk`, by way of `fetcher`: those of the files `inos`, and of all below the directories among
    them, one after the other. Of directories what `namespace` knows, in the order of names; with `asks` what was never
    listed is listed. Of each file what `ranges` name of it, all if there are none; `jobs` files are under way at a
    time. With `pins` the disk keeps what is there, of which `ranges` must be none. `fail` hears of each key that could
    not be brought, and why.
    """

    def __init__(
        self,
        *,
        namespace: Namespace,
        fetcher: Fetcher,
        disk: DiskTier,
        inos: Sequence[int] = (ROOT_INO,),
        asks: bool = False,
        ranges: Sequence[RangeSpec] = (),
        jobs: int | None = None,
        pins: bool = False,
        fail: Fail = _no_matter,
    ) -> None:
        self.progress = PreloadProgress()
        self._ranges = ranges
        self._jobs = jobs
        self._pins = pins
        self._inos = inos
        self._asks = asks
        self._fail_of = fail
        self._failed: dict[str, str] = {}
        self._namespace = namespace
        self._fetcher = fetcher
        self._disk = disk
        self._fetched = False
        self._failures_in_a_row = 0

    async def count(self) -> None:
        """Find out how much there is to do. StoreError."""
        progress, files = self.progress, self._files(_no_matter)
        progress.total_files = progress.total_bytes = 0
        while batch := await files.batch():
            wanted = [self._wanted(oid, size) for oid, size in batch]
            progress.total_files += len(wanted)
            progress.total_bytes += sum(one.bytes for one in wanted)

    def _files(self, fail: Fail) -> _Files:
        return _Files(self._namespace, self._inos, asks=self._asks, fail=fail)

    async def run(self) -> None:
        """Return when everything is there, when the tier is full, or when nothing can be fetched. StoreError if a
        directory cannot be listed."""
        progress = self.progress
        progress.state = "running"
        for _ in range(PASSES):
            progress.files = progress.bytes = progress.failures = 0
            self._failed.clear()
            self._fetched = False
            await self._pass()
            await self._disk.written()  # or the next pass would not find it there
            if progress.state != "running" or not self._fetched:
                break
        if self._pins and self._fetched and progress.state == "running":
            self._note_failure("(all)", "what was brought went again before it could be pinned: the cache is too small")
        if progress.state == "running":
            progress.state = "failed" if progress.failures else "done"
        for key, reason in self._failed.items():
            self._fail_of(key, reason)
        log.info("preload: %s, %d files, %d bytes, %d failures %s",
                 progress.state, progress.files, progress.bytes, progress.failures, progress.error)  # fmt: skip

    def _wanted(self, oid: ObjectId, size: int) -> _Wanted:
        runs = [self._fetcher.blocks(size)]
        if self._ranges:
            runs = block_runs(self._ranges, size, self._fetcher.block_size)
        return _Wanted(oid, size, runs, sum(self._bytes(run, size) for run in runs))

    def _bytes(self, run: range, size: int) -> int:
        return block_range(run.stop - 1, self._fetcher.block_size, size).stop - run.start * self._fetcher.block_size

    async def _pass(self) -> None:
        jobs = trio.Semaphore(self._jobs or JOBS)
        files, room = self._files(self._note_failure), self._disk.limit_bytes
        async with trio.open_nursery() as nursery:
            while self.progress.state == "running" and (batch := await files.batch()):
                while not self._disk.is_on:  # noqa: ASYNC110 - it is on again by the clock, which nobody tells
                    await trio.sleep(_DISK_POLL_S)
                wanted = [self._wanted(oid, size) for oid, size in batch]
                here = []
                for one, missing in zip(wanted, await self._missing(wanted), strict=True):
                    room -= one.bytes
                    if room < 0:
                        self.progress.state = "full"
                    if self.progress.state != "running":
                        return
                    if missing:
                        await jobs.acquire()
                        nursery.start_soon(self._fetch, one, missing, jobs)
                    else:
                        here.append(one)
                await self._found(here)

    async def _missing(self, wanted: Sequence[_Wanted]) -> list[list[int]]:
        """Of each, the blocks that the disk does not have."""
        answers = iter(await self._disk.missing([(one.oid, run) for one in wanted for run in one.runs]))
        return [[block for _ in one.runs for block in next(answers)] for one in wanted]

    async def _found(self, here: Sequence[_Wanted]) -> None:
        """These are on the disk."""
        if self._pins and here:
            wanted = [(one.oid, len(self._fetcher.blocks(one.size))) for one in here]
            if not await self._disk.pin(wanted):
                self.progress.state = "full"
                return
        for one in here:
            self._note(one.bytes)

    async def _fetch(self, one: _Wanted, blocks: list[int], jobs: trio.Semaphore) -> None:
        try:
            await self._fetcher.preload(one.oid, one.size, blocks)
        except StaleError:
            pass  # it was replaced or deleted, and the namespace has been told
        except LazyfsError as error:
            self._fail(one.oid, error)
        else:
            self._fetched = True
            self._failures_in_a_row = 0
            self._note(one.bytes)
        finally:
            jobs.release()

    def _note(self, size: int) -> None:
        self.progress.files += 1
        self.progress.bytes += size

    def _fail(self, oid: ObjectId, error: LazyfsError) -> None:
        if not self.progress.failures:
            log.warning("preload of %r: %s; going on with the rest", oid.key, error)
        self._note_failure(oid.key, str(error))
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= GIVE_UP_AFTER:
            self.progress.state = "failed"

    def _note_failure(self, key: str, reason: str) -> None:
        self.progress.failures += 1
        self.progress.error = reason
        if len(self._failed) < _TOLD_FAILURES:
            self._failed[key] = reason


class _Files:
    """What can be fetched of files and of directories with all below them, which is told directory by directory in the
    order of names; reads the index as it goes. With `asks` a directory that was never listed is listed."""

    def __init__(self, namespace: Namespace, inos: Iterable[int], *, asks: bool, fail: Fail) -> None:
        self._namespace = namespace
        self._inos = iter(inos)
        self._asks = asks
        self._fail = fail
        self._above: list[tuple[int, str]] = []
        self._ready: deque[tuple[ObjectId, int]] = deque()

    async def batch(self) -> list[tuple[ObjectId, int]]:
        """The next BATCH, fewer only at the end. StoreError."""
        while len(self._ready) < BATCH and await self._read_on():
            await trio.lowlevel.checkpoint()
        return [self._ready.popleft() for _ in range(min(BATCH, len(self._ready)))]

    async def _read_on(self) -> bool:
        if self._above:
            await self._read_directory(*self._above.pop())
            return True
        ino = next(self._inos, None)
        if ino is None:
            return False
        try:
            node = self._namespace.node(ino)
            if node.kind is Kind.DIRECTORY:
                self._above.append((ino, ""))
            elif is_archived(node):
                self._fail(self._namespace.key(node), f"in storage class {node.storage_class}; restore it first")
            else:
                self._take(node, self._namespace.key(node))
        except StaleInodeError as error:
            self._fail(f"({error})", "was replaced or deleted meanwhile")
        return True

    async def _read_directory(self, parent: int, after: str) -> None:
        try:
            if self._asks and not after and self._namespace.directory(parent).listed_ns is None:
                await self._namespace.ensure_listed(parent)
            prefix = self._namespace.key(self._namespace.node(parent))
        except StaleInodeError:
            return  # the directory went meanwhile
        page = self._namespace.children(parent, after=after, limit=_PAGE)
        if len(page) == _PAGE:
            self._above.append((parent, page[-1].entry))
        self._above += [(node.ino, "") for node in reversed(page) if node.kind is Kind.DIRECTORY]
        for node in page:
            if node.kind is not Kind.DIRECTORY and not is_archived(node):
                self._take(node, prefix + node.entry)

    def _take(self, node: Node, key: str) -> None:
        if node.size and not node.is_local:
            self._ready.append((ObjectId(key, node.etag), node.size))
