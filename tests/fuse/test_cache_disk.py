"""The disk under the cache directory fails beneath a running mount: full, read-only, dead, removed, cut, overwritten.

Readers always get the right bytes and no error. Writers get what they were acknowledged, or an errno that says what is
wrong. The mount stays, says so in a few lines, and the next mount on the mended disk is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from minio import Minio

from tests.campaign import SEED, THOROUGH, times
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, drop_page_cache, is_running, until
from tests.fuse.trees import get, put, random_bytes, read_tree
from tests.servers import Server

MIB = 1024**2
_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: from then on the file system answers with EIO, as where the device is gone."""
_WITHOUT_LOG = struct.pack("I", 2)
TOLD = 12
"""Lines at WARNING and above that one fault may cause: each part of the mount says its own, once."""
REFUSALS = {errno.ENOSPC, errno.EIO, errno.EROFS}
KEYS = [f"d{number % 3}/f{number:02}" for number in range(times(9, 18))]


@pytest.fixture
def server(moto: Server) -> Server:
    """One server: what is shown here does not depend on its manners."""
    return moto


@pytest.fixture
def files(client: Minio, bucket: str) -> dict[str, bytes]:
    found = {key: random_bytes(number * 47_001, number) for number, key in enumerate(KEYS)}
    for key, data in found.items():
        put(client, bucket, key, data)
    return found


@dataclass
class Disk:
    """A file system of 48 MiB that holds a cache directory; `device` is its loop device, if it has one."""

    path: Path
    image: Path | None

    def start(self) -> None:
        """It is there, and sound."""
        if self.image is None:
            self._mount("-t", "tmpfs", "-o", "size=48m", "tmpfs")
        else:
            self._mount("-o", "loop,errors=remount-ro", str(self.image))

    def _mount(self, *arguments: str) -> None:
        done = subprocess.run(["mount", *arguments, self.path], capture_output=True, check=False, text=True)
        if done.returncode:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")

    def mend(self) -> None:
        """What an administrator does once nobody uses it."""
        (self.path / "ballast").unlink(missing_ok=True)
        if self.image is not None:
            self.end()
            subprocess.run(["e2fsck", "-fy", self.image], check=False, capture_output=True)
            self.start()

    def end(self) -> None:
        subprocess.run(["umount", "-l", self.path], check=True)

    @property
    def device(self) -> str:
        found = subprocess.run(["findmnt", "-no", "SOURCE", self.path], capture_output=True, check=True, text=True)
        return Path(found.stdout.strip()).name


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Mounts a small file system where the test's mount has its cache directory."""
    made: list[Disk] = []

    def make(kind: str) -> Disk:
        path = tmp_path / "home/cache"
        path.mkdir(parents=True)
        image = None
        if kind == "ext4":
            image = tmp_path / "image"
            with image.open("wb") as file:
                file.truncate(48 * MIB)
            subprocess.run(["mkfs.ext4", "-q", image], check=True)
        disk = Disk(path, image)
        disk.start()
        made.append(disk)
        return disk

    yield make
    for disk in made:
        disk.end()


# -- faults -------------------------------------------------------------------------------------------------------


def _full(disk: Disk) -> None:
    with open(disk.path / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def _read_only(disk: Disk) -> None:
    Path(f"/sys/fs/ext4/{disk.device}/trigger_fs_error").write_text("lazyfs's test")


def _dead(disk: Disk) -> None:
    descriptor = os.open(disk.path, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_LOG)
    finally:
        os.close(descriptor)


def _emptied(disk: Disk) -> None:
    for path in disk.path.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _renamed(disk: Disk) -> None:
    away = disk.path / "away"
    away.mkdir()
    for path in disk.path.iterdir():
        if path != away and path.name != "write-back":  # that is no cache: its files are looked for where they were
            path.rename(away / path.name)


def _values_gone(disk: Disk) -> None:
    for path in disk.path.glob("blocks/??/*.val"):
        path.unlink()


def _cut(disk: Disk) -> None:
    for path in _databases(disk):
        os.truncate(path, path.stat().st_size // 2)


def _emptied_databases(disk: Disk) -> None:
    for path in _databases(disk):
        os.truncate(path, 0)


def _overwritten(disk: Disk) -> None:
    random = Random(SEED)
    for path in [*_databases(disk), *disk.path.glob("blocks/??/*.val")]:
        with path.open("r+b") as file:
            size = path.stat().st_size
            file.seek(min(size, 4096 if path.suffix == ".db" else 0))
            file.write(random.randbytes(max(0, size - file.tell())))


def _databases(disk: Disk) -> list[Path]:
    # Not cache.db-shm: SQLite maps it, as several mounts share the directory. Cutting that is SIGBUS.
    return [*disk.path.glob("blocks/cache.db"), *disk.path.glob("index/*.db"), *disk.path.glob("*/*.db-wal")]


FAULTS: dict[str, tuple[str, Callable[[Disk], None]]] = {
    "full": ("tmpfs", _full),
    "full ext4": ("ext4", _full),
    "read-only": ("ext4", _read_only),
    "dead": ("ext4", _dead),
    "emptied": ("tmpfs", _emptied),
    "renamed": ("tmpfs", _renamed),
    "values gone": ("tmpfs", _values_gone),
    "databases cut": ("tmpfs", _cut),
    "databases emptied": ("tmpfs", _emptied_databases),
    "overwritten": ("tmpfs", _overwritten),
}
IN_CI = [("full", True)]
CASES = [(fault, back) for fault in FAULTS for back in (False, True)] if THOROUGH else IN_CI


# -- what must hold -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def may_be_refused(refusals: list[OSError]) -> Iterator[None]:
    """A program's call, which may fail; the reason must be one that says what is wrong."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        refusals.append(error)


def write(path: Path, data: bytes) -> bool:
    """Whether the program was told that it is done."""
    refusals: list[OSError] = []
    with may_be_refused(refusals):
        path.write_bytes(data)
    return not refusals


def make_directory(path: Path) -> bool:
    """The same of a directory, which may be there."""
    refusals: list[OSError] = []
    with may_be_refused(refusals):
        path.mkdir(exist_ok=True)
    return not refusals


def finish(descriptor: int, rest: bytes) -> bool:
    """The same of what was begun before the fault."""
    refusals: list[OSError] = []
    with may_be_refused(refusals):
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    with may_be_refused(refusals):
        os.close(descriptor)
    return not refusals


def lines(m: Mount) -> list[str]:
    return [line for line in m.log().splitlines() if any(f" {level} " in line for level in ("WARNING", "ERROR"))]


@pytest.mark.campaign
@pytest.mark.parametrize(("fault", "back"), CASES)
def test_a_disk_that_fails_beneath_a_mount_is_never_an_error_to_a_reader(
    mount: Mounter,
    make_disk: Callable[[str], Disk],
    client: Minio,
    bucket: str,
    files: dict[str, bytes],
    fault: str,
    back: bool,
) -> None:
    kind, harm = FAULTS[fault]
    disk = make_disk(kind)
    options = ("--metadata-ttl", "0", *(("--write-back",) if back else ()))
    m = mount(*options, expect_log=["."], time_limit_s=150)
    m.wait_imported()
    wanted = dict(files)
    for key in KEYS[::2]:
        assert (m / key).read_bytes() == files[key]
    assert write(m / "before", b"acknowledged")
    wanted["before"] = b"acknowledged"
    m.wait_uploaded()
    until(lambda: m.status()["cache"]["disk"]["used"] > sum(len(files[key]) for key in KEYS[::2]), "they are cached")
    reader = os.open(m / KEYS[-1], os.O_RDONLY)
    assert os.pread(reader, 1000, 0) == files[KEYS[-1]][:1000]
    begun = random_bytes(3 * MIB, 99)
    writer = os.open(m / "d0/begun", os.O_CREAT | os.O_WRONLY)
    assert os.write(writer, begun[:MIB]) == MIB

    harm(disk)
    for turn in range(times(1, 3)):
        drop_page_cache()
        for key, data in files.items():
            assert (m / key).read_bytes() == data, (turn, key)
        assert {key[3:] for key in KEYS if key.startswith("d0")} <= set(os.listdir(m / "d0"))
        new = random_bytes(100_000 * turn, turn)
        for name in (f"new{turn}", f"d1/new{turn}", f"made{turn}/new"):
            if make_directory((m / name).parent) and write(m / name, new):
                wanted[name] = new
                assert (m / name).read_bytes() == new
    size = os.fstat(reader).st_size
    assert b"".join(os.pread(reader, MIB, at) for at in range(0, size, MIB)) == files[KEYS[-1]]
    os.close(reader)
    if finish(writer, begun[MIB:]):
        wanted["d0/begun"] = begun
    assert is_running(m.pid)
    status = m.status()
    assert len(lines(m)) <= TOLD, lines(m)
    assert "unexpected error" not in m.log()
    assert lines(m) or fault in {"values gone"}, "nobody was told"
    _told(fault, status)

    if (m.umount("--timeout", "2s") if back else m.umount()).returncode:
        assert back, "what could not be uploaded without the disk waits for the next mount"
    until(lambda: not is_running(m.pid), "the daemon ends", 60)
    disk.mend()
    again = mount(*options, expect_log=["index", "cache ", "damaged"], time_limit_s=100)
    again.wait_imported()
    again.wait_uploaded()
    found = read_tree(again.path)[0]
    assert {key: found.get(key) for key in wanted} == wanted
    for key, data in wanted.items():
        assert get(client, bucket, key) == data, key


def _told(fault: str, status: dict[str, object]) -> None:
    """`lazyfs status` says what is wrong."""
    cache, index = status["cache"], status["index"]
    assert isinstance(cache, dict)
    assert isinstance(index, dict)
    if fault in {"full", "full ext4", "read-only", "dead"}:
        assert index["trouble"]
        assert not cache["disk"]["on"] or cache["disk"]["gives_way"]
