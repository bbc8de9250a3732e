"""Brings the whole bucket's listing into the index, behind the mount's back.

Promises that what it applied stays true of the bucket at the time it was listed, and that the mount is right
without it: a directory that it has not reached is listed on demand. Never holds more than one page in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lazyfs.core.listing import PageFacts, slice_of_directory, slices_of_keys
from lazyfs.core.stats import Stats
from lazyfs.index.base import Change
from lazyfs.index.database import Index
from lazyfs.store.base import Store


@dataclass(slots=True)
class ImportProgress:
    """What `status` shows. `state` is one of waiting, running, done, failed."""

    state: str = "waiting"
    objects: int = 0
    pages: int = 0
    started_s: float = 0.0
    finished_s: float | None = None
    error: str = ""


class Importer:
    """Lists everything below the mounted prefix, or one directory, and makes the index agree."""

    def __init__(
        self,
        *,
        store: Store,
        index: Index,
        root: str,
        clock_ns: Callable[[], int],
        on_changes: Callable[[list[Change]], None],
        on_skipped: Callable[[list[str]], None],
        stats: Stats,
    ) -> None:
        self._store = store
        self._index = index
        self._root = root
        self._clock_ns = clock_ns
        self._on_changes = on_changes
        self._on_skipped = on_skipped
        self._stats = stats
        self.progress = ImportProgress()

    async def import_all(self) -> None:
        """Make the index agree with the whole bucket. StoreError leaves what was applied so far, which is true."""
        progress = self.progress
        progress.state, progress.started_s = "running", self._clock_ns() / 1e9
        try:
            await self._import_keys()
        except BaseException as error:
            progress.state, progress.error = "failed", str(error)
            raise
        progress.state, progress.finished_s = "done", self._clock_ns() / 1e9

    async def _import_keys(self) -> None:
        began_ns = self._clock_ns()
        after, token = "", None
        with self._index.listing() as listing:
            while True:
                page_ns = self._clock_ns()
                page = await self._store.list_page(self._root, token=token)
                last = page.next_token is None
                facts = slices_of_keys(page.objects, root=self._root, start="", after=after, last=last)
                applied = await self._index.apply_page(facts, listing, page_ns=page_ns, began_ns=began_ns)
                self._on_changes(applied.changes)
                self._on_skipped(facts.skipped)
                self.progress.objects += len(page.objects)
                self.progress.pages += 1
                if last:
                    return
                after = page.objects[-1].key[len(self._root) :] if page.objects else after
                token = page.next_token

    async def list_directory(self, path: str) -> None:
        """Make the index agree with one directory (path below the mounted prefix, empty or ending in `/`)."""
        began_ns = self._clock_ns()
        after, token = "", None
        with self._index.listing() as listing:
            while True:
                page_ns = self._clock_ns()
                page = await self._store.list_page(self._root + path, delimiter="/", token=token)
                last = page.next_token is None
                piece, skipped = slice_of_directory(
                    path, page.objects, page.prefixes, root=self._root, after=after, last=last
                )
                facts = PageFacts([piece], [path] if last else [], skipped)
                applied = await self._index.apply_page(facts, listing, page_ns=page_ns, began_ns=began_ns)
                self._on_changes(applied.changes)
                if last:
                    return
                after, token = piece.upto or after, page.next_token
