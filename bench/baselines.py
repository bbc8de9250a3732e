"""What mounts are held against: the raw client (the limit), download-then-read (File mode), and the local disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
from obstore.store import S3Store

from bench.dataset import MIB, Dataset
from bench.workloads import Files, Limit, Read, Sample, WrongBytesError

CONNECTIONS = 32
EXTENT = 8 * MIB


class RawFiles(Files):
    """Reads through obstore: one range GET for each read, one GET for a whole file."""

    def __init__(self, store: S3Store) -> None:
        super().__init__(Path())
        self._store = store

    def prepare(self, paths: Sequence[str]) -> None:
        pass

    def read(self, what: Read) -> bytes:
        if what.size == 0:
            return obstore.get(self._store, what.path).bytes().to_bytes()
        return obstore.get_range(self._store, what.path, start=what.offset, length=what.size).to_bytes()


def raw_streams(store: S3Store, truth: Dataset, paths: Sequence[str]) -> Sample:
    """Whole objects as ranges of EXTENT over CONNECTIONS connections: what the link gives."""
    reads = [
        Read(path, at, min(EXTENT, truth.size(path) - at))
        for path in paths
        for at in range(0, truth.size(path), EXTENT)
    ]
    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        got = list(pool.map(RawFiles(store).read, reads))
    seconds = time.perf_counter() - began

    def check() -> None:
        for read, body in zip(reads, got, strict=True):
            if truth.truth(read.path)[read.offset : read.offset + read.size] != body:
                raise WrongBytesError(read.path)

    return Sample(len(reads), sum(map(len, got)), seconds, [], check)


def raw_writes(store: S3Store, bodies: dict[str, bytes], *, writers: int) -> Sample:
    """Put objects, so many at once; parts of 8 MiB go in parallel."""

    def put(path: str) -> float:
        once = time.perf_counter()
        obstore.put(store, path, bodies[path], chunk_size=EXTENT, max_concurrency=CONNECTIONS)
        return time.perf_counter() - once

    began = time.perf_counter()
    with ThreadPoolExecutor(writers) as pool:
        latencies = list(pool.map(put, bodies))
    return Sample(len(bodies), sum(map(len, bodies.values())), time.perf_counter() - began, latencies)


def after_download(
    store: S3Store, truth: Dataset, paths: Sequence[str], place: Path, run: Callable[[Path, Limit], Sample], _: Limit
) -> Sample:
    """What `run` does on local files, and the time that downloading them first takes. All of it, without a limit."""
    extents: list[tuple[str, int, int]] = []
    began = time.perf_counter()
    for path in paths:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        size = truth.size(path)
        with (place / path).open("wb") as file:
            file.truncate(size)
        extents += [(path, at, min(EXTENT, size - at)) for at in range(0, size, EXTENT)]

    def fetch(extent: tuple[str, int, int]) -> None:
        path, at, size = extent
        fd = os.open(place / path, os.O_WRONLY)
        try:
            os.pwrite(fd, obstore.get_range(store, path, start=at, length=size), at)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(fetch, extents))
    downloading_s = time.perf_counter() - began
    sample = run(place, Limit(600))
    shutil.rmtree(place)
    return Sample(
        sample.ops, sample.bytes, downloading_s + sample.seconds, [downloading_s, *sample.latencies_s], sample.check
    )


def drop_page_cache() -> bool:
    """Make the kernel forget file contents; whether it could."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return True
    return False
