"""`lazyfs preload` and `pin`: a list of paths comes in pieces, is looked up piece by piece, and becomes a task.

Promises that the order of the list is kept, that a path which means nothing is told with its line and the rest goes on,
and that a list costs eight bytes a file: it is kept as inode numbers, each of which is one version of one object.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lazyfs.cache.disk import PIN_FRACTION, DiskTier
from lazyfs.control.tasks import Task, Tasks
from lazyfs.core.errors import ControlError, LazyfsError
from lazyfs.core.ranges import RangeSpec, parse_range
from lazyfs.index.database import Index
from lazyfs.lifecycle.entries import PAGE, text
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.preloader import Preloader
from lazyfs.vfs.walking import Walk

MAX_LISTS = 8
"""Lists that are being told at a time; of more, the oldest was left by a client that is gone."""
MAX_RANGES = 100
MAX_JOBS = 1024
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
        """Begin to bring what `list` names to the disk: of each file the `ranges`, all without; `jobs` files at a time;
        what is to `pin` is then kept there. ControlError, UsageError."""
        number, pins = arguments.get("list"), bool(arguments.get("pin"))
        if not isinstance(number, int) or number not in self._lists:
            raise ControlError("there is no such list (any more)")
        ranges, jobs = _ranges(arguments.get("ranges")), _jobs(arguments.get("jobs"))
        if pins and ranges:
            raise ControlError("only whole files are pinned")
        if self._disk is None:
            raise ControlError("this mount has no cache directory (--cache-dir none) that could keep what is preloaded")

        root = self._namespace.root

        def fail(key: str, reason: str) -> None:
            task.fail("/" + key[len(root) :] if key.startswith(root) else key, reason)

        preloader = Preloader(
            namespace=self._namespace,
            fetcher=self._fetcher,
            disk=self._disk,
            inos=self._lists.pop(number),
            asks=True,
            ranges=ranges,
            jobs=jobs,
            pins=pins,
            fail=fail,
        )
        progress = preloader.progress

        async def work(_task: Task) -> None:
            await preloader.count()
            await preloader.run()
            if progress.state == "full":
                most = f"only {PIN_FRACTION:.0%} of it may be pinned" if pins else "the rest is not brought"
                raise LazyfsError(f"the cache directory's --cache-size is used up; {most}")
            if progress.state != "done":
                raise LazyfsError(f"{progress.failures:,} files could not be fetched: {progress.error}")

        task = self._tasks.start("pin" if pins else "preload", text(arguments, "about"), work, lambda: asdict(progress))
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


def _ranges(value: object) -> Sequence[RangeSpec]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value) or len(value) > MAX_RANGES:
        raise ControlError(f"ranges must be a list of at most {MAX_RANGES} texts")
    return [parse_range(one) for one in value]


def _jobs(value: object) -> int | None:
    if value is None or (isinstance(value, int) and 1 <= value <= MAX_JOBS):
        return value
    raise ControlError(f"jobs must be a number from 1 to {MAX_JOBS}")


def _items(value: object) -> Sequence[tuple[int, str]]:
    if not isinstance(value, list):
        raise ControlError("items must be a list")
    items = []
    for item in value:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], int) and isinstance(item[1], str)):
            raise ControlError("an item is a line and a path")
        items.append((item[0], item[1]))
    return items
