"""What training programs do to a file system, on any directory: reads, metadata, writes.

Each reading workload keeps what it read and is checked against the truth after its time was taken (`Sample.check`).
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pyarrow.parquet
import safetensors
import safetensors.numpy

from bench.dataset import MIB, Dataset


class WrongBytesError(Exception):
    """What was read is not what the object holds."""


@dataclass(slots=True)
class Sample:
    """One measurement: how much was done in how long, and each operation's seconds."""

    ops: int
    bytes: int
    seconds: float
    latencies_s: list[float] = field(default_factory=list, repr=False)
    check: Callable[[], None] = field(default=lambda: None, repr=False)


@dataclass(slots=True)
class Limit:
    """When to stop: at `seconds`, or after `ops` operations: what the cold state did, so that the others replay it."""

    seconds: float
    ops: int | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """`size` bytes at `offset` of `path`; size 0 is the whole file, opened and closed for it."""

    path: str
    offset: int
    size: int


class Files:
    """How a directory is read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def prepare(self, paths: Sequence[str]) -> None:
        """Open what will be read piece by piece."""
        for path in paths:
            self._open[path] = os.open(self.root / path, os.O_RDONLY)

    def read(self, what: Read) -> bytes:
        """The bytes, whole."""
        if what.size == 0:
            with (self.root / what.path).open("rb", buffering=0) as file:
                return _all_of(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return _all_of(self._open[what.path], what.offset, what.size)


def _all_of(fd: int, offset: int, size: int) -> bytes:
    piece = os.pread(fd, size, offset)
    if len(piece) == size:
        return piece
    pieces = [piece]
    got = len(piece)
    while got < size and pieces[-1]:
        pieces.append(os.pread(fd, size - got, offset + got))
        got += len(pieces[-1])
    return b"".join(pieces)


def run_reads(files: Files, lanes: Sequence[Sequence[Read]], truth: Dataset, limit: Limit) -> Sample:
    """Each lane's reads in order, the lanes at the same time."""
    stop_at = time.perf_counter() + limit.seconds
    quota = None if limit.ops is None else -(-limit.ops // len(lanes))
    done: list[list[tuple[Read, bytes]]] = [[] for _ in lanes]
    latencies: list[list[float]] = [[] for _ in lanes]
    files.prepare(sorted({read.path for lane in lanes for read in lane if read.size}))

    def work(number: int) -> None:
        for read in lanes[number][:quota]:
            began = time.perf_counter()
            if began > stop_at:
                return
            done[number].append((read, files.read(read)))
            latencies[number].append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(work, range(len(lanes))))
    seconds = time.perf_counter() - began

    def check() -> None:
        whole: dict[str, bytes] = {}
        for lane in done:
            for read, got in lane:
                if read.path not in whole:
                    whole = {read.path: truth.truth(read.path)}  # one at a time in memory
                stop = read.offset + read.size if read.size else None
                if whole[read.path][read.offset : stop] != got:
                    raise WrongBytesError(f"{read.path} at {read.offset}")

    size = sum(len(got) for lane in done for _, got in lane)
    return Sample(sum(map(len, done)), size, seconds, [one for lane in latencies for one in lane], check)


# -- reads ------------------------------------------------------------------------------------------------------------


def stream(truth: Dataset, paths: Sequence[str], request: int) -> list[list[Read]]:
    """Every path from its beginning to its end, a lane each."""
    return [[Read(path, at, request) for at in range(0, truth.size(path), request)] for path in paths]


def scattered(truth: Dataset, path: str, request: int, count: int) -> list[list[Read]]:
    """`count` reads all over one file, none twice."""
    places = random.Random(11).sample(range(truth.size(path) // request), min(count, truth.size(path) // request))
    return [[Read(path, place * request, request) for place in places]]


def shuffled(truth: Dataset, directory: str, readers: int) -> list[list[Read]]:
    """Whole files in shuffled order, dealt to so many readers."""
    paths = truth.files(directory)
    random.Random(13).shuffle(paths)
    return [[Read(path, 0, 0) for path in paths[number::readers]] for number in range(readers)]


def mapped(root: Path, truth: Dataset, limit: Limit) -> Sample:
    """Eight threads copy pieces of 64 KiB out of one mapping, as tensors are loaded."""
    path, piece = "random/mmap.bin", 65_536
    lane = scattered(truth, path, piece, 1024)[0]
    quota = None if limit.ops is None else -(-limit.ops // 8)
    stop_at = time.perf_counter() + limit.seconds
    with (root / path).open("rb") as file:
        view = numpy.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), dtype=numpy.uint8)
    latencies: list[float] = []
    got: list[tuple[Read, Any]] = []

    def work(number: int) -> None:
        for read in lane[number::8][:quota]:
            began = time.perf_counter()
            if began > stop_at:
                return
            got.append((read, view[read.offset : read.offset + piece].copy()))  # numpy lets go of the GIL for it
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    seconds = time.perf_counter() - began

    def check() -> None:
        whole = truth.truth(path)
        if any(whole[read.offset : read.offset + piece] != body.tobytes() for read, body in got):
            raise WrongBytesError(path)

    return Sample(len(got), len(got) * piece, seconds, latencies, check)


def parquet(root: Path, truth: Dataset, limit: Limit) -> Sample:
    """The footer, then three of sixteen columns."""
    columns = ["c1", "c7", "c12"]
    began = time.perf_counter()
    table = pyarrow.parquet.read_table(root / "tables/table.parquet", columns=columns, memory_map=False)
    seconds = time.perf_counter() - began

    def check() -> None:
        if not table.equals(pyarrow.parquet.read_table(truth.root / "tables/table.parquet", columns=columns)):
            raise WrongBytesError("tables/table.parquet")

    return Sample(1, table.nbytes, seconds, [seconds], check)


def shard(root: Path, truth: Dataset, limit: Limit) -> Sample:
    """A tar from its beginning to its end, member by member, as webdataset does."""
    members: list[tuple[str, bytes]] = []

    def read(path: Path) -> Iterator[tuple[str, bytes]]:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                body = tar.extractfile(member)
                yield member.name, body.read() if body else b""

    began = time.perf_counter()
    members.extend(read(root / "shards/shard.tar"))
    seconds = time.perf_counter() - began

    def check() -> None:
        if members != list(read(truth.root / "shards/shard.tar")):
            raise WrongBytesError("shards/shard.tar")

    return Sample(len(members), sum(len(body) for _, body in members), seconds, [], check)


def model(root: Path, truth: Dataset, limit: Limit) -> Sample:
    """All tensors of a model, through safetensors' own mapping."""

    def load(path: Path) -> dict[str, Any]:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict

    began = time.perf_counter()
    tensors = load(root / "models/model.safetensors")
    seconds = time.perf_counter() - began

    def check() -> None:
        wanted = load(truth.root / "models/model.safetensors")
        if any(not numpy.array_equal(tensors[name], tensor) for name, tensor in wanted.items()):
            raise WrongBytesError("models/model.safetensors")

    return Sample(1, sum(tensor.nbytes for tensor in tensors.values()), seconds, [seconds], check)


# -- metadata ---------------------------------------------------------------------------------------------------------


def walk(root: Path, truth: Dataset, limit: Limit) -> Sample:
    """find over everything but the flat directory."""
    began = time.perf_counter()
    command = ["find", str(root), "-path", str(root / "names"), "-prune", "-o", "-type", "f", "-print"]
    out = subprocess.run(command, capture_output=True, check=True).stdout.decode().splitlines()
    seconds = time.perf_counter() - began

    def check() -> None:
        wanted = [path for path in truth.files(".") if not path.startswith("names/")]
        seen = sorted(os.path.relpath(path, root) for path in out)
        seen = [path for path in seen if not path.startswith((".", "written"))]  # JuiceFS's own; another arm's leftover
        if seen != wanted:
            raise WrongBytesError(f"find saw {len(seen)} files, not {len(wanted)}")

    return Sample(len(out), 0, seconds, [], check)


def long_list(root: Path, truth: Dataset, limit: Limit) -> Sample:
    """ls -l of one flat directory."""
    began = time.perf_counter()
    out = subprocess.run(["ls", "-l", str(root / "names")], capture_output=True, check=True).stdout
    seconds = time.perf_counter() - began

    def check() -> None:
        if out.count(b".txt\n") != truth.scale.names:
            raise WrongBytesError(f"ls saw {out.count(b'.txt')} files")

    return Sample(truth.scale.names, 0, seconds, [], check)


def missing_names(root: Path, truth: Dataset, limit: Limit) -> Sample:
    """stat of names that do not exist, in a directory that was listed."""
    latencies: list[float] = []
    stop_at = time.perf_counter() + limit.seconds
    began = time.perf_counter()
    for number in range(1000 if limit.ops is None else limit.ops):
        once = time.perf_counter()
        if once > stop_at:
            break
        if (root / "names" / f"no-such-{number}").exists():
            raise WrongBytesError("a name that does not exist")
        latencies.append(time.perf_counter() - once)
    return Sample(len(latencies), 0, time.perf_counter() - began, latencies)


# -- writes -----------------------------------------------------------------------------------------------------------


def write_streams(
    root: Path, size: int, streams: int, tag: str, *, sync: bool = False
) -> tuple[Sample, dict[str, bytes]]:
    """`size` bytes in 1 MiB writes over so many files at once; the time ends with the last close(), before which it is
    fsync'ed if `sync`."""
    body = numpy.random.default_rng(17).bytes(size // streams)
    paths = [f"written-{tag}-{number}.bin" for number in range(streams)]

    def write(path: str) -> None:
        with (root / path).open("wb", buffering=0) as file:
            for at in range(0, len(body), MIB):
                file.write(body[at : at + MIB])
            if sync:
                os.fsync(file.fileno())

    began = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(write, paths))
    seconds = time.perf_counter() - began
    return Sample(streams, len(body) * streams, seconds), dict.fromkeys(paths, body)


def write_many(
    root: Path, count: int, size: int, tag: str, limit: Limit, *, writers: int = 1, sync: bool = False
) -> tuple[Sample, dict[str, bytes]]:
    """Small files in a directory of their own, by so many writers at once; fsync'ed before close() if `sync`."""
    directory = f"written-{tag}"
    (root / directory).mkdir()
    body = numpy.random.default_rng(19).bytes(size)
    stop_at = time.perf_counter() + limit.seconds

    def write(number: int) -> tuple[str, float] | None:
        once = time.perf_counter()
        if once > stop_at:
            return None
        path = f"{directory}/{number:05}"
        with (root / path).open("wb", buffering=0) as file:
            file.write(body)
            if sync:
                os.fsync(file.fileno())
        return path, time.perf_counter() - once

    began = time.perf_counter()
    with ThreadPoolExecutor(writers) as pool:
        done = [found for found in pool.map(write, range(count)) if found is not None]
    seconds = time.perf_counter() - began
    return Sample(len(done), len(done) * size, seconds, [took for _, took in done]), {path: body for path, _ in done}


def checkpoint(root: Path, size: int, tag: str) -> tuple[Sample, dict[str, bytes]]:
    """Save a model by safetensors, then load it back."""
    shape = (1024, size // 16 // 4 // 1024)
    source = numpy.random.default_rng(23)
    tensors = {f"w{number}": source.random(shape, dtype=numpy.float32) for number in range(16)}
    path = f"written-{tag}.safetensors"
    began = time.perf_counter()
    safetensors.numpy.save_file(tensors, root / path)
    with safetensors.safe_open(root / path, framework="numpy") as loaded:
        got = {name: loaded.get_tensor(name) for name in tensors}
    seconds = time.perf_counter() - began

    def check() -> None:
        if any(not numpy.array_equal(got[name], tensor) for name, tensor in tensors.items()):
            raise WrongBytesError(path)

    return Sample(1, size, seconds, [], check), {path: safetensors.numpy.save(tensors)}
