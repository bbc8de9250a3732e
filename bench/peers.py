"""lazyfs beside its peers: every arm, every workload, every state, on one server in one run.

``scripts/bench [--quick] [--scale 1] [--rounds 3] [--arms …] [--workloads …] [--endpoints direct,shaped]`` prints
tables, and writes JSON, Markdown and a plot into --out. Arms take turns within a round, so that a slow minute of the
machine does not fall on one of them alone. Nothing stays mounted or running, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import obstore
from obstore.store import S3Store

from bench import workloads as w
from bench.arms import Arm, JuiceFS, Lazyfs, Mountpoint, Rclone, S3fs, View
from bench.baselines import RawFiles, after_download, drop_page_cache, raw_streams, raw_writes
from bench.dataset import MIB, Dataset, Scale
from bench.report import Cell, Report
from bench.servers import Endpoint, endpoints, raw_client
from bench.workloads import Files, Limit, Sample

STATES = ("cold", "page cache", "memory", "SSD")
BUCKET = "bench"
GRACE_S = 60.0
"""A workload that takes so much longer than its limit hangs: its mount is killed and the cell says so."""
ARRIVAL_S = 30.0
ROOM = 20 * 1024 * MIB
"""Caches stay until the end while there is so much room: ext4 avoids inodes that were deleted in the last minutes, and
whoever makes files meanwhile pays for the search."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is done, in which unit it is counted, and on which objects (for who downloads first)."""

    name: str
    unit: str
    run: Callable[[Path, Limit], Sample]
    paths: tuple[str, ...] = ()
    raw: Callable[[S3Store, Limit], Sample] | None = None


def reading(truth: Dataset) -> list[Workload]:
    """All workloads that read."""

    def lanes(name: str, unit: str, made: list[list[w.Read]], *, raw_whole: bool = False) -> Workload:
        paths = tuple(sorted({read.path for lane in made for read in lane}))

        def run(root: Path, limit: Limit) -> Sample:
            with Files(root) as files:
                return w.run_reads(files, made, truth, limit)

        def raw(store: S3Store, limit: Limit) -> Sample:
            if raw_whole:
                return raw_streams(store, truth, paths)
            return w.run_reads(RawFiles(store), made, truth, limit)

        return Workload(name, unit, run, paths, raw)

    four = [f"stream/four-{number}.bin" for number in range(4)]
    whole = [
        Workload(
            "mmap 64 KiB × 8 threads", "MB/s", lambda root, limit: w.mapped(root, truth, limit), ("random/mmap.bin",)
        ),
        Workload(
            "parquet, 3 of 16 columns", "MB/s", lambda r, limit: w.parquet(r, truth, limit), ("tables/table.parquet",)
        ),
        Workload("tar stream", "MB/s", lambda r, limit: w.shard(r, truth, limit), ("shards/shard.tar",)),
        Workload("safetensors load", "MB/s", lambda r, limit: w.model(r, truth, limit), ("models/model.safetensors",)),
    ]
    return [
        lanes("sequential 1 MiB", "MB/s", w.stream(truth, ["stream/one.bin"], MIB), raw_whole=True),
        lanes("sequential 256 KiB", "MB/s", w.stream(truth, ["stream/quarter.bin"], MIB // 4), raw_whole=True),
        lanes("sequential × 4", "MB/s", w.stream(truth, four, MIB), raw_whole=True),
        lanes("random 4 KiB", "reads/s", w.scattered(truth, "random/4k.bin", 4096, 400)),
        lanes("random 256 KiB", "reads/s", w.scattered(truth, "random/256k.bin", MIB // 4, 200)),
        *(
            lanes(f"small files × {readers}", "files/s", w.shuffled(truth, f"small{readers}", readers))
            for readers in (1, 8, 32)
        ),
        *whole,
    ]


def looking(truth: Dataset) -> list[Workload]:
    """All workloads that only look at names."""
    return [
        Workload("find", "entries/s", lambda root, limit: w.walk(root, truth, limit)),
        Workload(f"ls -l of {truth.scale.names:,}", "entries/s", lambda root, limit: w.long_list(root, truth, limit)),
        Workload("stat of missing names", "stats/s", lambda root, limit: w.missing_names(root, truth, limit)),
    ]


@dataclass(slots=True)
class Writing:
    """A workload that writes; it says what must be in the bucket afterwards."""

    name: str
    unit: str
    run: Callable[[Path, str, Limit], tuple[Sample, dict[str, bytes]]]
    raw: Callable[[S3Store, Limit], Sample] | None = None
    local: Callable[[Path, str, Limit], tuple[Sample, dict[str, bytes]]] | None = None
    """The same on a local disk, durable there."""


def writing(scale: Scale) -> list[Writing]:
    """All workloads that write."""
    large, many = scale.large, max(scale.small // 2, 50)
    body = bytes(large)
    quarter = {f"written-raw-{number}": body[: large // 4] for number in range(4)}
    tiny = {f"written-raw-tiny/{number}": b"x" for number in range(20)}
    small = {f"written-raw-small/{number}": body[:65_536] for number in range(many)}

    def streams(number: int, raw: dict[str, bytes]) -> Writing:
        return Writing(
            f"write × {number}", "MB/s",
            lambda root, tag, _: w.write_streams(root, large, number, tag),
            lambda store, _: raw_writes(store, raw, writers=number),
            lambda root, tag, _: w.write_streams(root, large, number, tag, sync=True),
        )  # fmt: skip

    def files(name: str, number: int, size: int, writers: int, raw: dict[str, bytes]) -> Writing:
        return Writing(
            name, "files/s",
            lambda root, tag, limit: w.write_many(root, number, size, tag, limit, writers=writers),
            lambda store, _: raw_writes(store, raw, writers=writers),
            lambda root, tag, limit: w.write_many(root, number, size, tag, limit, writers=writers, sync=True),
        )  # fmt: skip

    return [
        streams(1, {"written-raw": body}),
        streams(4, quarter),
        files("write 64 KiB files", many, 65_536, 1, small),
        files("write 64 KiB files × 16", many, 65_536, 16, small),
        files("create 1-byte files", 20, 1, 1, tiny),
        Writing("checkpoint save + load", "MB/s", lambda root, tag, _: w.checkpoint(root, large // 2, tag)),
    ]


@dataclass(slots=True)
class Run:
    """One run of the matrix."""

    truth: Dataset
    scratch: Path
    report: Report
    witness: S3Store
    """Sees the bucket directly, beside every arm."""
    limit_s: float
    wanted: Callable[[str], bool]
    tags: Iterator[int] = field(default_factory=count)

    def arm(self, arm: Arm, endpoint: Endpoint, bucket: str) -> None:
        """All states of one mount."""
        place = self.scratch / f"arm-{next(self.tags)}"
        looks, reads = self._wanted(looking(self.truth)), self._wanted(reading(self.truth))
        if arm.only_writes:
            looks = reads = []
        done: dict[str, int] = {}
        try:
            drop_page_cache()
            with arm.mounted(endpoint, bucket, place) as view:
                for work in [*looks, *reads]:
                    done[work.name] = self._cell(arm.name, endpoint, "cold", work, view)
                    self._cell(arm.name, endpoint, "page cache", work, view, done[work.name])
                drop_page_cache()
                for work in reads:
                    self._cell(arm.name, endpoint, "memory", work, view, done[work.name])
                arm.settle(view)
                for write in [] if arm.only_reads else writing(self.truth.scale):
                    if self.wanted(write.name):
                        self._write(arm, endpoint, write, view)
                if not arm.only_reads:
                    subprocess.run(f"rm -rf {view.path}/written* {view.path}/.tmp*", shell=True, check=False)
            if arm.keeps_cache and not arm.only_writes:
                drop_page_cache()
                with arm.mounted(endpoint, bucket, place) as view:
                    for work in [*looks, *reads]:
                        self._cell(arm.name, endpoint, "SSD", work, view, done[work.name])
        except (RuntimeError, OSError) as error:
            self.report.fail(arm.name, endpoint.name, str(error))
        finally:
            if shutil.disk_usage(place).free < ROOM:
                shutil.rmtree(place, ignore_errors=True)

    def raw(self, endpoint: Endpoint, bucket: str) -> None:
        """The raw client: the limit."""
        store = raw_client(endpoint, bucket)
        for work in self._wanted(reading(self.truth)):
            if work.raw is not None:
                self._cell("raw", endpoint, "cold", work, None, run=partial(work.raw, store))
        for write in writing(self.truth.scale):
            if write.raw is not None and self.wanted(write.name):
                put = partial(write.raw, store)
                self._measured("raw", endpoint, "cold", write.name, write.unit, None, put, Limit(self.limit_s))
        for path in [meta["path"] for page in obstore.list(store, "written") for meta in page]:
            obstore.delete(store, path)  # singly: the gateway refuses DeleteObjects without Content-MD5

    def download(self, endpoint: Endpoint, bucket: str) -> None:
        """SageMaker's File mode: everything first, then local files."""
        store = raw_client(endpoint, bucket)
        for work in self._wanted(reading(self.truth)):
            place = self.scratch / f"download-{next(self.tags)}"
            run = partial(after_download, store, self.truth, work.paths, place, work.run)
            self._cell("download", endpoint, "cold", work, None, run=run)

    def local(self, endpoint: Endpoint) -> None:
        """The local disk, for comparison; it has no S3."""
        for state in ("cold", "page cache"):
            if state == "cold":
                drop_page_cache()
            for work in self._wanted([*looking(self.truth), *reading(self.truth)]):
                self._cell("local disk", endpoint, state, work, None, run=partial(work.run, self.truth.root))
        place = self.scratch / f"local-{next(self.tags)}"
        place.mkdir()
        for write in writing(self.truth.scale):
            if write.local is not None and self.wanted(write.name):
                put = partial(_first, partial(write.local, place, f"{next(self.tags)}"))
                self._measured("local disk", endpoint, "cold", write.name, write.unit, None, put, Limit(self.limit_s))
        shutil.rmtree(place)

    def _wanted(self, all_of_them: list[Workload]) -> list[Workload]:
        return [work for work in all_of_them if self.wanted(work.name)]

    def _cell(
        self,
        arm: str,
        endpoint: Endpoint,
        state: str,
        work: Workload,
        view: View | None,
        ops: int | None = None,
        run: Callable[[Limit], Sample] | None = None,
    ) -> int:
        """Measure once; how many operations were done."""
        limit = Limit(self.limit_s, ops)
        root = view.path if view is not None else Path()
        cell = self._measured(arm, endpoint, state, work.name, work.unit, view, run or partial(work.run, root), limit)
        return cell.ops

    def _measured(
        self,
        arm: str,
        endpoint: Endpoint,
        state: str,
        name: str,
        unit: str,
        view: View | None,
        run: Callable[[Limit], Sample],
        limit: Limit,
    ) -> Cell:
        before, cpu_s = endpoint.traffic(), view.cpu_s() if view else 0.0
        cell = Cell(arm, endpoint.name, state, name, unit)
        try:
            with _watched(view, limit.seconds + GRACE_S):
                sample = run(limit)
            cell.take(sample)
            cell.cpu_s = view.cpu_s() - cpu_s if view else 0.0
            cell.peak_rss_mib = view.peak_rss_mib() if view else 0.0
            after = endpoint.traffic()
            cell.requests = sum(after.values()) - after["bytes"] - sum(before.values()) + before["bytes"]
            cell.fetched = after["bytes"] - before["bytes"]
            sample.check()
        except w.WrongBytesError as error:
            cell.error = f"WRONG BYTES: {error}"
        except TimeoutError as error:  # its mount is gone: nothing more to measure
            cell.error = str(error)
            self.report.add(cell)
            raise RuntimeError(f"{name}: {error}") from error
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way; the table says how
            cell.error = f"{type(error).__name__}: {error}"[:160]
        self.report.add(cell)
        return cell

    def _write(self, arm: Arm, endpoint: Endpoint, write: Writing, view: View) -> None:
        tag = f"{next(self.tags)}"
        bodies: dict[str, bytes] = {}

        def run(limit: Limit) -> Sample:
            sample, written = write.run(view.path, tag, limit)
            bodies.update(written)
            return sample

        began = time.perf_counter()
        cell = self._measured(arm.name, endpoint, "cold", write.name, write.unit, view, run, Limit(self.limit_s))
        if bodies and not isinstance(arm, JuiceFS):  # its bucket holds blocks
            cell.arrived_s = self._arrival(bodies, cell, began)

    def _arrival(self, bodies: dict[str, bytes], cell: Cell, began: float) -> float | None:
        """Seconds from the first write until all of it was in the bucket, as the witness sees it."""
        deadline = time.perf_counter() + ARRIVAL_S
        for path, body in bodies.items():
            while self._size(path) != len(body):
                if time.perf_counter() > deadline:
                    cell.error = f"{path} never arrived in the bucket"
                    return None
                time.sleep(0.01)
        took = time.perf_counter() - began
        for path, body in random.Random(1).sample(sorted(bodies.items()), min(len(bodies), 20)):
            if obstore.get(self.witness, path).bytes().to_bytes() != body:
                cell.error = f"WRONG BYTES: {path} in the bucket"
        return took

    def _size(self, path: str) -> int | None:
        try:
            return obstore.head(self.witness, path)["size"]
        except FileNotFoundError:
            return None


def _first(run: Callable[[Limit], tuple[Sample, dict[str, bytes]]], limit: Limit) -> Sample:
    return run(limit)[0]


@contextlib.contextmanager
def _watched(view: View | None, seconds: float) -> Iterator[None]:
    """Kill the mount if the body takes longer: a read that hangs ends with its server."""

    def fire(signum: int, frame: object) -> None:
        if view is not None:
            os.kill(view.pid, signal.SIGKILL)
        raise TimeoutError(f"hung for {seconds:.0f} s; killed")

    old = signal.signal(signal.SIGALRM, fire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def main() -> None:
    """Parse, build, run, tell."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scale = Scale.of(options.scale)
    room = Path("/dev/shm") if shutil.disk_usage("/dev/shm").free > 40 * scale.large else None
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-bench-", ignore_cleanup_errors=True) as disk,
        tempfile.TemporaryDirectory(prefix="lazyfs-bench-", dir=room, ignore_cleanup_errors=True) as fast,
    ):
        scratch = Path(disk)
        print(f"bench: making {scale.large // MIB} MiB files and {scale.small} small ones …", file=sys.stderr)
        truth = Dataset.make(scratch / "truth", scale)
        report = Report(options, scale)
        own = [BUCKET, f"{BUCKET}-juicefs"]
        with endpoints(Path(fast), options.endpoints, options.endpoint_url, own) as places:
            bucket = options.bucket or BUCKET
            witness = raw_client(places[0], bucket)
            truth.upload(witness)
            arms = _arms(options.arms, scratch, report)
            for arm in arms:
                if isinstance(arm, JuiceFS):
                    arm.prepare(places[0], f"{bucket}-juicefs", truth.root, scratch / "juicefs-prepare")
            run = Run(
                truth,
                scratch,
                report,
                witness,
                options.limit,
                lambda name: any(word in name for word in options.workloads),
            )
            for number in range(options.rounds):
                for endpoint in (place for place in places if place.name in (*options.endpoints, "given")):
                    _round(run, arms, endpoint, bucket, options.arms, number)
                    report.save(Path(options.out))
        report.write(Path(options.out))
    sys.exit(1 if report.wrong else 0)


def _round(run: Run, arms: list[Arm], endpoint: Endpoint, bucket: str, names: list[str], number: int) -> None:
    turns: list[tuple[str, Callable[[], None]]] = [
        (arm.name, partial(run.arm, arm, endpoint, f"{bucket}-juicefs" if isinstance(arm, JuiceFS) else bucket))
        for arm in arms
    ]
    turns.append(("raw", lambda: run.raw(endpoint, bucket)))
    turns.append(("download", lambda: run.download(endpoint, bucket)))
    turns.append(("local disk", lambda: run.local(endpoint)))
    turns = [(name, turn) for name, turn in turns if not names or name in names]
    for name, turn in turns[number % len(turns) :] + turns[: number % len(turns)]:
        began = time.monotonic()
        print(f"bench: round {number + 1}, {endpoint.name}, {name} …", end=" ", file=sys.stderr, flush=True)
        turn()
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


def _arms(names: list[str], scratch: Path, report: Report) -> list[Arm]:
    found: list[Arm] = []
    for arm in (
        Lazyfs(),
        Lazyfs(write_back=True),
        Lazyfs(session="pyfuse3"),
        Lazyfs(session="direct"),
        Rclone("full"),
        Rclone("off"),
        S3fs(),
        Mountpoint(),
        JuiceFS(scratch),
    ):
        if (names or arm.only_reads) and arm.name not in names:
            continue
        why = arm.missing()
        if why is None:
            report.versions[arm.name] = arm.version()
            report.notes[arm.name] = arm.note
            found.append(arm)
        else:
            report.missing[arm.name] = why
            print(f"bench: {arm.name} is missing: {why}", file=sys.stderr)
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: [word.strip() for word in text.split(",") if word.strip()]  # noqa: E731
    parser.add_argument("--quick", action="store_true", help="scale 1/8, one round, a second a cell")
    parser.add_argument("--scale", type=float, help="1: files of 256 MiB, 2,000 small files a group, 20,000 names")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--limit", type=float, help="seconds for a cell that could go on and on (random reads, files)")
    parser.add_argument("--endpoints", type=words, default=["direct", "shaped"])
    parser.add_argument("--endpoint-url", help="an endpoint of your own (with AWS_* variables), instead of the gateway")
    parser.add_argument("--bucket", help="an empty bucket on it; the data set is written into it and left there")
    parser.add_argument("--arms", type=words, default=[], help="names, comma separated: lazyfs,rclone full,raw …")
    parser.add_argument("--workloads", type=words, default=[""], help="only those whose name contains one of these")
    parser.add_argument("--out", default="build/bench", help="where JSON, Markdown and the plot go")
    options = parser.parse_args()
    if options.endpoint_url and not options.bucket:
        parser.error("--endpoint-url needs --bucket")
    options.scale = options.scale or (1 / 8 if options.quick else 1.0)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.limit = options.limit or (1.0 if options.quick else 10.0)
    return options


if __name__ == "__main__":
    main()
