"""What Prometheus reads: the status of a mount in base units, under names that stay.

Pure: a status in, text out. Nothing is counted for it: the numbers are those of `lazyfs status`, taken when asked for.
A series that can exist is there from the start, with zero, so that rates and alerts have something to stand on.
Only this module says prometheus_client.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from lazyfs import __version__
from lazyfs.core.histogram import POWERS_S, Histogram, cumulative

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Status = Mapping[str, Any]

NANOSECOND = 1e-9
_TIERS = ("memory", "disk", "shared", "s3", "spool")
_WAITED_FOR = ("disk", "shared", "s3", "spool", "failed")
_KINDS = (
    "list",
    "head",
    "get",
    "put",
    "copy",
    "copy_part",
    "rename",
    "delete",
    "create_upload",
    "upload_part",
    "complete_upload",
    "abort_upload",
    "list_uploads",
)
_COUNTERS: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "lazyfs_read_bytes",
        "tier",
        "Bytes of objects that programs read, by where they were when asked for; the kernel's page cache is not seen.",
        {tier: f"read.bytes.{tier}" for tier in _TIERS},
    ),
    ("lazyfs_read_stalls", "", "Reads that waited for data.", {"": "read.stalls"}),
    (
        "lazyfs_fetched_bytes",
        "tier",
        "Bytes brought into memory, for readers, ahead of them and by preload.",
        {"disk": "cache.disk.hit_bytes", "shared": "cache.shared.hit_bytes", "s3": "s3.bytes.read"},
    ),
    ("lazyfs_s3_requests", "kind", "Requests sent to S3.", {kind: f"s3.requests.{kind}" for kind in _KINDS}),
    ("lazyfs_s3_written_bytes", "", "Bytes uploaded to S3.", {"": "s3.bytes.written"}),
    ("lazyfs_s3_retries", "", "Requests that were sent again.", {"": "s3.retries"}),
    ("lazyfs_s3_throttles", "", "Requests that S3 refused because there were too many.", {"": "s3.throttles"}),
    (
        "lazyfs_cache_dropped_blocks",
        "tier",
        "Blocks that were not kept, because too much waited to be written.",
        {tier: f"cache.{tier}.dropped_blocks" for tier in ("disk", "shared")},
    ),
    (
        "lazyfs_cache_damaged_blocks",
        "tier",
        "Blocks whose checksum was wrong, and which were fetched again.",
        {tier: f"cache.{tier}.damaged_blocks" for tier in ("disk", "shared")},
    ),
    ("lazyfs_cache_no_space", "", "Writes to the cache directory that found no room.", {"": "cache.disk.no_space"}),
    ("lazyfs_shared_cache_errors", "", "Requests to the shared cache that failed.", {"": "cache.shared.errors"}),
    (
        "lazyfs_readahead_dropped_blocks",
        "",
        "Blocks that were not read ahead, for want of memory.",
        {"": "readahead.dropped_blocks"},
    ),
    (
        "lazyfs_events",
        "outcome",
        "Changes that the bucket told of.",
        {outcome: f"events.{outcome}" for outcome in ("received", "applied", "malformed", "lost")},
    ),
]
"""Name, label, help, and the counter of `Stats` behind each value of the label."""


def metrics_text(status: Status) -> bytes:
    """The answer to a scrape: `Mount.status` in the text format, with CPU and memory of this process."""
    registry = CollectorRegistry()
    registry.register(_Scrape(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Scrape:
    """One status, as prometheus_client wants to be given it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        return []  # a registry lives for one scrape: there are no names to defend

    def collect(self) -> Iterator[Metric]:
        for families in (_info, _counters, _reading, _cache, _namespace, _background, _writing):
            yield from families(self._status)


def _info(status: Status) -> Iterator[Metric]:
    build = {"version": __version__, "python": platform.python_version()}
    yield InfoMetricFamily("lazyfs_build", "The program.", build)
    policy = status["policy"]
    # A path need not be UTF-8; the page must.
    mount = {name: status[name].encode("utf-8", "replace").decode() for name in ("mountpoint", "bucket", "prefix")}
    mount |= {"access": "ro" if status["read_only"] else "rw", "write_back": str(policy["write_back"]).lower()}
    yield InfoMetricFamily("lazyfs_mount", "The mount.", mount | {"fsync": policy["fsync"]})
    yield GaugeMetricFamily("lazyfs_uptime_seconds", "Since the mount began.", status["uptime_s"])


def _counters(status: Status) -> Iterator[Metric]:
    stats = status["stats"]
    for name, label, told, sources in _COUNTERS:
        family = CounterMetricFamily(name, told, labels=[label] if label else [])
        for value, source in sources.items():
            family.add_metric([value] if label else [], stats.get(source, 0))
        yield family


def _reading(status: Status) -> Iterator[Metric]:
    stats, connections = status["stats"], status["connections"]
    told = "Time that reads waited for data, of all reads together."
    yield CounterMetricFamily("lazyfs_read_stall_seconds", told, stats.get("read.stall_ns", 0) * NANOSECOND)
    yield _waits(status)
    yield GaugeMetricFamily("lazyfs_reads_waiting", "Reads that wait for data now.", stats.get("read.waiting", 0))
    yield GaugeMetricFamily("lazyfs_open_handles", "Files that programs have open.", status["open_handles"])
    told = "Range GETs on their way."
    yield GaugeMetricFamily("lazyfs_s3_range_gets_in_flight", told, connections["in_flight"])
    told = "Range GETs that may be on their way together, as far as that has been found to help."
    yield GaugeMetricFamily("lazyfs_s3_range_gets_limit", told, connections["limit"])


def _waits(status: Status) -> Metric:
    told = "How long reads that waited for data waited, by the slowest tier that they waited for."
    family = HistogramMetricFamily("lazyfs_read_wait_seconds", told, labels=["tier"])
    nothing = Histogram().told()
    for tier in _WAITED_FOR:
        waits = status["waits"].get(tier, nothing)
        buckets = list(zip(map(repr, POWERS_S), cumulative(waits, POWERS_S), strict=True))
        family.add_metric([tier], [*buckets, ("+Inf", waits["count"])], waits["sum_s"])
    return family


def _cache(status: Status) -> Iterator[Metric]:
    tiers, shared, spool = dict(status["cache"]), status["cache"]["shared"], status["spool"]
    used = GaugeMetricFamily("lazyfs_cache_used_bytes", "What the tier holds.", labels=["tier"])
    limit = GaugeMetricFamily("lazyfs_cache_limit_bytes", "The most that it may hold.", labels=["tier"])
    is_on = GaugeMetricFamily("lazyfs_cache_on", "0 while the tier is in trouble and done without.", labels=["tier"])
    for tier in ("memory", "disk"):
        if tiers[tier] is not None:
            used.add_metric([tier], tiers[tier]["used"])
            limit.add_metric([tier], tiers[tier]["limit"])
            is_on.add_metric([tier], tiers[tier].get("on", True))
    if shared is not None:
        is_on.add_metric(["shared"], shared["state"] != "off")
    yield from (used, limit, is_on)
    told = "What files that are being written, or wait for their upload, take in the cache directory."
    yield GaugeMetricFamily("lazyfs_spool_used_bytes", told, 0 if spool is None else spool["used"])
    told = "The most that they may take."
    yield GaugeMetricFamily("lazyfs_spool_limit_bytes", told, 0 if spool is None else spool["limit"])


def _namespace(status: Status) -> Iterator[Metric]:
    yield GaugeMetricFamily("lazyfs_known_files", "Files whose names are known.", status["files"])
    yield GaugeMetricFamily("lazyfs_known_bytes", "Their sizes.", status["bytes"])
    told = "Keys that cannot be a path, and are not shown."
    yield GaugeMetricFamily("lazyfs_skipped_keys", told, status["skipped_keys"])
    progress = status["import"]
    yield _states("lazyfs_import_state", "How the listing of the bucket is.", progress, "waiting running done failed")
    yield GaugeMetricFamily("lazyfs_import_objects", "Objects that this listing has found.", progress["objects"])
    told = "LIST requests of this listing that were answered."
    yield GaugeMetricFamily("lazyfs_import_pages", told, progress["requests"])
    yield GaugeMetricFamily("lazyfs_import_seconds", "How long it has taken.", progress["elapsed_s"])


def _background(status: Status) -> Iterator[Metric]:
    progress = status["preload"]
    if progress is None:
        return
    yield _states("lazyfs_preload_state", "How --preload is.", progress, "waiting running done full failed")
    yield GaugeMetricFamily("lazyfs_preload_files", "Files that are on the disk by now.", progress["files"])
    yield GaugeMetricFamily("lazyfs_preload_bytes", "Bytes that are on the disk by now.", progress["bytes"])
    yield GaugeMetricFamily("lazyfs_preload_failures", "Objects that could not be fetched.", progress["failures"])


def _writing(status: Status) -> Iterator[Metric]:
    waiting = status["write_back"] or {"changes": 0, "bytes": 0, "oldest_s": 0.0, "failed_changes": 0}
    told = "Changes that are durable here and not in the bucket yet (--write-back)."
    yield GaugeMetricFamily("lazyfs_writeback_pending_changes", told, waiting["changes"])
    yield GaugeMetricFamily("lazyfs_writeback_pending_bytes", "Bytes of them.", waiting["bytes"])
    told = "How long the oldest of them has waited."
    yield GaugeMetricFamily("lazyfs_writeback_oldest_seconds", told, waiting["oldest_s"])
    told = "Those whose last attempt failed; they are tried again."
    yield GaugeMetricFamily("lazyfs_writeback_failed_changes", told, waiting["failed_changes"])
    told = "Files in .lazyfs-lost+found, which lost a race for their key since the mount began."
    yield GaugeMetricFamily("lazyfs_lost_files", told, len(status["lost_and_found"]))


def _states(name: str, told: str, progress: Status, states: str) -> Metric:
    """One series a state, 1 for that which it is in."""
    family = GaugeMetricFamily(name, told, labels=["state"])
    for state in states.split():
        family.add_metric([state], progress["state"] == state)
    return family
