"""`lazyfs preload`: a list of paths comes in pieces, is looked up piece by piece, and becomes a task.

Promises that the order of the list is kept, that a path which means nothing is told with its line and the rest goes on,
and that a list costs eight bytes a file: it is kept as inode numbers, each of which is one version of one object.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lazyfs.cache.disk import DiskTier
from lazyfs.control.tasks import Task, Tasks
from lazyfs.core.errors import ControlError, LazyfsError
from lazyfs.index.database import Index
from lazyfs.lifecycle.entries import PAGE, text
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.preloader import Preloader
from lazyfs.vfs.walking import Walk

MAX_LISTS = 8
"""Lists that are being told at a time; of more, the oldest was left by a client that is gone."""
MAX_LISTED = 4_000_000
"""Paths of a list: 32 MB."""


class Preloads:
    """Lists of paths, and the tasks that bring them to `disk`."""

    def __init__(
        self, *, namespace: Namespace, index: Index, fetcher: Fetcher, disk: DiskTier | None, tasks: Tasks
    ) -> None:
        self._namespace = namespace
        self._index = index
        self._fetcher = fetcher
        self._disk = disk
        self._tasks = tasks
        self._numbers = itertools.count(1)
        self._lists: dict[int, array[int]] = {}

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers."""
        return {"list": self.list, "preload": self.preload}

    async def list(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Add `items`, pairs of a line and a path, to `list`, or to a new one. Its number, and the `bad` lines with the
        reason. ControlError."""
        number, inos = self._list(arguments.get("list"))
        bad = []
        for line, path in _items(arguments.get("items")):
            try:
                if not await self._add(path, inos):
                    bad.append((line, f"{path}: nothing matches"))
            except ControlError:
                raise
            except LazyfsError as error:
                bad.append((line, str(error)))
        return {"list": number, "bad": bad}

    async def preload(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Begin to bring what `list` names to the disk. ControlError."""
        number = arguments.get("list")
        if not isinstance(number, int) or number not in self._lists:
            raise ControlError("there is no such list (any more)")
        if self._disk is None:
            raise ControlError("this mount has no cache directory (--cache-dir none) that could keep what is preloaded")

        def fail(key: str, reason: str) -> None:
            task.fail(key, reason)

        preloader = Preloader(
            namespace=self._namespace,
            fetcher=self._fetcher,
            disk=self._disk,
            inos=self._lists.pop(number),
            asks=True,
            fail=fail,
        )
        progress = preloader.progress

        async def work(_task: Task) -> None:
            await preloader.count()
            await preloader.run()
            if progress.state == "full":
                raise LazyfsError("the cache directory's --cache-size is used up")
            if progress.state != "done":
                raise LazyfsError(f"{progress.failures:,} files could not be fetched: {progress.error}")

        task = self._tasks.start("preload", text(arguments, "about"), work, lambda: asdict(progress))
        return task.told()

    def _list(self, number: object) -> tuple[int, array[int]]:
        if number is None:
            while len(self._lists) >= MAX_LISTS:
                del self._lists[next(iter(self._lists))]
            number = next(self._numbers)
            self._lists[number] = array("q")
        if not isinstance(number, int) or number not in self._lists:
            raise ControlError("there is no such list (any more)")
        return number, self._lists[number]

    async def _add(self, path: str, inos: array[int]) -> bool:
        """Add what `path` means, files and directories; whether that is anything."""
        walk = Walk(self._namespace, self._index, path, depth=0, asks=True)
        after: str | None = ""
        found = False
        while after is not None:
            page = await walk.page(after, limit=PAGE)
            if len(inos) + len(page.entries) > MAX_LISTED:
                raise ControlError(f"a list may have {MAX_LISTED:,} files; preload it in parts")
            inos.extend(entry.node.ino for entry in page.entries)
            found, after = found or bool(page.entries), page.after
        return found


def _items(value: object) -> Sequence[tuple[int, str]]:
    if not isinstance(value, list):
        raise ControlError("items must be a list")
    items = []
    for item in value:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], int) and isinstance(item[1], str)):
            raise ControlError("an item is a line and a path")
        items.append((item[0], item[1]))
    return items
