"""A running mount: its parts, and what it answers on its control socket."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio

from lazyfs.cache.disk import DiskTier
from lazyfs.cache.spool import Spool
from lazyfs.cache.tiered import TieredCache
from lazyfs.config import Config
from lazyfs.config.options import RELOADABLE
from lazyfs.core.errors import ControlError, LazyfsError
from lazyfs.core.stats import Stats
from lazyfs.fuse.session import Session
from lazyfs.index.database import Index
from lazyfs.index.exchange import OpenStore, export_snapshot
from lazyfs.lifecycle.verbs import Lifecycle
from lazyfs.store.remote import S3Store
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.filesystem import FileSystem
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.preloader import Preloader
from lazyfs.vfs.slots import Slots
from lazyfs.vfs.uploader import Uploader
from lazyfs.vfs.writeback import WriteBack

log = logging.getLogger(__name__)

MAX_TOLD_FAILURES = 100
"""Uploads that fail now, of which `lazyfs status` tells."""


@dataclass(slots=True)
class Mount:
    """The parts of a running mount, and the verbs of its control socket."""

    config: Config
    stats: Stats
    store: S3Store
    index: Index
    namespace: Namespace
    cache: TieredCache
    filesystem: FileSystem
    session: Session
    slots: Slots
    spool: Spool | None
    preloader: Preloader | None
    write_back: WriteBack | None
    uploader: Uploader | None
    lifecycle: Lifecycle
    stores: OpenStore
    """Opens any bucket of the mount's endpoint."""
    started_s: float
    metrics_url: str | None = None
    leave: trio.Event = field(default_factory=trio.Event)
    """Set when what is not uploaded yet shall be left to the next mount."""

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers, beside the lifecycle's."""
        return {
            "status": self.status,
            "export": self.export,
            "reload": self.reload,
            "leave_uploads": self.leave_uploads,
        }

    async def status(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        """What `lazyfs status` shows."""
        files, size = self.namespace.totals()
        disk = self.cache.disk
        config = self.config
        backlog = None if self.write_back is None else self.write_back.backlog
        return {
            "mountpoint": str(config.mount.mountpoint),
            "bucket": config.bucket.name,
            "prefix": config.bucket.prefix,
            "endpoint": config.bucket.endpoint_url,
            "pid": os.getpid(),
            "uptime_s": time.time() - self.started_s,
            "read_only": config.mount.read_only,
            "files": files,
            "bytes": size,
            "open_handles": len(self.filesystem.handles),
            "lost_and_found": self.filesystem.lost,
            "import": self.namespace.importer.progress.told(time.time()),
            "preload": None if self.preloader is None else asdict(self.preloader.progress),
            "cache": {
                "memory": {"used": self.cache.memory.used_bytes, "limit": self.cache.memory.budget_bytes},
                "disk": None if disk is None else _disk_status(disk, await disk.used_bytes()),
                "shared": None if self.cache.shared is None else self.cache.shared.status(),
            },
            "index": {"path": str(self.index.file), "trouble": self.index.trouble},
            "pending_uploads": len(backlog) if backlog is not None else 0,
            "write_back": None if backlog is None else _backlog_status(backlog),
            "spool": None if self.spool is None else {"used": self.spool.used_bytes, "limit": self.spool.limit_bytes},
            "connections": {"in_flight": self.slots.taken, "limit": self.slots.limit},
            "stats": dict(self.stats.snapshot()),
            "waits": {tier: waits.told() for tier, waits in self.stats.histograms("read.wait.").items()},
            "skipped_keys": self.namespace.skipped_keys,
            "endpoint_supports": asdict(self.store.capabilities),
            "session": self.session.name,
            "untuned": self.session.untuned,
            "metrics": self.metrics_url,
            "policy": {
                "metadata_ttl_s": self.namespace.leases.ttl_s,
                "log_level": logging.getLevelName(logging.getLogger("lazyfs").level).lower(),
                "conditional_put": self.filesystem.policy.conditional_put,
                "write_back": config.write.write_back,
                "fsync": config.write.fsync,
                "part_size": config.write.part_size,
                "no_overwrite": config.write.no_overwrite,
                "no_delete": config.write.no_delete,
            },
        }

    async def reload(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Change what can be changed while mounted: `given` has `metadata-ttl` and `log-level`, as a configuration has
        them. The policy in force then. UsageError."""
        texts = arguments.get("given")
        given = {str(name): str(text) for name, text in texts.items()} if isinstance(texts, dict) else {}
        values = {name: option.parse(given.pop(name)) for name, option in RELOADABLE.items() if name in given}
        if given or not values:
            raise ControlError(f"only {' and '.join(RELOADABLE)} can be changed while mounted")
        if "metadata-ttl" in values:
            self.namespace.leases.ttl_s = values["metadata-ttl"]
        if "log-level" in values:
            logging.getLogger("lazyfs").setLevel(values["log-level"].upper())
        log.info("changed while mounted: %s", texts)
        policy: dict[str, Any] = (await self.status({}))["policy"]
        return policy

    async def recover_index(self) -> None:
        """For as long as this runs: whenever the index had to begin anew, tell it what it can learn nowhere else, and
        have the bucket listed."""
        losses = 0
        while True:
            losses = await self.index.lost(losses)
            if self.write_back is not None:
                await self.write_back.show()
            self.namespace.missed()
            with contextlib.suppress(LazyfsError):  # what was not listed is listed when it is asked for
                await self.namespace.refresh()

    async def leave_uploads(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        """End without waiting for what is not uploaded yet, once unmounted; what is left then."""
        self.leave.set()
        return {"pending_uploads": 0 if self.write_back is None else len(self.write_back.backlog)}

    async def export(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Write a snapshot of the index to `to`, an absolute path or s3://BUCKET/KEY."""
        place = str(arguments.get("to", ""))
        if not place.startswith(("/", "s3://")):
            raise ControlError("export needs an absolute path or s3://BUCKET/KEY")
        if place.startswith("/") and Path(place).is_relative_to(self.config.mount.mountpoint):
            raise ControlError(f"{place} lies in the mount itself; write it to s3://BUCKET/KEY instead")
        return await export_snapshot(self.index.file, place, self.stores)


def _disk_status(disk: DiskTier, used_bytes: int) -> dict[str, Any]:
    return {"used": used_bytes, "limit": disk.limit_bytes, "on": disk.is_on, "gives_way": disk.gives_way}


def _backlog_status(backlog: Backlog) -> dict[str, Any]:
    failed = backlog.failing()
    return {
        "changes": len(backlog),
        "bytes": backlog.bytes,
        "oldest_s": backlog.oldest_s,
        "failed": failed[:MAX_TOLD_FAILURES],
        "failed_changes": len(failed),
    }
