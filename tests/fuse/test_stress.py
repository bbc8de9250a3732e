"""Many at once, for long, with little memory: every byte right, every gauge zero in the end, and no growth.

What a real mount is asked here by real processes: readers, writers, storms of names, worker pools, and kills.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from minio import Minio

from tests.campaign import SEED, THOROUGH, times
from tests.conftest import new_bucket_name
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import DEAD, Mount, drop_page_cache, until
from tests.fuse.trees import get, keys, random_bytes
from tests.servers import Server

pytestmark = pytest.mark.campaign
MIB = 1024**2


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """One is enough: the gateway is quick."""
    found: Server = request.getfixturevalue(getattr(request, "param", "gateway"))
    return found


@pytest.fixture(scope="module")
def objects(gateway: Server) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A bucket with large and small objects that nobody changes, and what they hold."""
    bucket = gateway.make_bucket(new_bucket_name())
    client = gateway.client()
    bodies = {f"large/{number}": random_bytes(8 * MIB, number) for number in range(8)}
    bodies |= {f"small/{number:05}": random_bytes(20_000, number) for number in range(times(300, 10_000))}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: client.put_object(Bucket=bucket, Key=item[0], Body=item[1]), bodies.items()))
    client.close()
    yield bucket, bodies
    gateway.drop_bucket(bucket)


@pytest.fixture
def bucket(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    """The bucket of `objects` for who reads, a new one for who writes."""
    if "objects" in request.fixturenames:
        yield request.getfixturevalue("objects")[0]
        return
    name = server.make_bucket(new_bucket_name())
    yield name
    server.drop_bucket(name)


def rss_mib(mount: Mount, what: str = "VmRSS") -> float:
    for line in Path(f"/proc/{mount.pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(what)


def assert_at_rest(mount: Mount) -> None:
    """Nothing is held for anybody."""

    def rest() -> bool:
        status = mount.status()
        return (status["open_handles"], status["connections"]["in_flight"], status["pending_uploads"]) == (0, 0, 0)

    until(rest, "every gauge is zero", timeout_s=60)
    status = mount.status()
    assert status["cache"]["memory"]["used"] <= status["cache"]["memory"]["limit"]
    if status["spool"] is not None:
        assert status["spool"]["used"] <= status["spool"]["limit"]


def test_64_readers_share_64_mib(mount: Mounter, objects: tuple[str, dict[str, bytes]]) -> None:
    """A full budget makes readers wait: it fails none, and the process does not outgrow it."""
    _, bodies = objects
    m = mount("--memory", "64MiB", "--cache-dir", "none", "--read-only", time_limit_s=600)
    before = rss_mib(m)
    names = [name for name in bodies if name.startswith("large/")]
    wrong: list[str] = []

    def read(number: int) -> None:
        random = Random(SEED + number)
        for _ in range(times(3, 40)):
            name = random.choice(names)
            with (m / name).open("rb", buffering=0) as file:
                start = random.randrange(len(bodies[name]))
                size = random.choice([4096, 100_000, MIB, 8 * MIB])
                if os.pread(file.fileno(), size, start) != bodies[name][start : start + size]:
                    wrong.append(f"{name} {start}+{size}")

    drop_page_cache()
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(read, range(64)))
    assert not wrong
    assert_at_rest(m)
    # Half of the budget again for what is on its way through Python and obstore, and 100 MiB for heaps of threads.
    assert rss_mib(m, "VmHWM") < before + 1.5 * 64 + 100


WORKERS = """
import hashlib, multiprocessing, os, random, sys

def load(path):
    with open(path, "rb") as file:
        return os.path.basename(path), hashlib.sha256(file.read()).hexdigest()

if __name__ == "__main__":
    root, method, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    paths = [entry.path for entry in os.scandir(root)]
    with open(paths[0], "rb"):  # fork inherits it, as workers inherit the index file of a data set
        with multiprocessing.get_context(method).Pool(8) as pool:
            for epoch in range(2):
                random.Random(seed + epoch).shuffle(paths)
                for name, digest in pool.imap_unordered(load, paths, chunksize=8):
                    print(name, digest)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_pools_read_each_file_in_each_epoch(
    mount: Mounter, objects: tuple[str, dict[str, bytes]], method: str, tmp_path: Path
) -> None:
    """As DataLoader does it; the second epoch asks S3 for nothing."""
    _, bodies = objects
    m = mount("--metadata-ttl", "indefinite", time_limit_s=600)
    m.wait_imported(60)
    probes = m.requests("get")
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    command = [sys.executable, str(script), str(m / "small"), method, str(SEED)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True).stdout.splitlines()
    wanted = {
        name.partition("/")[2]: hashlib.sha256(body).hexdigest() for name, body in bodies.items() if "small" in name
    }
    assert sorted(told) == sorted(f"{name} {digest}" for name, digest in wanted.items() for _ in range(2))
    assert m.requests("get") - probes == len(wanted)
    assert_at_rest(m)


STORM = """
import os, random, sys
root, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
mine = f"{root}/mine-{seed}"
os.mkdir(mine)
files, directories = {}, {""}  # what must be there: path -> content

def under(path, directory):
    return directory == "" or path.startswith(directory + "/")

def some(of):
    return rng.choice(sorted(of))

for step in range(steps):
    verb = rng.choice("write write write append read unlink rename mkdir rmdir movedir list stat shared".split())
    path = f"{some(directories)}/{rng.randrange(6)}".lstrip("/")
    if verb == "write" and path not in directories:
        body = rng.randbytes(rng.choice([0, 10, 5000, 300_000]))
        with open(f"{mine}/{path}", "wb") as file:
            file.write(body)
        files[path] = body
    elif verb == "append" and files:
        name = some(files)
        with open(f"{mine}/{name}", "ab") as file:
            file.write(b"more")
        files[name] += b"more"
    elif verb == "read" and files:
        name = some(files)
        with open(f"{mine}/{name}", "rb") as file:
            assert file.read() == files[name], name
    elif verb == "unlink" and files:
        name = some(files)
        os.unlink(f"{mine}/{name}")
        del files[name]
    elif verb == "rename" and files and path not in directories:
        name = some(files)
        os.rename(f"{mine}/{name}", f"{mine}/{path}")
        files[path] = files.pop(name)
    elif verb == "mkdir" and path not in files and path not in directories and path.count("/") < 3:
        os.mkdir(f"{mine}/{path}")
        directories.add(path)
    elif verb == "rmdir" and len(directories) > 1:
        name = some(directories - {""})
        full = any(under(other, name) for other in [*files, *(directories - {name})])
        try:
            os.rmdir(f"{mine}/{name}")
            assert not full, name
            directories.discard(name)
        except OSError:
            assert full, name
    elif verb == "movedir" and len(directories) > 1:
        name = some(directories - {""})
        new = f"moved-{step}"
        os.rename(f"{mine}/{name}", f"{mine}/{new}")
        files = {new + other[len(name):] if under(other, name) else other: body for other, body in files.items()}
        directories = {new + d[len(name):] if d == name or under(d, name) and d else d for d in directories}
    elif verb == "list":
        name = some(directories)
        inside = [path for path in [*files, *directories] if under(path, name)]
        wanted = {path[len(name):].strip("/").split("/")[0] for path in inside}
        assert set(os.listdir(f"{mine}/{name}")) == wanted - {""}, name
    elif verb == "stat" and files:
        name = some(files)
        assert os.stat(f"{mine}/{name}").st_size == len(files[name]), name
    elif verb == "shared":  # everybody's, so anything may happen to it but a hang, a wrong error or half a file
        try:
            name = f"{root}/shared-{rng.randrange(3)}"
            act = rng.randrange(3)
            if act == 0:
                with open(name + f".{seed}", "wb") as file:
                    file.write(b"whole" * 100)
                os.rename(name + f".{seed}", name)
            elif act == 1:
                with open(name, "rb") as file:
                    assert file.read() in (b"", b"whole" * 100)
            else:
                os.unlink(name)
        except (FileNotFoundError, PermissionError) as error:
            assert isinstance(error, FileNotFoundError), error
        except OSError as error:
            assert error.errno in (16, 116), error  # EBUSY, ESTALE: docs/semantics.md
for name, body in files.items():
    with open(f"{mine}/{name}", "rb") as file:
        assert file.read() == body, name
    print(f"mine-{seed}/{name}", len(body))
"""


# Write-back where `a` and `a/b` coexist, as on S3: docs/reliability.md says what the other server makes of it.
@pytest.mark.parametrize(
    ("options", "server"), [((), "gateway"), (("--write-back",), "moto")], indirect=["server"], ids=["through", "back"]
)
def test_a_storm_of_names(mount: Mounter, client: Minio, bucket: str, options: tuple[str, ...], tmp_path: Path) -> None:
    """Processes make, change, move and remove, each in a place of its own and all in one; the bucket says the same."""
    m = mount(*options, "--part-size", "5MiB", time_limit_s=900)
    script = tmp_path / "storm.py"
    script.write_text(STORM)
    steps = str(times(60, 1500))
    programs = [
        subprocess.Popen(
            [sys.executable, str(script), str(m.path), str(SEED + number), steps],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    told: list[str] = []
    for program in programs:
        out, trouble = program.communicate(timeout=800)
        assert program.returncode == 0, trouble
        told += out.splitlines()
    assert_at_rest(m)
    held = {key: get(client, bucket, key) for key in keys(client, bucket) if not key.endswith("/")}
    sizes = {f"{key} {len(body)}" for key, body in held.items() if key.startswith("mine-")}
    assert sizes == set(told)
    shutil.rmtree(m / f"mine-{SEED}")
    assert_at_rest(m)
    assert not [key for key in keys(client, bucket) if key.startswith(f"mine-{SEED}/")]
    raw = m.server.client()
    assert not raw.list_multipart_uploads(Bucket=bucket).get("Uploads")
    raw.close()


def test_a_long_run_does_not_grow(mount: Mounter, objects: tuple[str, dict[str, bytes]]) -> None:
    """Each pass opens and fetches everything anew; after the first ones the process stays as large as it is."""
    bodies = dict(sorted(objects[1].items())[:2000])
    m = mount("--memory", "32MiB", "--cache-dir", "none", "--read-only", time_limit_s=900)
    m.wait_imported(60)

    def once() -> float:
        drop_page_cache()
        for name, body in bodies.items():
            assert (m / name).read_bytes() == body
        return rss_mib(m)

    for _ in range(2):
        once()
    settled = once()
    last = [once() for _ in range(times(2, 8))][-1]
    assert last < settled * 1.1 + 8, (settled, last)
    assert_at_rest(m)


@pytest.mark.parametrize("moment", ["import and reading", "evicting"])
def test_a_reader_whose_daemon_is_killed_finds_every_byte_afterwards(
    mount: Mounter, objects: tuple[str, dict[str, bytes]], moment: str
) -> None:
    _, bodies = objects
    names = sorted(bodies)
    random = Random(SEED)
    options = ("--cache-size", "16MiB") if moment == "evicting" else ()
    for crash in range(times(2, 40)):
        m = mount(*options, "--read-only", expect_log=["damaged block", "begun anew"], time_limit_s=600)
        stop = threading.Event()

        def read(number: int, m: Mount = m, stop: threading.Event = stop, crash: int = crash) -> None:
            own = Random(SEED * 1000 + crash * 10 + number)
            while not stop.is_set():
                name = own.choice(names)
                try:
                    assert (m / name).read_bytes() == bodies[name]
                except OSError as error:
                    assert any(word in str(error) for word in (*DEAD.split("|"), "Input/output")), error  # noqa: PT017
                    return

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read, number) for number in range(4)]
            stop.wait(random.uniform(0.0, 0.8))
            m.kill()
            stop.set()
            for reader in readers:
                reader.result(timeout=60)
        assert m.umount().returncode == 0
    last = mount("--read-only", expect_log=["damaged block", "begun anew"], time_limit_s=600)
    for name in random.sample(names, min(len(names), 200)):
        assert (last / name).read_bytes() == bodies[name]
    assert_at_rest(last)


@pytest.mark.skipif(not THOROUGH, reason="with LAZYFS_THOROUGH=1")
@pytest.mark.skipif(shutil.which("stress-ng") is None, reason="stress-ng is not installed")
@pytest.mark.parametrize("options", [(), ("--write-back",)], ids=["through", "back"])
def test_stress_ng(mount: Mounter, bucket: str, options: tuple[str, ...]) -> None:
    """Its stressors of files and names that apply; each verifies what it does."""
    m = mount(*options, expect_log=["."], time_limit_s=900)
    stressors = ["dentry", "dir", "rename", "filename", "open", "seek", "access", "chmod", "utime", "dirdeep", "hdd"]
    for stressor in stressors:
        command = [
            "stress-ng", "--temp-path", str(m.path), f"--{stressor}", "2", "--timeout", "8s", "--verify", "--oomable",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, f"{stressor}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert_at_rest(m)
