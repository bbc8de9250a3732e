"""The lifecycle commands of one mount, composed: what `lazyfs.daemon` puts on the control socket."""

from __future__ import annotations

import os
from typing import Any

import trio

from lazyfs.cache.tiered import TieredCache
from lazyfs.control.tasks import Tasks
from lazyfs.index.database import Index
from lazyfs.lifecycle.entries import Entries
from lazyfs.lifecycle.preload import Preloads
from lazyfs.lifecycle.refresh import Refreshes
from lazyfs.lifecycle.release import Releases
from lazyfs.lifecycle.report import Reports
from lazyfs.lifecycle.usage import Usage
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.facts import FactsOf
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.filesystem import FileSystem
from lazyfs.vfs.releaser import Releaser


class Lifecycle:
    """The verbs for `filesystem`, which tells the same facts as extended attributes from now on. Tasks run in
    `nursery`."""

    def __init__(
        self,
        filesystem: FileSystem,
        *,
        index: Index,
        fetcher: Fetcher,
        cache: TieredCache,
        backlog: Backlog | None,
        nursery: trio.Nursery,
    ) -> None:
        namespace = filesystem.namespace
        facts = FactsOf(
            namespace=namespace,
            cache=cache,
            fetcher=fetcher,
            handles=filesystem.handles,
            bound=filesystem.versions.bound,
            backlog=backlog,
        )
        filesystem.xattrs.facts = facts
        tasks = Tasks(name=str(os.getpid()), nursery=nursery)
        self._parts = (
            tasks,
            Entries(namespace=namespace, index=index, facts=facts),
            Usage(namespace=namespace, index=index, facts=facts),
            Releases(Releaser(namespace=namespace, facts=facts, fetcher=fetcher, cache=cache)),
            Refreshes(namespace=namespace, index=index, handles=filesystem.handles, backlog=backlog, tasks=tasks),
            Reports(namespace=namespace, index=index, fetcher=fetcher, accounting=filesystem.accounting),
            Preloads(namespace=namespace, index=index, fetcher=fetcher, disk=cache.disk, tasks=tasks),
        )

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers."""
        return {name: verb for part in self._parts for name, verb in part.verbs().items()}
