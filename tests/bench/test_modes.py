"""`lazyfs bench modes` end to end: a real gateway, real mounts, and nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.bench.dataset import DataSet, download, list_files
from lazyfs.bench.training import BenchError
from lazyfs.core.types import ObjectInfo
from lazyfs.store.memory import MemoryStore
from tests.fuse.mounts import ROOT, environment, lazyfs, until
from tests.servers import Server

SMALL = ("--batch", "4", "--workers", "2", "--compute", "5ms")
FILES, SIZE = 30, 20_000


class Shell:
    """A user with a directory of his own, in which the benchmark works too."""

    def __init__(self, server: Server, home: Path) -> None:
        self.server = server
        self.home = home
        self.env = environment(server, home)
        self.scratch = home / "scratch"
        self.scratch.mkdir()
        self.json = home / "modes.json"

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """`lazyfs bench modes ARGUMENTS`, small and in the scratch directory."""
        return ["bench", "modes", *SMALL, "--scratch", self.scratch, *arguments]

    def modes(self, *arguments: str | Path) -> Any:
        """The finished command."""
        return lazyfs(*self.command(*arguments), env=self.env, timeout_s=90)

    def told(self) -> dict[str, Any]:
        """What it wrote for programs."""
        found: dict[str, Any] = json.loads(self.json.read_text())
        return found

    def left(self) -> list[str]:
        """What is still there: mounts, registrations, files, processes."""
        mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.home) in line]
        files = [str(path) for folder in ("scratch", "run") for path in (self.home / folder).glob("*")]
        return mounts + files + processes_in(self.scratch)


def processes_in(path: Path) -> list[str]:
    """Processes that were started with something below `path` in their command line."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes() if process.name.isdecimal() else b""
        except OSError:
            continue
        if os.fsencode(path) + b"/" in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.fixture
def shell(gateway: Server, tmp_path: Path) -> Iterator[Shell]:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("real mounts are tested as root with /dev/fuse")
    shell = Shell(gateway, tmp_path)
    yield shell
    assert shell.left() == []


@pytest.fixture
def bucket(gateway: Server) -> Iterator[str]:
    name = gateway.make_bucket(f"modes-{os.getpid()}")
    client = gateway.client()
    for number in range(FILES):
        client.put_object(Bucket=name, Key=f"train/{number:03}.jpg", Body=os.urandom(SIZE + number))
    client.put_object(Bucket=name, Key="elsewhere.jpg", Body=b"not below the prefix")
    client.close()
    yield name
    gateway.drop_bucket(name)


def listing(server: Server, bucket: str) -> dict[str, Any]:
    client = server.client()
    answer = client.list_objects_v2(Bucket=bucket)
    client.close()
    return {found["Key"]: (found["ETag"], found["LastModified"]) for found in answer["Contents"]}


def by_mode(told: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    file, first, _preloaded, cached = told["modes"]
    return file, first, cached


def refused(done: Any, code: int, *words: str) -> None:
    """It failed with this code and one line that says all of `words`, before any work."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.slow
def test_the_modes_on_a_server_of_its_own(shell: Shell) -> None:
    png = shell.home / "modes.png"
    drawing = ("--png", png) if importlib.util.find_spec("matplotlib") else ()
    done = shell.modes("--files", "24", "--file-size", "16KiB", "--epochs", "2", "--json", shell.json, *drawing)
    assert done.returncode == 0, done.stderr
    told = shell.told()
    assert told.keys() == {"benchmark", "machine", "versions", "parameters", "modes", "notes"}
    assert told["parameters"]["files"] == 24
    assert told["parameters"]["bytes"] == 24 * 16 * 1024
    for mode in told["modes"]:
        assert mode["mode"] in done.stdout
        assert mode["bytes_read"] == 2 * 24 * 16 * 1024
        assert mode["compute_s"] == pytest.approx(2 * 6 * 0.005)
        assert 0 < mode["setup_s"] <= mode["first_batch_s"] < mode["total_s"]
        assert 0 < mode["utilisation"] < 1
    file, first, cached = by_mode(told)
    assert file["bytes"]["s3"] == first["bytes"]["s3"] == 24 * 16 * 1024
    assert file["s3_requests"] == file["s3_requests_by_kind"]["get"] == 24
    assert 24 * 16 * 1024 <= told["modes"][2]["bytes"]["s3"] <= 2 * 24 * 16 * 1024, "preload and readers share"
    assert cached["bytes"]["s3"] == 0
    assert cached["bytes"]["ssd"] == 24 * 16 * 1024
    assert "get" not in cached["s3_requests_by_kind"]
    if drawing:
        assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.slow
def test_a_users_bucket_is_only_read(shell: Shell, bucket: str) -> None:
    before = listing(shell.server, bucket)
    url = ("--endpoint-url", shell.server.endpoint_url)
    done = shell.modes(f"{bucket}/train", *url, "--limit-files", "20", "--json", shell.json)
    assert done.returncode == 0, done.stderr
    told = shell.told()
    assert told["parameters"]["files"] == 20
    assert shell.server.secret_key not in json.dumps(told)
    file, first, cached = by_mode(told)
    size = sum(SIZE + number for number in range(20))
    assert [mode["bytes"]["s3"] for mode in (file, first, cached)] == [size, size, 0]
    assert listing(shell.server, bucket) == before


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_trains(shell: Shell, end: signal.Signals) -> None:
    command = shell.command("--files", "40", "--file-size", "4KiB", "--compute", "1s")
    process = subprocess.Popen(
        [sys.executable, "-m", "lazyfs", *map(str, command)],
        env=shell.env,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "first run: train" in line or (end == signal.SIGTERM and "File mode: train" in line):
                break
        process.send_signal(end)
        assert "lazyfs: interrupted" in process.stderr.read()
    assert process.returncode == 130
    until(lambda: shell.left() == [], "nothing is left")


def test_what_cannot_work_is_said_before_any_work(shell: Shell, bucket: str) -> None:
    url = ("--endpoint-url", shell.server.endpoint_url)
    refused(shell.modes("--files", "0"), 2, "--files")
    refused(shell.modes("--compute", "soon"), 2, "--compute", "soon")
    refused(shell.modes("--compute", "indefinite"), 2, "--compute")
    refused(shell.modes("--file-size", "0"), 2, "--file-size")
    refused(shell.modes("--file-size", "big"), 2, "--file-size", "big")
    refused(shell.modes(*url), 2, "--endpoint-url", "bucket")
    refused(shell.modes("--limit-files", "9"), 2, "--limit-files", "bucket")
    refused(shell.modes(bucket, *url, "--files", "9"), 2, "--limit-files")
    refused(shell.modes(f"{bucket}/nothing-here", *url), 1, "no files", f"{bucket}/nothing-here")
    refused(shell.modes("there-is-no-such-bucket", *url), 1, "there-is-no-such-bucket")
    refused(shell.modes("--json", shell.home / "no" / "such.json"), 1, "such.json")
    refused(lazyfs("bench", "modes", "--scratch", shell.home / "no", env=shell.env), 1, str(shell.home / "no"))


def test_a_picture_without_matplotlib(shell: Shell) -> None:
    hide = "import sys; sys.modules['matplotlib'] = None\nfrom lazyfs.cli.main import main\nmain()"
    command = [sys.executable, "-c", hide, *map(str, shell.command("--png", shell.home / "modes.png"))]
    done = subprocess.run(command, env=shell.env, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    refused(done, 1, "pip install 'lazyfs[bench]'")


# -- the data set, on the verified fake -------------------------------------------------------------------------------


async def test_the_files_are_those_that_a_mount_shows() -> None:
    store = MemoryStore()
    for key in ("p/a", "p/a/b", "p/c/", "p/c//d", "p/c/../e", "p/empty", "p/f", "q"):
        await store.put(key, b"" if key == "p/empty" else key.encode())
    data = await list_files(store, prefix="p/", limit=100)
    assert sorted(data.files) == ["a/b", "f"]
    assert data.size == len("p/a/b") + len("p/f")
    assert len((await list_files(store, prefix="p/", limit=1)).files) <= 1


async def test_a_download_is_every_byte_of_every_file(tmp_path: Path) -> None:
    store, large = MemoryStore(), os.urandom(20 * 1024**2 + 7)
    await store.put("p/deep/er/large", large)
    await store.put("p/small", b"x")
    done: list[int] = []
    await download(store, await list_files(store, prefix="p/", limit=9), tmp_path, advance=done.append)
    assert (tmp_path / "deep/er/large").read_bytes() == large
    assert (tmp_path / "small").read_bytes() == b"x"
    assert done[-1] == 2


def test_other_bytes_than_before_are_noticed() -> None:
    data = DataSet({"a": ObjectInfo("a", "etag", 3, 0)})
    data.check("a", 3, b"digest")
    data.check("a", 3, b"digest")
    with pytest.raises(BenchError, match="a was read with another content"):
        data.check("a", 3, b"other")
    with pytest.raises(BenchError, match="a has 2 bytes where the bucket has 3"):
        data.check("a", 2, b"digest")
