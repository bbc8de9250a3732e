"""A running mount: its parts, and what it answers on its control socket."""

from __future__ import annotations

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
from lazyfs.core.errors import ControlError
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
            "pending_uploads": len(backlog) if backlog is not None else 0,
            "write_back": None if backlog is None else _backlog_status(backlog),
            "spool": None if self.spool is None else {"used": self.spool.used_bytes, "limit": self.spool.limit_bytes},
            "connections": {"in_flight": self.slots.taken, "limit": self.slots.limit},
            "stats": dict(self.stats.snapshot()),
            "skipped_keys": self.namespace.skipped_keys,
            "endpoint_supports": asdict(self.store.capabilities),
            "session": self.session.name,
            "untuned": self.session.untuned,
            "metrics": self.metrics_url,
            "policy": {
                "metadata_ttl_s": config.cache.metadata_ttl_s,
                "conditional_put": self.filesystem.policy.conditional_put,
                "write_back": config.write.write_back,
                "fsync": config.write.fsync,
                "part_size": config.write.part_size,
                "no_overwrite": config.write.no_overwrite,
                "no_delete": config.write.no_delete,
            },
        }

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
