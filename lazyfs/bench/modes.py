"""The same training over four ways to its data, one after the other.

- *File mode*, as SageMaker calls it: download everything to the local disk, then train from there.
- *Lazy, first run*: mount with an empty cache and train at once.
- *Lazy, first run, --preload*: the same, while the mount brings the rest in the background.
- *Lazy, cached run*: the next job on this machine: the same cache directory, mounted again, and none of it in memory.

All know from the start which files they will read, as from a manifest; so the download needs no listing, while
the mount still makes its own. The clock starts before the download or the mount, and stops after the last batch.
Promises that nothing is left mounted and that the bucket is only read: the mounts are read-only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lazyfs.bench.dataset import DataSet, download, on_bucket
from lazyfs.bench.mounting import bucket_arguments, counters, mounted
from lazyfs.bench.training import Job, Timeline, train
from lazyfs.config import BucketConfig
from lazyfs.core.errors import StartupError
from lazyfs.core.stats import Stats
from lazyfs.core.units import format_size

FILE, FIRST, CACHED = "File mode", "lazyfs, first run", "lazyfs, cached run"
PRELOADED = "lazyfs, first run, --preload"
IN_MEMORY = ("tmpfs", "ramfs")
ROOM = 3
"""Times the size of the data that must be free: for two caches, and what surrounds them."""
LEAST_CACHE = 1024**3

Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one mode took, and where its bytes came from.

    setup_s       the download, or the mount until it answers; part of the timeline's first_batch_s
    s3, ssd, memory   bytes; of File mode S3 is the download and the others are how the training read the local files
    requests      of S3, by kind
    """

    mode: str
    setup_s: float
    timeline: Timeline
    s3_bytes: int
    ssd_bytes: int
    memory_bytes: int
    requests: Mapping[str, int]


@dataclass(slots=True, kw_only=True)
class Comparison:
    """The modes side by side, and what a reader should know about the circumstances."""

    scratch_filesystem: str
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all modes share. `scratch` is a directory of our own on the disk that counts as the machine's SSD."""

    bucket: BucketConfig
    data: DataSet
    job: Job
    scratch: Path
    tell: Tell = lambda _what, _done, _of: None


def compare(stage: Stage) -> Comparison:
    """Run the modes. Raises LazyfsError: StartupError if something cannot begin, BenchError for a wrong byte."""
    _check_room(stage)
    comparison = Comparison(scratch_filesystem=_filesystem_of(stage.scratch))
    if comparison.scratch_filesystem in IN_MEMORY:
        comparison.notes.append(f"the scratch directory is {comparison.scratch_filesystem}: SSD here means memory, too")
    comparison.outcomes.append(_file_mode(stage))
    comparison.outcomes.append(_mounted_mode(stage, FIRST, "cache"))
    comparison.outcomes.append(_mounted_mode(stage, PRELOADED, "cache-preload", "--preload"))
    drop_from_memory(stage.scratch / "cache")
    comparison.outcomes.append(_mounted_mode(stage, CACHED, "cache"))
    return comparison


def drop_from_memory(directory: Path) -> None:
    """Make the kernel forget the pages of all files below `directory`, which nobody has open.

    Not by /proc/sys/vm/drop_caches: that is root's alone, and would make every program of the machine start cold, our
    own mount included.
    """
    os.sync()  # only clean pages are dropped
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _file_mode(stage: Stage) -> Outcome:
    """Download, then train. What was just downloaded stays in the page cache, as it does in SageMaker."""
    stats, local = Stats(), stage.scratch / "local"
    os.sync()  # what was written before must not be written now
    advance = partial(_advance, stage.tell, f"{FILE}: download", len(stage.data.files))
    advance(0)
    began_s = time.monotonic()
    local.mkdir(mode=0o700)
    on_bucket(stage.bucket, lambda store: download(store, stage.data, local, advance=advance), stats=stats)
    setup_s = time.monotonic() - began_s
    before = _storage_bytes()
    timeline = _train(stage, local, FILE, began_s)
    from_disk = min(_storage_bytes() - before, timeline.bytes_read)
    shutil.rmtree(local)
    return _outcome(FILE, setup_s, timeline, stats.snapshot(), ssd_bytes=from_disk, s3_served=0)


def _mounted_mode(stage: Stage, mode: str, cache: str, *options: str) -> Outcome:
    """Mount, then train; the directory `cache` stays for another mode."""
    mountpoint = stage.scratch / "mnt"
    mountpoint.mkdir(mode=0o700, exist_ok=True)
    where = f"{stage.bucket.name}/{stage.bucket.prefix}"
    os.sync()
    stage.tell(f"{mode}: mount", 0, 1)
    began_s = time.monotonic()
    with mounted(where, mountpoint, *_mount_options(stage, cache), *options):
        setup_s = time.monotonic() - began_s
        timeline = _train(stage, mountpoint, mode, began_s)
        counted = counters(mountpoint)
    from_disk, from_s3 = counted.get("cache.disk.hit_bytes", 0), counted.get("s3.bytes.read", 0)
    return _outcome(mode, setup_s, timeline, counted, ssd_bytes=from_disk, s3_served=from_s3)


def _train(stage: Stage, directory: Path, mode: str, began_s: float) -> Timeline:
    names = sorted(stage.data.files)
    on_batch = partial(_advance, stage.tell, f"{mode}: train", stage.job.count(len(names)))
    return train(directory, names, stage.job, check=stage.data.check, began_s=began_s, on_batch=on_batch)


def _advance(tell: Tell, what: str, of: int, done: int) -> None:
    tell(what, done, of)


def _outcome(
    mode: str, setup_s: float, timeline: Timeline, counted: Mapping[str, int], *, ssd_bytes: int, s3_served: int
) -> Outcome:
    """`s3_served` of what the training read came from S3 as it read; what no tier accounts for came from memory."""
    return Outcome(
        mode=mode,
        setup_s=setup_s,
        timeline=timeline,
        s3_bytes=counted.get("s3.bytes.read", 0),
        ssd_bytes=ssd_bytes,
        memory_bytes=max(0, timeline.bytes_read - ssd_bytes - s3_served),
        requests={
            key.removeprefix("s3.requests."): count
            for key, count in counted.items()
            if key.startswith("s3.requests.") and count
        },
    )


def _mount_options(stage: Stage, cache: str) -> list[str]:
    cache_size = max(LEAST_CACHE, 2 * stage.data.size)
    own = ("--cache-dir", str(stage.scratch / cache), "--log-file", str(stage.scratch / "lazyfs.log"))
    return [*bucket_arguments(stage.bucket), "--read-only", "--cache-size", str(cache_size), *own]


def _check_room(stage: Stage) -> None:
    need, free = ROOM * stage.data.size, shutil.disk_usage(stage.scratch).free
    if free < need:
        raise StartupError(
            f"{format_size(need)} are needed for {format_size(stage.data.size)} of data, and {format_size(free)} are "
            f"free in {stage.scratch.parent}; --scratch chooses another place"
        )


def _filesystem_of(directory: Path) -> str:
    """The type of the file system that holds `directory`, empty if it cannot be told. Source: proc_pid_mountinfo(5)."""
    device = directory.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2] == f"{os.major(device)}:{os.minor(device)}":
            return after.split(" ")[0]
    return ""


def _storage_bytes() -> int:
    """What this process has made the kernel fetch from block devices; 0 where that is not told.

    Source: proc_pid_io(5), read_bytes.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(": ")
            if name == "read_bytes":
                return int(value)
    return 0
