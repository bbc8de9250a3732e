"""What `lazyfs report` and `lazyfs top` ask: what the run was like so far, and which program reads and writes what.

Promises that an answer is short, and that asking is no request of the bucket and holds up no reader.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import trio

from lazyfs.core.beginning import FIRST_BYTES, FIRST_FILES
from lazyfs.core.directories import Read
from lazyfs.core.histogram import Histogram
from lazyfs.core.throughput import Throughput
from lazyfs.index.database import Index
from lazyfs.index.unread import unread_directories
from lazyfs.vfs.accounting import Accounting, Run
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.handles import FileHandle
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.tally import Account

HOTTEST = 10
"""Directories that are told."""
MAX_PROGRAMS = 64
"""That are told: those that did something last."""
MAX_FILES = 3
"""Of those that a program has open, which are told: those of which it read and wrote most."""
MAX_PATH = 300
"""Letters of a path; of a longer one the end is told."""
_WAIT = "read.wait."


class Reports:
    """One mount's. Counters go on for ever; a run is what they have grown by since it began."""

    def __init__(self, *, namespace: Namespace, index: Index, fetcher: Fetcher, accounting: Accounting) -> None:
        self._namespace = namespace
        self._index = index
        self._fetcher = fetcher
        self._accounting = accounting
        self._stats: Mapping[str, int] = {}
        self._waits: Mapping[str, Histogram] = {}
        """Both as they were when the run began."""

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers."""
        return {"report": self.report, "programs": self.programs}

    async def report(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The run so far; with `reset`, a new one begins then."""
        run = self._accounting.settled()
        told, opened = self._told(run, trio.current_time()), run.directories.opened()
        if arguments.get("reset"):
            self._reset()
        told["directories"]["unread"] = None if opened is None else await self._unread(opened)
        return told

    async def _unread(self, opened: Collection[str]) -> dict[str, Any] | None:
        found = await trio.to_thread.run_sync(unread_directories, self._index.file, opened)
        if found is None:
            return None
        return {
            "count": len(found),
            "files": sum(one.files for one in found),
            "bytes": sum(one.size for one in found),
            "largest": [{"path": _short(one.path), "files": one.files, "bytes": one.size} for one in found[:HOTTEST]],
        }

    async def programs(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        """What programs have read and written since the mount began, and what they have open now."""
        accounts, opened = self._accounting.programs()[:MAX_PROGRAMS], self._accounting.opened_by()
        return {"programs": [self._program(account, opened.get(account, ())) for account in accounts]}

    def _program(self, account: Account, opened: Sequence[FileHandle]) -> dict[str, Any]:
        most = sorted(opened, key=lambda handle: -(handle.read_bytes + handle.written_bytes))[:MAX_FILES]
        return {
            "pid": account.program.pid,
            "started": account.program.started,
            "name": account.program.name,
            "age_s": trio.current_time() - account.since_s,
            "opens": account.opens,
            "read_bytes": account.read_bytes,
            "written_bytes": account.written_bytes,
            "waited_s": account.waited_ns / 1e9,
            "open_files": len(opened),
            "files": [
                {
                    "path": _short(self._accounting.path(handle)),
                    "writable": handle.writable,
                    "read_bytes": handle.read_bytes,
                    "written_bytes": handle.written_bytes,
                }
                for handle in most
            ],
        }

    def _reset(self) -> None:
        self._accounting.restart()
        stats = self._fetcher.stats
        self._stats, self._waits = stats.snapshot(), stats.histograms(_WAIT)
        self._fetcher.throughput = self._fetcher.throughput.restarted(trio.current_time())

    def _told(self, run: Run, now_s: float) -> dict[str, Any]:
        files, size = self._namespace.totals()
        throughput, first = self._fetcher.throughput, run.by_pass.get(1)
        followed = run.passes.files
        return {
            "prefix": self._namespace.root,
            "since": "mount" if run.is_whole else "reset",
            "elapsed_s": now_s - run.began_s,
            "listing": self._namespace.importer.progress.told(time.time()),
            "beginning": self._beginning(run),
            "waits": self._waited(),
            "passes": [
                {"pass": number, "opens": one.opens, "file_bytes": one.file_bytes, "bytes": dict(one.tiers)}
                for number, one in sorted(run.by_pass.items())
            ],
            "s3": {
                "requests": self._grown("s3.requests."),
                "read_bytes": throughput.bytes,
                "busy_s": throughput.busy_s,
                "mean_bytes_per_s": throughput.mean,
                "best_bytes_per_s": throughput.best,
            },
            "file_mode": _file_mode(throughput, opened=first.file_bytes if first is not None else 0, everything=size),
            "files": {"listed": files, "bytes": size, "opened": followed, "never_opened": max(0, files - followed)},
            "directories": {
                "count": len(run.directories),
                "hottest": [_directory(path, row) for path, row in run.directories.hottest(HOTTEST)],
            },
        }

    def _beginning(self, run: Run) -> dict[str, Any]:
        """Seconds since the run began."""

        def since(at_s: float | None) -> float | None:
            return None if at_s is None else at_s - run.began_s

        return {
            "first_open_s": since(run.beginning.first_open_s),
            "first_byte_s": since(run.beginning.first_byte_s),
            "first_batch_s": since(run.beginning.first_batch_s),
            "batch_files": FIRST_FILES,
            "batch_bytes": FIRST_BYTES,
        }

    def _waited(self) -> dict[str, Any]:
        grown = self._grown("read.")
        now = self._fetcher.stats.histograms(_WAIT)
        tiers = {tier: waits.since(self._waits.get(tier)) for tier, waits in now.items()}
        every = Histogram()
        for waits in tiers.values():
            every.merge(waits)
        return {
            "reads": grown.get("stalls", 0),
            "readers_s": grown.get("stall_ns", 0) / 1e9,
            "anybody_s": grown.get("stalled_ns", 0) / 1e9,
            "all": every.told(),
            "tiers": {tier: waits.told() for tier, waits in tiers.items() if waits.count},
        }

    def _grown(self, prefix: str) -> dict[str, int]:
        """What counters whose names begin so have grown by, by the rest of their names."""
        now = self._fetcher.stats.snapshot()
        grown = {
            name.removeprefix(prefix): count - self._stats.get(name, 0)
            for name, count in now.items()
            if name.startswith(prefix)
        }
        return {name: count for name, count in grown.items() if count}


def _file_mode(throughput: Throughput, *, opened: int, everything: int) -> dict[str, Any]:
    """How long a job would have waited that downloads first what it reads, or all there is, at the best rate seen."""
    rate = throughput.best
    return {
        "bytes_per_s": rate,
        "opened_bytes": opened,
        "opened_s": opened / rate if rate else None,
        "listed_bytes": everything,
        "listed_s": everything / rate if rate else None,
    }


def _directory(path: str, row: Read) -> dict[str, Any]:
    return {"path": _short(path), "files": row.files, "opens": row.opens, "bytes": row.bytes, "is_sum": row.is_sum}


def _short(path: str) -> str:
    return path if len(path) <= MAX_PATH else "…" + path[1 - MAX_PATH :]
