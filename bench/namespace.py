"""How fast a million names arrive, are walked, and are there again after a remount.

``scripts/bench namespace [--keys 1000000] [--latency-ms 50]`` lists a stand-in bucket (`bench.list_server`) by obstore
and by lazyfs in one run, and prints a Markdown table. Nothing is left mounted or running.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore

from bench.report import machine
from bench.servers import Endpoint, raw_client
from lazyfs.bench.mounting import counters, mounted
from lazyfs.control import client, registry

ROOT = Path(__file__).parent.parent
USER = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_DEFAULT_REGION": "us-east-1"}
DEADLINE_S = 600.0


@contextlib.contextmanager
def list_server(keys: int, latency_ms: float, *, flat: bool) -> Iterator[str]:
    """The stand-in bucket in a process of its own; its URL."""
    command = [sys.executable, "-m", "bench.list_server", "--keys", str(keys), "--latency-ms", str(latency_ms)]
    with subprocess.Popen(
        [*command, *(["--flat"] if flat else [])], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def list_with_obstore(url: str, expected: int) -> float:
    """Seconds that the raw client takes to list every key."""
    store = raw_client(Endpoint("stand-in", url, USER), "bench")
    began = time.perf_counter()
    count = sum(len(page) for page in obstore.list(store, chunk_size=1000))
    assert count == expected, (count, expected)
    return time.perf_counter() - began


@dataclass(slots=True)
class Mount:
    """A real mount of the stand-in bucket."""

    url: str
    scratch: Path

    @property
    def path(self) -> Path:
        """The mount point."""
        return self.scratch / "mnt"

    def mounted(self) -> contextlib.AbstractContextManager[None]:
        """Mounted read-only with an endless lease, for the body."""
        options = ("--endpoint-url", self.url, "--cache-dir", str(self.scratch / "cache"), "--read-only")
        log = ("--log-file", str(self.scratch / "log"), "--metadata-ttl", "indefinite")
        return mounted("bench", self.path, *options, *log, environment=USER)

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        found: dict[str, Any] = client.call(registry.socket_path(self.path), "status")
        return found

    def lists(self) -> int:
        """LIST and HEAD requests so far."""
        counted = counters(self.path)
        return counted.get("s3.requests.list", 0) + counted.get("s3.requests.head", 0)

    def peak_rss_mib(self) -> float:
        """The daemon's peak resident memory."""
        text = Path(f"/proc/{self.status()['pid']}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1024

    def wait_for_import(self) -> dict[str, Any]:
        """Return when the import is done, with its progress."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            progress: dict[str, Any] = self.status()["import"]
            if progress["state"] != "running":
                return progress
            time.sleep(0.25)
        raise TimeoutError("the import did not end")


def count_entries(path: Path) -> tuple[int, float]:
    """Entries that `find` sees below `path`, and the seconds it takes."""
    began = time.perf_counter()
    out = subprocess.run(["find", str(path)], capture_output=True, check=True, timeout=DEADLINE_S).stdout
    return out.count(b"\n"), time.perf_counter() - began


def measure(url: str, keys: int, *, flat: bool, rows: list[tuple[str, str]]) -> None:
    """All figures of one bucket."""
    raw_s = list_with_obstore(url, keys)
    rows.append((f"obstore lists {keys:,} keys", f"{raw_s:.1f} s"))
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as scratch:
        mount = Mount(url, Path(scratch))
        mount.path.mkdir()
        with mount.mounted():
            progress = mount.wait_for_import()
            seconds = progress["objects"] / progress["rate"]
            rows.append(("lazyfs imports them into SQLite", f"{seconds:.1f} s = {seconds / raw_s:.2f} × obstore"))
            rows.append(("LIST requests for it", f"{progress['requests']:,} ({keys / 1000:,.0f} is the least)"))
            rows.append(("peak RSS of the daemon, import", f"{mount.peak_rss_mib():.0f} MiB"))
            before = mount.lists()
            entries, took = count_entries(mount.path)
            rows.append((f"find over {entries:,} entries", f"{took:.1f} s = {entries / took:,.0f} entries/s"))
            missing = sum(1 for number in range(1000) if not (mount.path / f"no-such-{number}").exists())
            rows.append((f"S3 requests for find and {missing:,} missing names", str(mount.lists() - before)))
            rows.append(("peak RSS of the daemon, after find", f"{mount.peak_rss_mib():.0f} MiB"))
        some = "all/img_00000001.jpg" if flat else "train/n00000/n00000_0001.jpg"
        began = time.perf_counter()
        with mount.mounted():
            (mount.path / some).stat()
            rows.append(("mount again, to the first stat", f"{time.perf_counter() - began:.2f} s"))


def main() -> None:
    """Measure the nested bucket and one directory of 100,000, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    options = parser.parse_args()
    rows: list[tuple[str, str]] = []
    with list_server(options.keys, options.latency_ms, flat=False) as url:
        measure(url, options.keys, flat=False, rows=rows)
    rows.append(("**one directory of 100,000**", ""))
    with list_server(100_000, options.latency_ms, flat=True) as url:
        measure(url, 100_000, flat=True, rows=rows)
    print(f"{machine()}, LIST latency {options.latency_ms:.0f} ms\n\n| what | figure |\n| --- | --- |")
    for name, figure in rows:
        print(f"| {name} | {figure} |")


if __name__ == "__main__":
    main()
