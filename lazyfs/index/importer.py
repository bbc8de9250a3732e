"""Brings the whole bucket's listing into the index, behind the mount's back.

Promises that what it applied was true of the bucket when that page was asked for, and that the mount is right without
it: a directory that it has not reached is listed on demand. Several workers list different parts of the key space
(`core.keyspace` divides it); each holds one page in memory. A killed import goes on where it was.

Hard point: a directory across a cut is told in pieces. No piece alone can say that it is complete, or that it does not
exist; so those few are settled when all pieces are there (`_settle_cuts`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from lazyfs.core.errors import LazyfsError, StoreError, UnorderedListingError
from lazyfs.core.keyspace import KeySpace, Segment
from lazyfs.core.listing import Entry, PageFacts, Slice, ancestors, in_order, slice_of_directory, slices_of_keys
from lazyfs.core.types import ListPage, ObjectInfo
from lazyfs.index.base import Applied, Change
from lazyfs.index.database import Index
from lazyfs.store.base import Store

log = logging.getLogger(__name__)

PAGE = 1000
"""Keys that a LIST returns at the most; S3 has no larger page."""
CHECKPOINT_PAGES = 50
"""After so many pages the way that is left is written down, for a daemon that is killed."""
RESUMABLE_S = 3600.0
"""An unfinished import older than this begins anew: its first pages are too old to build on."""
IDLE_PAGES = 1000
"""Pages in a row that bring nothing new. S3 may give empty ones; a server that gives so many of them never ends."""
_STATE = "unfinished import"


@dataclass(slots=True)
class ImportProgress:
    """What `status` shows. `state` is one of waiting, running, done, failed; `pages` counts LIST requests."""

    state: str = "waiting"
    objects: int = 0
    directories: int = 0
    pages: int = 0
    started_s: float = 0.0
    finished_s: float | None = None
    error: str = ""

    def told(self, now_s: float) -> dict[str, object]:
        """As `lazyfs status` tells it; `rate` is objects a second."""
        seconds = (self.finished_s or now_s) - self.started_s if self.started_s else 0.0
        return {
            "state": self.state,
            "objects": self.objects,
            "directories": self.directories,
            "requests": self.pages,
            "rate": self.objects / seconds if seconds > 0 else 0.0,
            "elapsed_s": seconds,
            "error": self.error,
        }


class Importer:
    """Lists everything below the mounted prefix `root`, or one directory, and makes the index agree.

    `workers` is how many LIST requests go at a time. Where `sorted_keys` is False (S3 Express) nothing follows from
    the place of a key in a page: then the import goes directory by directory, and holds one directory a worker.
    """

    def __init__(
        self,
        *,
        store: Store,
        index: Index,
        root: str,
        workers: int,
        sorted_keys: bool,
        clock_ns: Callable[[], int],
        on_changes: Callable[[list[Change]], None],
        on_skipped: Callable[[list[str]], None],
    ) -> None:
        self._store = store
        self._index = index
        self._root = root
        self.workers = workers
        self._sorted_keys = sorted_keys
        self._clock_ns = clock_ns
        self._on_changes = on_changes
        self._on_skipped = on_skipped
        self.progress = ImportProgress()

    async def import_all(self, *, anew: bool = False) -> None:
        """Make the index agree with the whole bucket. On an error what was applied so far stays, and is true.

        `anew`: do not go on where an unfinished import was.

        Raises LazyfsError. The progress begins anew with each call.
        """
        if anew:
            await self._index.set_meta(_STATE, "")
        space, began_ns = self._resume()
        self.progress = ImportProgress("running", started_s=self._clock_ns() / 1e9)
        try:
            if self._sorted_keys:
                await self._import_in_order(space, began_ns)
            if not self._sorted_keys:
                await _Walk(self).run()
        except BaseException as error:
            self.progress.state, self.progress.error = "failed", str(error)
            raise
        self.progress.state, self.progress.finished_s = "done", self._clock_ns() / 1e9

    async def _import_in_order(self, space: KeySpace, began_ns: int) -> None:
        try:
            await _Run(self, space, began_ns).run()
            await self._settle_cuts(space, began_ns)
        except UnorderedListingError as error:
            self._distrust(error)
            self.progress.objects = self.progress.directories = 0
        await self._index.set_meta(_STATE, "")

    async def import_below(self, path: str) -> None:
        """Make the index agree with directory `path` (empty or ending in `/`) and all below it. LazyfsError; what was
        applied so far stays."""
        await _Walk(self, path).run()

    def _resume(self) -> tuple[KeySpace, int]:
        """What is left of an import that a killed daemon began, or all; and when that began."""
        now_ns = self._clock_ns()
        with contextlib.suppress(ValueError, TypeError, KeyError):
            state = json.loads(self._index.meta(_STATE) or "")
            if 0 <= now_ns - state["began_ns"] < RESUMABLE_S * 1e9:
                return KeySpace.load(state["segments"]), state["began_ns"]
        return KeySpace(), now_ns

    async def keep(self, space: KeySpace, began_ns: int) -> None:
        """Write down what is left to list."""
        await self._index.set_meta(_STATE, json.dumps({"began_ns": began_ns, "segments": space.dump()}))

    async def list_page(self, segment: Segment, *, began_ns: int) -> str | None:
        """List and apply the next page of `segment`; where it ended, None for the segment's end."""
        page_ns = self._clock_ns()
        with self._index.listing() as listing:
            page = await self._store.list_page(
                self._root, start_after=self._root + segment.cursor if segment.cursor else "", limit=PAGE
            )
            _check_order(page, after=self._root + segment.cursor if segment.cursor else "")
            facts, upto, count = _facts(page, root=self._root, segment=segment)
            applied = await self._index.apply_page(facts, listing, page_ns=page_ns, began_ns=began_ns)
        self.progress.objects += count
        self.progress.pages += 1
        self._tell(applied)
        self._on_skipped(facts.skipped)
        return upto

    async def _settle_cuts(self, space: KeySpace, began_ns: int) -> None:
        """Complete the directories that were told in pieces, and drop those of which no piece had anything."""
        across = sorted({directory for cut in space.cuts() for directory in ancestors(cut)})
        for directory in across[1:]:  # parents before their children; the root exists
            if self._index.find_directory(directory[:-1]) is None:
                await self._check_directory(directory)
        for directory in reversed(across[1:]):  # children before their parents
            ino = self._index.find_directory(directory[:-1])
            if ino is not None and self._index.is_empty(ino):
                await self._check_directory(directory)
        complete = PageFacts([], across, [])
        with self._index.listing() as listing:
            await self._index.apply_page(complete, listing, page_ns=began_ns, began_ns=began_ns)

    async def _check_directory(self, directory: str) -> None:
        """Ask whether a directory exists at all."""
        above, _, name = directory[:-1].rpartition("/")
        now_ns = self._clock_ns()
        with self._index.listing() as listing:
            page = await self._store.list_page(self._root + directory, limit=1)
            self.progress.pages += 1
            parent = self._index.find_directory(above)
            if parent is None:
                return
            found = [Entry(name + "/")] if page.objects else []
            self._tell(await self._index.apply_names(parent, (name + "/",), found, listing, now_ns=now_ns))

    async def list_directory(self, path: str, *, on_page: Callable[[str], None] = lambda _: None) -> list[str]:
        """Make the index agree with one directory (path below the mounted prefix, empty or ending in `/`).

        The paths of the directories in it. Where keys are sorted each page is applied when it is there, and `on_page`
        is called with the name of its last entry.
        """
        if self._sorted_keys:
            try:
                return await self._list_in_order(path, on_page)
            except UnorderedListingError as error:
                self._distrust(error)
        return await self._list_whole(path, on_page)

    def _distrust(self, error: UnorderedListingError) -> None:
        """From now on nothing follows from the place of a key in a page."""
        if self._sorted_keys:
            log.warning("%s: listing directory by directory, which is slower", error)
        self._sorted_keys = False

    async def _list_in_order(self, path: str, on_page: Callable[[str], None]) -> list[str]:
        began_ns = self._clock_ns()
        inner: list[str] = []
        pages, after, last = _Pages(self._store, self._root + path), "", False
        while not last:
            with self._index.listing() as listing:
                page_ns = self._clock_ns()
                page, last = await pages.next()
                self.progress.pages += 1
                pages.brought(len(page.objects) + len(page.prefixes))
                _check_order(page, after=self._root + path + after if after else "")
                piece, skipped = slice_of_directory(
                    path, page.objects, page.prefixes, root=self._root, after=after, last=last
                )
                facts = PageFacts([piece], [path] if last else [], skipped)
                applied = await self._index.apply_page(facts, listing, page_ns=page_ns, began_ns=began_ns)
            self._learnt(applied, path, piece, inner)
            after = piece.upto or after
            on_page(after)
        return inner

    async def _list_whole(self, path: str, on_page: Callable[[str], None]) -> list[str]:
        """As one slice, when all pages are there; what changed here meanwhile is not decided by any of them."""
        began_ns = self._clock_ns()
        inner: list[str] = []
        objects: dict[str, ObjectInfo] = {}
        prefixes: dict[str, None] = {}
        pages, last = _Pages(self._store, self._root + path), False
        with self._index.listing() as listing:
            while not last:
                page, last = await pages.next()
                self.progress.pages += 1
                known = len(objects) + len(prefixes)
                objects |= {info.key: info for info in page.objects}
                prefixes |= dict.fromkeys(page.prefixes)
                pages.brought(len(objects) + len(prefixes) - known)
            piece, skipped = slice_of_directory(path, objects.values(), prefixes, root=self._root, after="", last=True)
            facts = PageFacts([piece], [path], skipped)
            applied = await self._index.apply_page(facts, listing, page_ns=began_ns, began_ns=began_ns)
        self._learnt(applied, path, piece, inner)
        on_page("")
        return inner

    def _learnt(self, applied: Applied, path: str, piece: Slice, inner: list[str]) -> None:
        self._tell(applied)
        inner += [path + entry.name for entry in piece.entries if entry.is_dir]
        self.progress.objects += sum(not entry.is_dir for entry in piece.entries)

    def _tell(self, applied: Applied) -> None:
        self.progress.directories += applied.directories
        self._on_changes(applied.changes)


class _Pages:
    """The pages of one directory, in turn. StoreError when the endpoint goes round in circles."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._token: str | None = None
        self._idle = 0

    async def next(self) -> tuple[ListPage, bool]:
        """The next page, and whether it is the last one."""
        page = await self._store.list_page(self._prefix, delimiter="/", token=self._token, limit=PAGE)
        if page.next_token is not None and page.next_token == self._token:
            raise StoreError(f"LIST {self._prefix!r}: the endpoint gives the same page for ever")
        self._token = page.next_token
        return page, page.next_token is None

    def brought(self, news: int) -> None:
        """The page had so many entries that none before it had."""
        self._idle = 0 if news else self._idle + 1
        if self._idle > IDLE_PAGES:
            raise StoreError(f"LIST {self._prefix!r}: the endpoint gives pages without end, and nothing new in them")


class _Workers:
    """Several workers at one job. The first error of one stops them all, and is raised as itself."""

    def __init__(self, importer: Importer) -> None:
        self._importer = importer
        self._moved = trio.Event()
        """Set, and replaced, whenever something changed: somebody idle may find work."""
        self._errors: list[LazyfsError] = []

    async def run(self) -> None:
        """Do it all."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._importer.workers):
                nursery.start_soon(self._try, nursery.cancel_scope)
        if self._errors:
            raise self._errors[0]

    async def _try(self, scope: trio.CancelScope) -> None:
        try:
            await self._work()
        except LazyfsError as error:
            self._errors.append(error)
            scope.cancel()

    async def _work(self) -> None:
        raise AssertionError("each kind of import works in its own way")

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()


class _Walk(_Workers):
    """An import directory by directory, deepest first, so that what is still to do stays short."""

    def __init__(self, importer: Importer, path: str = "") -> None:
        super().__init__(importer)
        self._waiting = [path]
        self._busy = 0

    async def _work(self) -> None:
        while self._waiting or self._busy:
            if not self._waiting:
                await self._moved.wait()
                continue
            self._busy += 1
            try:
                self._waiting += await self._importer.list_directory(self._waiting.pop())
            finally:
                self._busy -= 1
                self._move()


class _Run(_Workers):
    """An import by key ranges."""

    def __init__(self, importer: Importer, space: KeySpace, began_ns: int) -> None:
        super().__init__(importer)
        self._space = space
        self._began_ns = began_ns
        self._pages = 0

    async def _work(self) -> None:
        while not self._space.done:
            segment = self._space.take()
            if segment is None:
                await self._moved.wait()
            else:
                await self._list(segment)

    async def _list(self, segment: Segment) -> None:
        while not segment.done:
            cursor = await self._importer.list_page(segment, began_ns=self._began_ns)
            self._space.advance(segment, cursor)
            self._move()
            self._pages += 1
            if self._pages % CHECKPOINT_PAGES == 0:
                await self._importer.keep(self._space, self._began_ns)


def _check_order(page: ListPage, *, after: str) -> None:
    if not in_order([info.key for info in page.objects], after=after) or not in_order(page.prefixes, after=after):
        raise UnorderedListingError("the endpoint does not list in the order of keys")


def _facts(page: ListPage, *, root: str, segment: Segment) -> tuple[PageFacts, str | None, int]:
    """What `page`, the next of `segment`, says; up to which key, None for the end of the key space; about how many.

    The segment may have been cut while the page was under way: what lies beyond its end is another's to tell.
    """
    objects = page.objects
    upto = None
    if page.next_token is not None:
        upto = objects[-1].key[len(root) :] if objects else segment.cursor
        if upto <= segment.cursor:
            raise StoreError("the endpoint's listing does not advance")
    if segment.stop is not None and (upto is None or upto >= segment.stop):
        upto = segment.stop
        objects = tuple(info for info in objects if info.key[len(root) :] <= upto)
    facts = slices_of_keys(objects, root=root, start=segment.start, after=segment.cursor, upto=upto)
    return facts, upto, len(objects)
