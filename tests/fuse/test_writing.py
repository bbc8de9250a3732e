"""Writing with the programs that people use: what they wrote is what the independent client reads."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import safetensors.numpy
from minio import Minio
from minio.error import S3Error

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, witness
from tests.fuse.trees import CONTROL_NAMES, ODD_NAMES, get, keys, put, random_bytes, said
from tests.servers import Server

MIB = 1024**2
PART = 8 * MIB


@pytest.fixture
def stored(shared_mount: Mount, shared_server: Server, room: Path) -> Callable[[str], bytes]:
    """What the bucket holds under a name in the test's room."""
    client = witness(shared_server)
    return lambda name: get(client, shared_mount.bucket, f"{room.name}/{name}")


@pytest.fixture
def facts(shared_mount: Mount, shared_server: Server, room: Path) -> Callable[[str], dict[str, str]]:
    """The user metadata that the bucket holds under a name in the test's room."""
    client = witness(shared_server)
    return lambda name: said(client, shared_mount.bucket, f"{room.name}/{name}")


@pytest.fixture
def stored_names(shared_mount: Mount, shared_server: Server, room: Path) -> Callable[[], list[str]]:
    """The keys of the test's room, without its prefix and its own marker."""
    client, prefix = witness(shared_server), f"{room.name}/"
    return lambda: [key[len(prefix) :] for key in keys(client, shared_mount.bucket, prefix) if key != prefix]


def large(server: Server, size: int) -> int:
    """A size of several parts; moto is slow, so it gets no more than two and a half."""
    return min(size, 20 * MIB) if server.name == "moto" else size


# -- programs -------------------------------------------------------------------------------------------------------


@pytest.mark.both_sessions
def test_cp(room: Path, stored: Callable[[str], bytes], shared_server: Server, tmp_path: Path) -> None:
    sizes = [0, 1, 4096, PART - 1, PART, PART + 1, large(shared_server, 64 * MIB + 3)]
    for size in sizes:
        source = tmp_path / f"{size}"
        source.write_bytes(random_bytes(size, size))
        subprocess.run(["cp", source, room / source.name], check=True)
        assert stored(source.name) == source.read_bytes()
        assert (room / source.name).read_bytes() == source.read_bytes()
        assert (room / source.name).stat().st_size == size


@pytest.mark.parametrize(
    ("block", "count", "flags"),
    [
        ("1", 300, []),
        ("511", 700, []),
        ("4k", 300, []),
        ("64k", 40, []),
        ("1M", 18, []),
        ("3M", 6, []),
        ("1M", 18, ["conv=fsync"]),
        ("9M", 2, ["oflag=direct"]),
        ("64k", 40, ["oflag=dsync"]),
    ],
)
def test_dd(
    room: Path, stored: Callable[[str], bytes], tmp_path: Path, block: str, count: int, flags: list[str]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(random_bytes(20 * MIB))
    command = ["dd", f"if={source}", f"of={room}/out", f"bs={block}", f"count={count}", "iflag=fullblock", *flags]
    subprocess.run(command, check=True, capture_output=True)
    units = {"k": 1024, "M": MIB}
    written = int(block.rstrip("kM")) * units.get(block[-1], 1) * count
    assert stored("out") == source.read_bytes()[:written]


def test_dd_appends(room: Path, stored: Callable[[str], bytes], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random_bytes(100_000))
    for _ in range(3):
        command = ["dd", f"if={source}", f"of={room}/out", "bs=7k", "oflag=append", "conv=notrunc"]
        subprocess.run(command, check=True, capture_output=True)
    assert stored("out") == source.read_bytes() * 3


@pytest.mark.both_sessions
def test_a_checkpoint_like_torch_save(room: Path, stored: Callable[[str], bytes], shared_server: Server) -> None:
    tensors = [random_bytes(large(shared_server, 30 * MIB) // 6, seed) for seed in range(6)]

    # Stored members one after the other, the index at the end.
    with Forward(room / "model.pt") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member("model/data.pkl"), b"pickle")
        for number, tensor in enumerate(tensors):
            archive.writestr(_member(f"model/data/{number}"), tensor)
    with zipfile.ZipFile(io.BytesIO(stored("model.pt"))) as archive:
        assert archive.testzip() is None
        assert [archive.read(f"model/data/{number}") for number in range(6)] == tensors
    with zipfile.ZipFile(room / "model.pt") as archive:
        assert archive.read("model/data/3") == tensors[3]


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, (2024, 1, 2, 3, 4, 6))


class Forward(io.RawIOBase):
    """A file that only goes forward, as torch's zip writer uses one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1024)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self._file.write(data)  # type: ignore[arg-type]

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def test_safetensors_saves_and_loads(room: Path, stored: Callable[[str], bytes], shared_server: Server) -> None:
    """It makes a file of the final size, writes, renames it over the target while it is open, and maps to load."""
    rows = large(shared_server, 64 * MIB) // 16 // 4096
    for generation in range(2):
        tensors = {f"w{n}": numpy.full((rows, 1024), n + generation, numpy.float32) for n in range(16)}
        safetensors.numpy.save_file(tensors, room / "model.safetensors")
        assert stored("model.safetensors") == safetensors.numpy.save(tensors)
        loaded = safetensors.numpy.load_file(room / "model.safetensors")
        assert all(numpy.array_equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert os.listdir(room) == ["model.safetensors"]


def test_a_small_zip_that_seeks_back(room: Path, stored: Callable[[str], bytes]) -> None:
    with zipfile.ZipFile(room / "small.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"{number}.txt", f"text {number}" * 1000)
    with zipfile.ZipFile(room / "small.zip", "a") as archive:
        archive.writestr("appended", b"later")
    with zipfile.ZipFile(io.BytesIO(stored("small.zip"))) as archive:
        assert archive.testzip() is None
        assert archive.read("appended") == b"later"
        assert len(archive.namelist()) == 21


def test_cp_a_and_tar(room: Path, stored: Callable[[str], bytes], tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(12):
        path = source / f"d{number % 3}" / f"file {number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random_bytes(number * 1000, number))
    os.utime(source / "d0" / "file 0.txt", (1_600_000_000, 1_600_000_000))
    for path in source.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    subprocess.run(["cp", "-a", source, room / "copied"], check=True)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(source, "extracted")
    subprocess.run(["tar", "-xf", tmp_path / "all.tar", "-C", room], check=True)
    for path in source.rglob("*.txt"):
        name = path.relative_to(source)
        assert stored(f"copied/{name}") == path.read_bytes()
        assert stored(f"extracted/{name}") == path.read_bytes()
    subprocess.run(["diff", "-r", source, room / "copied"], check=True)
    assert (room / "copied/d0/file 0.txt").stat().st_mtime == 1_600_000_000


def test_odd_names_come_back_as_they_were_written(
    room: Path, stored: Callable[[str], bytes], shared_server: Server
) -> None:
    names = ODD_NAMES + ([] if "control-keys" in shared_server.limits else CONTROL_NAMES)
    for name in names:
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        (room / name).write_bytes(name.encode())
    for name in names:
        assert stored(name) == name.encode()
    assert {name.split("/")[0] for name in names} == set(os.listdir(room))


# -- descriptors that are shared --------------------------------------------------------------------------------------


@pytest.mark.both_sessions
def test_dup_and_close_do_not_finish_the_file(
    room: Path, stored: Callable[[str], bytes], shared_server: Server
) -> None:
    data = random_bytes(large(shared_server, 20 * MIB))
    half = len(data) // 2
    file = os.open(room / "f", os.O_CREAT | os.O_WRONLY)
    _write_all(file, data[:half])
    os.close(os.dup(file))
    with pytest.raises(S3Error):
        stored("f")
    _write_all(file, data[half:])
    os.close(file)
    assert stored("f") == data


@pytest.mark.parametrize("ending", ["exits", "execs", "closes"])
def test_a_forked_child_does_not_finish_the_file(
    room: Path, stored: Callable[[str], bytes], shared_server: Server, ending: str
) -> None:
    """The parent is a process of its own: pytest's threads would make fork unsafe."""
    size = large(shared_server, 20 * MIB)
    program = f"""
import os, sys
data = open("/dev/urandom", "rb").read({size})
file = os.open({str(room / "f")!r}, os.O_CREAT | os.O_WRONLY)
def write(piece):
    while piece:
        piece = piece[os.write(file, piece[:1 << 20]):]
write(data[:{size // 2}])
child = os.fork()
if child == 0:
    if {ending!r} == "execs":
        os.execv("/bin/true", ["true"])
    if {ending!r} == "closes":
        os.close(file)
    os._exit(0)
os.waitpid(child, 0)
write(data[{size // 2}:])
os.close(file)
sys.stdout.buffer.write(data)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    assert stored("f") == done.stdout


def test_a_child_writes_to_the_inherited_descriptor(
    room: Path, stored: Callable[[str], bytes], shared_server: Server
) -> None:
    size = large(shared_server, 24 * MIB)
    with (room / "f").open("wb") as file:
        file.write(b"from the parent\n")
        file.flush()
        subprocess.run(["head", "-c", str(size), "/dev/zero"], stdout=file, check=True)
        subprocess.run(["echo", "from the second child"], stdout=file, check=True)
    assert stored("f") == b"from the parent\n" + bytes(size) + b"from the second child\n"


def test_a_shell_redirects_many_commands_into_one_file(room: Path, stored: Callable[[str], bytes]) -> None:
    script = '{ for i in 1 2 3 4 5; do echo "line $i"; done; cat /etc/hostname; seq 1 20000; } > "$1"'
    subprocess.run(["sh", "-c", script, "sh", str(room / "f")], check=True)
    expected = b"".join(b"line %d\n" % number for number in range(1, 6))
    expected += Path("/etc/hostname").read_bytes() + b"".join(b"%d\n" % number for number in range(1, 20001))
    assert stored("f") == expected


def test_a_child_that_outlives_the_parents_descriptor(room: Path, stored: Callable[[str], bytes]) -> None:
    with (room / "f").open("wb") as file:
        child = subprocess.Popen(["sh", "-c", "read line; echo first; seq 1 1000"], stdin=subprocess.PIPE, stdout=file)
    child.communicate(b"go\n")
    assert child.returncode == 0
    assert stored("f") == b"first\n" + b"".join(b"%d\n" % number for number in range(1, 1001))


# -- any pattern in a small file ---------------------------------------------------------------------------------------


@pytest.mark.both_sessions
def test_small_files_take_any_pattern(room: Path, stored: Callable[[str], bytes], tmp_path: Path) -> None:
    """The same program on the mount and on a local disk."""

    def play(path: Path) -> list[bytes]:
        seen = []
        with path.open("w+b", buffering=0) as file:
            file.write(b"0123456789" * 100)
            file.seek(5)
            file.write(b"PATCH")
            file.seek(2000)
            file.write(b"after a hole")
            file.seek(0)
            seen.append(file.read())
            file.truncate(1500)
            file.truncate(1700)
            seen.append(file.read())
        with path.open("ab", buffering=0) as file:
            file.write(b"appended")
            file.write(b" twice")
        with path.open("r+b", buffering=0) as file:
            seen.append(file.read(20))
            file.seek(-4, os.SEEK_END)
            file.write(b"THEN SOME MORE")
            os.fsync(file.fileno())
            file.seek(3)
            file.write(b"!")
            seen.append(os.pread(file.fileno(), 10, 0))
        os.truncate(path, 900)
        seen.append(path.read_bytes())
        os.truncate(path, 1000)
        with path.open("r+b") as file:
            file.seek(1500)
            file.write(b"end")
        seen.append(path.read_bytes())
        return seen

    assert play(room / "f") == play(tmp_path / "f")
    assert stored("f") == (tmp_path / "f").read_bytes()
    with (room / "f").open("wb") as file:
        file.write(b"new")
    assert stored("f") == b"new"
    assert (room / "f").read_bytes() == b"new"


def test_fsync_shows_the_file_and_writing_goes_on(room: Path, stored: Callable[[str], bytes]) -> None:
    with (room / "log").open("wb", buffering=0) as file:
        for number in range(3):
            file.write(b"line %d\n" % number)
            os.fsync(file.fileno())
            assert stored("log") == b"".join(b"line %d\n" % one for one in range(number + 1))
    assert stored("log").count(b"\n") == 3


def test_fsync_of_a_short_start_does_not_end_a_large_file(
    room: Path, stored: Callable[[str], bytes], shared_server: Server
) -> None:
    data = random_bytes(large(shared_server, 20 * MIB))
    file = os.open(room / "f", os.O_CREAT | os.O_WRONLY)
    try:
        _write_all(file, data[:1000])
        os.fsync(file)
        assert stored("f") == data[:1000]
        _write_all(file, data[1000:])
    finally:
        with contextlib.suppress(OSError):
            os.close(file)
    assert stored("f") == data


def test_ftruncate_first_then_sequential(room: Path, stored: Callable[[str], bytes], shared_server: Server) -> None:
    """As safetensors saves: the size first, then 1 MiB writes, then a rename over the target."""
    data = random_bytes(large(shared_server, 20 * MIB) + 7)
    (room / "model.safetensors").write_bytes(b"the old one")
    temporary = room / ".tmp-model"
    file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.ftruncate(file, len(data))
    _write_all(file, data)
    os.close(file)
    temporary.replace(room / "model.safetensors")
    assert stored("model.safetensors") == data
    assert (room / "model.safetensors").read_bytes() == data
    assert os.listdir(room) == ["model.safetensors"]


def test_reading_what_is_being_written(room: Path) -> None:
    with (room / "f").open("wb", buffering=0) as writer:
        writer.write(b"so far")
        with (room / "f").open("rb") as reader:
            assert reader.read() == b"so far"
        assert (room / "f").stat().st_size == 6


def test_mmap_of_a_small_file_can_be_written(room: Path, stored: Callable[[str], bytes]) -> None:
    (room / "f").write_bytes(b"a" * 10_000)
    with (room / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[5000:5005] = b"MAGIC"
        view.flush()
    assert stored("f") == b"a" * 5000 + b"MAGIC" + b"a" * 4995


def test_eight_writers_at_once(room: Path, stored: Callable[[str], bytes]) -> None:
    blobs = {f"f{number}": random_bytes(1_000_000 + number, number) for number in range(8)}
    threads = [threading.Thread(target=(room / name).write_bytes, args=(data,)) for name, data in blobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert {name: stored(name) for name in blobs} == blobs


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.both_sessions
def test_mkdir_unlink_rmdir(room: Path, stored_names: Callable[[], list[str]]) -> None:
    (room / "d").mkdir()
    (room / "d/e").mkdir()
    assert stored_names() == ["d/", "d/e/"]
    (room / "d/e/f").write_bytes(b"x")
    for path in (room / "d", room / "d/e"):
        with pytest.raises(OSError, match="not empty") as raised:
            path.rmdir()
        assert raised.value.errno == errno.ENOTEMPTY
    with pytest.raises(NotADirectoryError):
        (room / "d/e/f").rmdir()
    with pytest.raises(IsADirectoryError):
        (room / "d/e").unlink()
    with pytest.raises(FileExistsError):
        (room / "d").mkdir()
    (room / "d/e/f").unlink()
    (room / "d/e").rmdir()
    (room / "d").rmdir()
    assert stored_names() == []
    assert os.listdir(room) == []
    for act in (room.joinpath("d").rmdir, room.joinpath("d").unlink, room.joinpath("d").stat):
        with pytest.raises(FileNotFoundError):
            act()


def test_rm_r(room: Path, stored_names: Callable[[], list[str]]) -> None:
    for number in range(20):
        (room / f"tree/{number % 4}").mkdir(parents=True, exist_ok=True)
        (room / f"tree/{number % 4}/{number}").write_bytes(b"x")
    subprocess.run(["rm", "-r", room / "tree"], check=True)
    assert stored_names() == []


@pytest.mark.both_sessions
def test_rename_of_a_file(room: Path, stored: Callable[[str], bytes], stored_names: Callable[[], list[str]]) -> None:
    (room / "a").write_bytes(b"one")
    (room / "sub").mkdir()
    (room / "a").rename(room / "sub/b")
    assert stored("sub/b") == b"one"
    assert stored_names() == ["sub/", "sub/b"]
    (room / "target").write_bytes(b"replaced")
    (room / "sub/b").replace(room / "target")
    assert stored("target") == b"one"
    assert (room / "target").read_bytes() == b"one"
    assert sorted(os.listdir(room)) == ["sub", "target"]
    assert os.listdir(room / "sub") == []
    with pytest.raises(FileNotFoundError):
        (room / "a").rename(room / "c")
    with pytest.raises(IsADirectoryError):
        (room / "target").rename(room / "sub")


def test_rename_while_it_is_read(room: Path) -> None:
    data = random_bytes(3 * MIB)
    (room / "a").write_bytes(data)
    with (room / "a").open("rb", buffering=0) as file:
        assert file.read(10) == data[:10]
        (room / "a").rename(room / "b")
        assert os.pread(file.fileno(), len(data), 0) == data
    assert (room / "b").read_bytes() == data


def test_publishing_by_rename(room: Path, stored: Callable[[str], bytes]) -> None:
    """As torch's distributed checkpoint does: write, fsync, unlink the old, rename."""
    for turn in range(2):
        with (room / ".metadata.tmp").open("wb") as file:
            file.write(b"metadata %d" % turn)
            file.flush()
            os.fsync(file.fileno())
        (room / ".metadata").unlink(missing_ok=True)
        (room / ".metadata.tmp").rename(room / ".metadata")
        assert stored(".metadata") == b"metadata %d" % turn


def test_a_directory_is_renamed(
    room: Path, stored: Callable[[str], bytes], stored_names: Callable[[], list[str]]
) -> None:
    """As the Hugging Face Trainer publishes a checkpoint, and as mv does it."""
    (room / "tmp-checkpoint-1/e").mkdir(parents=True)
    (room / "tmp-checkpoint-1/e/f").write_bytes(b"deep")
    with (room / "tmp-checkpoint-1/large").open("wb") as large:
        large.write(b"x" * 12 * MIB)
        os.rename(room / "tmp-checkpoint-1", room / "checkpoint-1")
        large.write(b"y")
    directory = os.open(room, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert stored("checkpoint-1/e/f") == b"deep"
    assert stored("checkpoint-1/large") == b"x" * 12 * MIB + b"y"
    subprocess.run(["mv", room / "checkpoint-1", room / "moved"], check=True)
    assert (room / "moved/e/f").read_bytes() == b"deep"
    assert stored_names() == ["moved/", "moved/e/", "moved/e/f", "moved/large"]
    shutil.rmtree(room / "moved")
    assert stored_names() == []
    with pytest.raises(FileNotFoundError):
        (room / "moved").rename(room / "again")


def test_unlink_of_an_open_file(room: Path, stored_names: Callable[[], list[str]]) -> None:
    (room / "read").write_bytes(b"still here")
    with (room / "read").open("rb", buffering=0) as file:
        assert file.read(5) == b"still"
        (room / "read").unlink()
        assert not (room / "read").exists()
        assert file.read() == b" here"
    with (room / "written").open("wb", buffering=0) as file:
        file.write(b"never seen")
        (room / "written").unlink()
    assert stored_names() == []
    assert os.listdir(room) == []
    (room / "written").write_bytes(b"again")
    assert stored_names() == ["written"]


def test_o_excl(room: Path) -> None:
    with (room / "f").open("x") as file:
        file.write("mine")
    with pytest.raises(FileExistsError):
        (room / "f").open("x")
    assert (room / "f").read_text() == "mine"


def test_truncate_of_a_missing_file(room: Path) -> None:
    with pytest.raises(FileNotFoundError):
        os.truncate(room / "nothing", 5)


def test_times_modes_and_owners(room: Path, facts: Callable[[str], dict[str, str]]) -> None:
    """What programs set is what stat tells, and what the bucket has, in the form of FSx."""
    (room / "f").write_bytes(b"x")
    os.utime(room / "f", (1_500_000_000, 1_500_000_000))
    assert (room / "f").stat().st_mtime == 1_500_000_000
    (room / "f").chmod(0o755)
    os.chown(room / "f", 12345, 54321)
    now = (room / "f").stat()
    assert (now.st_mode, now.st_uid, now.st_gid, now.st_mtime) == (0o100755, 12345, 54321, 1_500_000_000)
    assert facts("f") == {
        "file-permissions": "0100755",
        "file-owner": "12345",
        "file-group": "54321",
        "file-mtime": "1500000000000000000ns",
    }
    os.utime(room / "f")
    assert (room / "f").stat().st_mtime > 1_700_000_000
    assert facts("f")["file-mtime"] == "1500000000000000000ns", "a time alone is not uploaded"
    assert (room / "f").read_bytes() == b"x"


def test_a_new_file_has_the_mode_that_its_maker_wants(room: Path, facts: Callable[[str], dict[str, str]]) -> None:
    before = os.umask(0o027)
    try:
        for name, mode, size in (("small", 0o777, 5), ("large", 0o666, PART + MIB)):
            descriptor = os.open(room / name, os.O_CREAT | os.O_WRONLY, mode)
            _write_all(descriptor, bytes(size))
            os.close(descriptor)
            assert (room / name).stat().st_mode == 0o100000 | mode & ~0o027
            assert facts(name)["file-permissions"] == f"0100{mode & ~0o027:o}"
            assert facts(name)["file-owner"] == str(os.getuid())
        (room / "d").mkdir()
        assert (room / "d").stat().st_mode == 0o40750
    finally:
        os.umask(before)


def test_a_mode_that_is_set_while_a_large_file_is_written(room: Path, facts: Callable[[str], dict[str, str]]) -> None:
    descriptor = os.open(room / "f", os.O_CREAT | os.O_WRONLY, 0o600)
    data = random_bytes(3 * PART)
    _write_all(descriptor, data)
    os.fchmod(descriptor, 0o4711)
    os.close(descriptor)
    assert (room / "f").stat().st_mode == 0o104711
    assert facts("f")["file-permissions"] == "0104711"
    assert (room / "f").read_bytes() == data
    os.chmod(room / "f", 0o640)
    assert (room / "f").read_bytes() == data
    with (room / "f").open("ab") as file:
        file.write(b"more")
    assert (room / "f").stat().st_mode == 0o100640
    assert facts("f")["file-permissions"] == "0100640"
    assert (room / "f").read_bytes() == data + b"more"


def test_names_that_no_key_can_hold(room: Path) -> None:
    with pytest.raises(OSError, match="too long") as raised:
        (room / ("x" * 256)).write_bytes(b"")
    assert raised.value.errno == errno.ENAMETOOLONG
    deep = room
    for _ in range(3):
        deep /= "y" * 255
        deep.mkdir()
    with pytest.raises(OSError, match="too long"):
        (deep / ("z" * 255)).write_bytes(b"")
    for act in (
        lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)),
        os.mkdir,
        lambda path: os.rename(os.fsencode(deep), path),
    ):
        with pytest.raises(OSError, match="Invalid or incomplete multibyte") as raised:
            act(os.fsencode(room) + b"/not-utf8-\xff\xfe")
        assert raised.value.errno == errno.EILSEQ
    assert not os.path.exists(os.fsencode(room) + b"/not-utf8-\xff\xfe")


def test_hard_links_and_special_files_are_refused(room: Path) -> None:
    (room / "f").write_bytes(b"x")
    for act in (
        lambda: os.link(room / "f", room / "hard"),
        lambda: os.mkfifo(room / "pipe"),
    ):
        with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is looked at
            act()
        assert raised.value.errno in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
    assert os.listdir(room) == ["f"]


def test_statfs(shared_mount: Mount) -> None:
    facts = os.statvfs(shared_mount.path)
    assert facts.f_namemax == 255
    assert facts.f_bavail * facts.f_frsize > 2**50
    assert subprocess.run(["df", shared_mount.path], capture_output=True, check=True).returncode == 0


def test_everything_is_released_in_the_end(shared_mount: Mount) -> None:
    shared_mount.wait_closed()
    assert _uploads(shared_mount) == []


def _uploads(mount: Mount) -> list[object]:
    client = mount.server.client()
    found: list[object] = client.list_multipart_uploads(Bucket=mount.bucket).get("Uploads", [])
    client.close()
    return found


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:MIB]) :]


def test_append_to_a_file_that_grows_over_one_part(room: Path, stored: Callable[[str], bytes]) -> None:
    data = random_bytes(PART + 3 * MIB)
    (room / "f").write_bytes(data[: 7 * MIB])
    with (room / "f").open("ab") as file:
        file.write(data[7 * MIB :])
    assert stored("f") == data
    assert (room / "f").read_bytes() == data


def test_a_copy_within_the_mount(room: Path, stored: Callable[[str], bytes]) -> None:
    data = random_bytes(2 * MIB)
    (room / "a").write_bytes(data)
    subprocess.run(["cp", room / "a", room / "b"], check=True)
    shutil.copy2(room / "a", room / "c", follow_symlinks=False)
    assert stored("b") == stored("c") == data


def test_an_object_over_one_part_is_changed_in_place(room: Path, stored: Callable[[str], bytes]) -> None:
    data = random_bytes(PART + 1)
    (room / "big").write_bytes(data)
    with (room / "big").open("r+b", buffering=0) as file:
        file.seek(100)
        file.write(b"changed")
    changed = data[:100] + b"changed" + data[107:]
    assert stored("big") == changed
    assert (room / "big").read_bytes() == changed
    with (room / "big").open("wb") as file:
        file.write(b"replaced as a whole")
    assert stored("big") == b"replaced as a whole"


def test_without_a_cache_directory_it_is_not(mount: Mounter, bucket: str, client: Minio, server: Server) -> None:
    data = random_bytes(PART + 1)
    put(client, bucket, "big", data)
    m = mount("--cache-dir", "none")
    with (m / "big").open("r+b", buffering=0) as file, pytest.raises(OSError) as raised:  # noqa: PT011
        file.write(b"x")
    assert raised.value.errno == errno.EOPNOTSUPP
    assert get(client, bucket, "big") == data


def test_a_change_of_the_same_size_is_seen_by_rsync(room: Path, tmp_path: Path) -> None:
    """It looks at size and time."""
    (room / "f").write_bytes(b"a" * 1000)
    command = ["rsync", "-t", room / "f", tmp_path / "f"]
    subprocess.run(command, check=True)
    os.utime(room / "f", (1_600_000_000, 1_600_000_000))
    subprocess.run(command, check=True)
    with (room / "f").open("r+b") as file:
        file.write(b"b")
    subprocess.run(command, check=True)
    assert (tmp_path / "f").read_bytes() == b"b" + b"a" * 999


def test_what_is_written_is_encrypted_and_checksummed_as_told(mount: Mounter, server: Server, bucket: str) -> None:
    if server.name != "moto":
        pytest.skip("the gateway knows neither encryption nor checksums")
    m = mount("--sse", "AES256", "--storage-class", "STANDARD_IA", "--part-size", "5MiB")
    (m / "small").write_bytes(b"x")
    (m / "large").write_bytes(bytes(6 * 1024**2))
    (m / "small").rename(m / "renamed")
    client = server.client()
    for key in ("renamed", "large"):
        info = client.head_object(Bucket=bucket, Key=key)
        assert info["ServerSideEncryption"] == "AES256"
    assert client.head_object(Bucket=bucket, Key="large")["StorageClass"] == "STANDARD_IA"
    client.close()
