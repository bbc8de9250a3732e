"""What a preload costs those who read meanwhile: latency of random reads alone and beside it, and what it brings.

``scripts/bench preload [--rounds 3] [--seconds 5]``: eight readers of random 256 KiB of one object, each place once, on
both endpoints; then the same while `lazyfs preload` brings a tree of its own; then the preload alone. Prints a Markdown
table. Nothing is left mounted or running.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import obstore

from bench.arms import Lazyfs
from bench.dataset import MIB
from bench.report import machine
from bench.servers import Endpoint, endpoints, raw_client
from lazyfs.control import client, registry

READERS = 8
READ = 256 * 1024
LARGE = 2048 * MIB
TREE, PIECE = 48, 64 * MIB
BUCKET = "bench"


def fill(endpoint: Endpoint) -> None:
    """One large object to read, and a tree to preload."""
    store = raw_client(endpoint, BUCKET)
    piece = numpy.random.default_rng(5).bytes(PIECE)
    obstore.put(store, "large", piece * (LARGE // PIECE))
    for number in range(TREE):
        obstore.put(store, f"tree/{number:03}", piece)


def read_for(path: Path, places: list[int], seconds: float) -> list[float]:
    """Milliseconds of each read, of READERS at the same time; takes the places it reads off the list."""
    until, lock, took = time.perf_counter() + seconds, threading.Lock(), []

    def work(_: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            while time.perf_counter() < until:
                with lock:
                    place = places.pop()
                began = time.perf_counter()
                assert len(os.pread(fd, READ, place)) == READ
                took.append((time.perf_counter() - began) * 1000)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(work, range(READERS)))
    return took


def disk_used(mountpoint: Path) -> int:
    """Bytes that the SSD tier holds."""
    registration = registry.find(mountpoint)
    assert registration is not None
    status: dict[str, Any] = client.call(registration.socket, "status")
    return int(status["cache"]["disk"]["used"])


def measure(endpoint: Endpoint, scratch: Path, seconds: float, seed: int) -> dict[str, float]:
    """One round on a fresh mount."""
    places = list(range(0, LARGE, READ))
    random.Random(seed).shuffle(places)
    with Lazyfs().mounted(endpoint, BUCKET, scratch) as view:
        time.sleep(1)
        read_for(view.path / "large", places, 1)  # the first ones also make threads and connections
        alone = read_for(view.path / "large", places, seconds)
        command = [sys.executable, "-m", "lazyfs", "preload", str(view.path / "tree")]
        subprocess.run(command, check=True, capture_output=True)
        before = disk_used(view.path)
        beside = read_for(view.path / "large", places, seconds)
        between = disk_used(view.path)
        time.sleep(2)
        after = disk_used(view.path)
    shutil.rmtree(scratch)
    return {
        "p50": statistics.median(alone), "p99": numpy.percentile(alone, 99),
        "p50 beside": statistics.median(beside), "p99 beside": numpy.percentile(beside, 99),
        "reads/s": len(alone) / seconds, "reads/s beside": len(beside) / seconds,
        "preload MB/s beside": (between - before - len(beside) * READ) / seconds / 1e6,
        "preload MB/s alone": (after - between) / 2 / 1e6,
    }  # fmt: skip


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-bench-", ignore_cleanup_errors=True) as disk,
        tempfile.TemporaryDirectory(prefix="lazyfs-bench-", dir="/dev/shm", ignore_cleanup_errors=True) as fast,
        endpoints(Path(fast), ["direct", "shaped"], None, [BUCKET]) as places,
    ):
        fill(places[0])
        for endpoint in places:
            rounds = [
                measure(endpoint, Path(disk) / f"{endpoint.name}-{number}", options.seconds, number)
                for number in range(options.rounds)
            ]
            rows[endpoint.name] = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
            rows[endpoint.name]["p99 ratio"] = statistics.median(one["p99 beside"] / one["p99"] for one in rounds)
    print(f"{machine()}. {options.rounds} round(s) of {options.seconds:g} s, medians; latencies in ms.\n")
    names = list(rows["direct"])
    print("| endpoint | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
    for endpoint_name, row in rows.items():
        print(f"| {endpoint_name} | " + " | ".join(f"{row[name]:.3g}" for name in names) + " |")


if __name__ == "__main__":
    main()
