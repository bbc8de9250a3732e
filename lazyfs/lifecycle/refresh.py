"""`lazyfs sync` and `lazyfs flush`: the bucket's news come here, and ours are waited for."""

from __future__ import annotations

import time
from typing import Any

from lazyfs.control.tasks import Task, Tasks
from lazyfs.core.errors import NoEntryError
from lazyfs.core.types import Kind
from lazyfs.index.base import Node
from lazyfs.index.database import Index
from lazyfs.lifecycle.entries import text
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.handles import Handles
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.walking import find

MAX_TOLD_FAILURES = 100


class Refreshes:
    """What is newer in the bucket, and what is newer here, below a path."""

    def __init__(
        self, *, namespace: Namespace, index: Index, handles: Handles, backlog: Backlog | None, tasks: Tasks
    ) -> None:
        self._namespace = namespace
        self._index = index
        self._handles = handles
        self._backlog = backlog
        self._tasks = tasks

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers."""
        return {"sync": self.sync, "pending": self.pending}

    async def sync(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Begin to make what is known of `path`, and of all below it, agree with the bucket. ControlError."""
        path = text(arguments, "path")
        work = self._sync_below(path) if path else self._sync_all
        told = self._all_progress if not path else dict
        return self._tasks.start("sync", path or "everything", work, told).told()

    async def pending(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What of `path`, and of all below it, the bucket does not have yet: how much is on its way, what of that has
        failed and why, and how many files programs have not closed. NoEntryError."""
        path = text(arguments, "path")
        key = self._namespace.root + path
        changes = size = 0
        failed: list[tuple[str, str]] = []
        for change in () if self._backlog is None else self._backlog.pending:
            if not _is_below(change.key, key, is_all=not path):
                continue
            changes += 1
            size += change.size if change.token else 0
            error = self._backlog.failures.get(change.number) if self._backlog is not None else None
            if error is not None and len(failed) < MAX_TOLD_FAILURES:
                failed.append((change.key, str(error)))
        opened = sum(self._is_written_below(key, is_all=not path))
        if not changes and not opened:
            await find(self._namespace, self._index, path, asks=True)
        return {"changes": changes, "bytes": size, "failed": failed, "open": opened}

    def _is_written_below(self, key: str, *, is_all: bool) -> list[bool]:
        """Of each file that is being written, whether it is below `key`."""
        writers = [file.writer for file in self._handles.files() if file.writer is not None and not file.deleted]
        return [_is_below(writer.key, key, is_all=is_all) for writer in writers if writer.is_dirty]

    async def _sync_all(self, _task: Task) -> None:
        self._namespace.missed()  # nor does it go on where an unfinished import was
        await self._namespace.refresh()

    def _all_progress(self) -> dict[str, Any]:
        return self._namespace.importer.progress.told(time.time())

    def _sync_below(self, path: str) -> Any:
        async def work(_task: Task) -> None:
            before = await self._known(path)
            await self._namespace.learn(self._namespace.root + path)
            after = await self._known(path)
            if after is None and before is None:
                raise NoEntryError(f"{path}: no such file or directory")
            if after is not None and after.kind is Kind.DIRECTORY:
                await self._namespace.importer.import_below(path + "/")

        return work

    async def _known(self, path: str) -> Node | None:
        try:
            return await find(self._namespace, self._index, path, asks=False)
        except NoEntryError:
            return None


def _is_below(key: str, above: str, *, is_all: bool) -> bool:
    return is_all or key == above or key.startswith(above + "/")
