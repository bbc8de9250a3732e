"""What a comparison says, as plain data: for programs, and for a picture that is drawn later."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from lazyfs import __version__
from lazyfs.bench.modes import Comparison, Outcome, Stage
from lazyfs.core.units import format_duration, format_size

LIBRARIES = ("pyfuse3", "trio", "obstore", "boto3", "diskcache")


def as_data(comparison: Comparison, stage: Stage) -> dict[str, Any]:
    """Everything that is known of this comparison, fit for JSON. Times in seconds, sizes in bytes."""
    return {
        "benchmark": "modes",
        "machine": {**machine(), "scratch_filesystem": comparison.scratch_filesystem},
        "versions": {
            "lazyfs": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
        },
        "parameters": {
            "bucket": stage.bucket.name,
            "prefix": stage.bucket.prefix,
            "endpoint_url": stage.bucket.endpoint_url,
            "files": len(stage.data.files),
            "bytes": stage.data.size,
            **asdict(stage.job),
        },
        "modes": [_mode(outcome) for outcome in comparison.outcomes],
        "notes": comparison.notes,
    }


def describe(stage: Stage, *, server: str) -> str:
    """The parameters in two lines for a person; `server` says where the bucket is."""
    job, files = stage.job, len(stage.data.files)
    epochs = f", {job.epochs} epochs" if job.epochs > 1 else ""
    return (
        f"{files:,} files of {format_size(stage.data.size / files)} ({format_size(stage.data.size)}) on {server}\n"
        f"batches of {job.batch}, {format_duration(job.compute_s)} of compute each, "
        f"{job.workers} loader workers{epochs}"
    )


def machine() -> dict[str, Any]:
    """Where this runs."""
    return {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
    }


def _mode(outcome: Outcome) -> dict[str, Any]:
    timeline = outcome.timeline
    return {
        "mode": outcome.mode,
        "setup_s": outcome.setup_s,
        **asdict(timeline),
        "utilisation": timeline.utilisation,
        "bytes": {"s3": outcome.s3_bytes, "ssd": outcome.ssd_bytes, "memory": outcome.memory_bytes},
        "s3_requests": sum(outcome.requests.values()),
        "s3_requests_by_kind": dict(outcome.requests),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
