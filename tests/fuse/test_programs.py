"""Programs that write large files in patterns of their own: seeking back, appending, patching, renaming, mapping.

Files are of several parts of 5 MiB. What a program wrote is compared in the bucket, by the independent client, and
through the mount, past the kernel's page cache too.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy

from tests.conftest import new_bucket_name
from tests.fuse.mounts import SESSIONS, Mount, mounted, until, witness
from tests.fuse.trees import get, keys, random_bytes
from tests.servers import Server

MIB = 1024**2
PART = 5 * MIB
SIZE = 12 * MIB + 345
"""Two parts and something."""

Stored = Callable[[str], bytes]


MODES = [(session, mode) for session in SESSIONS for mode in ("through", "back")]


@pytest.fixture(scope="module", params=MODES, ids="-".join)
def shared_mount(
    request: pytest.FixtureRequest, shared_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """As the usual one, with small parts; with write-back too, on one server."""
    session, mode = request.param
    if mode == "back" and shared_server.name != "gateway":
        pytest.skip("the server makes no difference to what is done later")
    options = ["--part-size", "5MiB", *(["--write-back"] if mode == "back" else [])]
    bucket = shared_server.make_bucket(new_bucket_name())
    place = tmp_path_factory.mktemp("programs")
    with mounted(bucket, shared_server, *options, directory=place, session=session, time_limit_s=400) as mount:
        yield mount
        mount.wait_uploaded()
        until(lambda: mount.status()["open_handles"] == 0, "all handles are released")
        client = shared_server.client()
        assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
        client.close()
        mount.expect_log(".")  # each room has looked at its own part of the log
    shared_server.drop_bucket(bucket)


@pytest.fixture
def stored(shared_mount: Mount, shared_server: Server, room: Path) -> Stored:
    """What the bucket holds under a name in the test's room, which is also what the mount reads."""
    client = witness(shared_server)

    def read(name: str) -> bytes:
        shared_mount.wait_uploaded()
        data = get(client, shared_mount.bucket, f"{room.name}/{name}")
        assert (room / name).read_bytes() == data
        file = os.open(room / name, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        with open(file, "rb") as opened:
            assert opened.read() == data
        return data

    return read


@pytest.fixture
def stored_names(shared_mount: Mount, shared_server: Server, room: Path) -> Callable[[], list[str]]:
    """The keys of the test's room, without its prefix and its own marker."""
    client, prefix = witness(shared_server), f"{room.name}/"

    def names() -> list[str]:
        shared_mount.wait_uploaded()
        return [key[len(prefix) :] for key in keys(client, shared_mount.bucket, prefix) if key != prefix]

    return names


def run(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """The finished command, which must succeed and say nothing on stderr."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False, **more)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done


def numbers(size: int, seed: int = 1) -> numpy.ndarray:
    """An array of `size` bytes that do not compress."""
    return numpy.frombuffer(random_bytes(size // 8 * 8, seed), numpy.uint64)


# -- arrays and tables ----------------------------------------------------------------------------------------------


def test_numpy_save(room: Path, stored: Stored) -> None:
    array = numbers(SIZE)
    numpy.save(room / "a.npy", array)
    assert numpy.array_equal(numpy.load(io.BytesIO(stored("a.npy"))), array)
    assert numpy.array_equal(numpy.load(room / "a.npy", mmap_mode="r"), array)


def test_numpy_savez_seeks_back(room: Path, stored: Stored) -> None:
    arrays = {"one": numbers(SIZE // 2), "two": numbers(SIZE // 2, 2), "small": numpy.arange(5)}
    numpy.savez(room / "a.npz", **arrays)
    for source in (io.BytesIO(stored("a.npz")), room / "a.npz"):
        loaded = numpy.load(source)
        assert all(numpy.array_equal(loaded[name], array) for name, array in arrays.items())


def test_numpy_memmap(room: Path, stored: Stored) -> None:
    """It extends the file, writes its last byte and maps it."""
    array = numbers(SIZE)
    mapped = numpy.memmap(room / "a.raw", numpy.uint64, "w+", shape=array.shape)
    mapped[:] = array
    mapped.flush()
    assert stored("a.raw") == array.tobytes()
    mapped[100_000] = 7
    del mapped
    array = array.copy()
    array[100_000] = 7
    until(lambda: stored("a.raw") == array.tobytes(), "what was mapped is uploaded when it is unmapped")


def test_h5py(room: Path, stored: Stored) -> None:
    arrays = {f"d{number}": numbers(SIZE // 3, number) for number in range(3)}
    with h5py.File(room / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs["epoch"] = 1
    _check_h5(stored("a.h5"), arrays, 1)
    with h5py.File(room / "a.h5", "r+") as file:
        file.attrs["epoch"] = 2
        arrays["d3"] = numbers(SIZE // 4, 3)
        file["d3"] = arrays["d3"]
        arrays["d0"] = arrays["d0"].copy()
        arrays["d0"][1000:2000] = 5
        file["d0"][1000:2000] = 5
    _check_h5(stored("a.h5"), arrays, 2)
    with h5py.File(room / "a.h5", "a") as file:
        file.create_dataset("grows", data=arrays["d1"], chunks=(50_000,), maxshape=(None,))
        file["grows"].resize((2 * len(arrays["d1"]),))
        file["grows"][len(arrays["d1"]) :] = arrays["d1"]
    arrays["grows"] = numpy.concatenate([arrays["d1"]] * 2)
    _check_h5(stored("a.h5"), arrays, 2)
    with h5py.File(room / "a.h5", "r") as file:
        assert numpy.array_equal(file["grows"][:], arrays["grows"])


def _check_h5(data: bytes, arrays: dict[str, numpy.ndarray], epoch: int) -> None:
    with h5py.File(io.BytesIO(data), "r") as file:
        assert file.attrs["epoch"] == epoch
        assert all(numpy.array_equal(file[name][:], array) for name, array in arrays.items())


def test_parquet(room: Path, stored: Stored) -> None:
    table = pyarrow.table({f"c{number}": numbers(SIZE // 4, number) for number in range(4)})
    pyarrow.parquet.write_table(table, room / "t.parquet", row_group_size=100_000)
    assert pyarrow.parquet.read_table(io.BytesIO(stored("t.parquet"))).equals(table)
    assert pyarrow.parquet.read_table(room / "t.parquet", columns=["c2"]).equals(table.select(["c2"]))


def test_safetensors(room: Path, stored: Stored) -> None:
    for generation in range(2):
        tensors = {f"w{number}": numbers(SIZE // 4, number + generation) for number in range(4)}
        safetensors.numpy.save_file(tensors, room / "model.safetensors")
        assert stored("model.safetensors") == safetensors.numpy.save(tensors)
        loaded = safetensors.numpy.load_file(room / "model.safetensors")
        assert all(numpy.array_equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_pickle(room: Path, stored: Stored) -> None:
    array = numbers(SIZE)
    with (room / "a.pkl").open("wb") as file:
        pickle.dump({"array": array, "more": list(range(1000))}, file, protocol=5)
    assert numpy.array_equal(pickle.loads(stored("a.pkl"))["array"], array)
    with (room / "a.pkl").open("rb") as file:
        assert numpy.array_equal(pickle.load(file)["array"], array)


def test_torch_save(room: Path, stored: Stored) -> None:
    torch = pytest.importorskip("torch")
    state = {"w": torch.arange(SIZE // 4, dtype=torch.float32)}
    torch.save(state, room / "model.pt")
    for source in (io.BytesIO(stored("model.pt")), room / "model.pt"):
        assert torch.equal(torch.load(source)["w"], state["w"])


def test_zip_in_append_mode(room: Path, stored: Stored) -> None:
    members = {f"m{number}": random_bytes(SIZE // 3, number) for number in range(4)}
    with zipfile.ZipFile(room / "a.zip", "w") as archive:
        for name in list(members)[:3]:
            archive.writestr(name, members[name])
    with zipfile.ZipFile(room / "a.zip", "a") as archive:
        archive.writestr("m3", members["m3"])
    with zipfile.ZipFile(io.BytesIO(stored("a.zip"))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == members


# -- copying --------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with a large file, and modes of all kinds."""
    tree = tmp_path / "source"
    for name, size in {"large": SIZE, "a/small": 1000, "a/b/empty": 0, "a/c": PART}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(random_bytes(size, size))
        os.utime(tree / name, (1_600_000_000, 1_600_000_000))
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for name, target in {
        "a/link": "../large",
        "up": "a",
        "dangling": "/nowhere/é",
        "a/b/to itself": "to itself",
    }.items():
        (tree / name).symlink_to(target)
        os.utime(tree / name, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    os.chown(tree / "dangling", 12345, 54321, follow_symlinks=False)
    (tree / "a").chmod(0o2710)
    (tree / "a/small").chmod(0o755)
    (tree / "a/b/empty").chmod(0o600)
    os.chown(tree / "a/c", 12345, 54321)
    for path in (tree / "a/b", tree / "a", tree):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return tree


def check_copy(tree: Path, stored: Stored, name: str, room: Path, *, modes: bool = True, owners: bool = True) -> None:
    files = [path.relative_to(tree) for path in tree.rglob("*")]
    assert files
    for path in files:
        want, have = (tree / path).lstat(), (room / name / path).lstat()
        if (tree / path).is_symlink():
            assert os.readlink(room / name / path) == os.readlink(tree / path)
            assert have.st_size == want.st_size
        elif (tree / path).is_file():
            assert stored(f"{name}/{path}") == (tree / path).read_bytes()
        assert have.st_mtime == want.st_mtime, path
        assert have.st_mode == want.st_mode or not modes, path
        assert (have.st_uid, have.st_gid) == (want.st_uid, want.st_gid) or not owners, path


def test_cp_a_then_mv(room: Path, stored: Stored, stored_names: Callable[[], list[str]], source: Path) -> None:
    run("cp", "-a", source, room / "copied")
    check_copy(source, stored, "copied", room)
    (room / "other").mkdir()
    run("mv", room / "copied/large", room / "other/moved")
    assert stored("other/moved") == (source / "large").read_bytes()
    run("cp", "-a", room / "other", room / "again")
    assert stored("again/moved") == (source / "large").read_bytes()
    assert not (room / "copied/large").exists()
    assert "copied/large" not in stored_names()


def test_copy2(room: Path, stored: Stored, source: Path) -> None:
    shutil.copy2(source / "large", room / "large")
    assert stored("large") == (source / "large").read_bytes()
    assert (room / "large").stat().st_mtime == 1_600_000_000
    shutil.copytree(source, room / "tree", symlinks=True)
    check_copy(source, stored, "tree", room, owners=False)


@pytest.mark.parametrize(
    "flags",
    [[], ["--no-perms"], ["--inplace"], ["--inplace", "--no-whole-file"], ["--append"]],
)
def test_rsync_twice(room: Path, stored: Stored, source: Path, flags: list[str]) -> None:
    command = ["rsync", "-a", *flags, f"{source}/", room / "synced/"]
    modes = "--no-perms" not in flags
    run(*command)
    check_copy(source, stored, "synced", room, modes=modes)
    if flags == ["--append"]:
        with (source / "large").open("ab") as file:
            file.write(b"later" * 100_000)
    else:
        with (source / "large").open("r+b") as file:
            file.seek(6 * MIB)
            file.write(b"changed in the middle")
    run(*command)
    check_copy(source, stored, "synced", room, modes=modes)
    assert run(*command, "--itemize-changes").stdout == "", "nothing is left to do"


def test_tar_into_the_mount(room: Path, stored: Stored, source: Path) -> None:
    run("tar", "cf", room / "all.tar", "-C", source.parent, source.name)
    with tarfile.open(fileobj=io.BytesIO(stored("all.tar"))) as archive:
        assert archive.extractfile("source/large").read() == (source / "large").read_bytes()  # type: ignore[union-attr]
    run("tar", "xf", room / "all.tar", "-C", room)
    check_copy(source, stored, "source", room)
    (source / "more").write_bytes(b"appended")
    run("tar", "rf", room / "all.tar", "-C", source, "more")
    assert "more" in run("tar", "tf", room / "all.tar").stdout.split()


# -- patching -------------------------------------------------------------------------------------------------------


def test_dd_patches_the_middle(room: Path, stored: Stored) -> None:
    want = bytearray(random_bytes(SIZE))
    (room / "f").write_bytes(want)
    for seek in (0, 1, 7, 11):
        piece = random_bytes(MIB // 2, seek)
        run("dd", f"of={room}/f", "bs=1M", "conv=notrunc", f"seek={seek}", "status=none", f"if={_file(room, piece)}")
        want[seek * MIB : seek * MIB + len(piece)] = piece
    assert stored("f") == want


def _file(room: Path, data: bytes) -> Path:
    """A file of the mount with these bytes: it is copied from there."""
    (room / "piece").write_bytes(data)
    return room / "piece"


def test_truncate(room: Path, stored: Stored) -> None:
    data = random_bytes(SIZE)
    (room / "f").write_bytes(data)
    for size in (11 * MIB, 7 * MIB + 3, 13 * MIB, 3, 12 * MIB, 0, 6 * MIB):
        run("truncate", "-s", str(size), room / "f")
        data = data[:size] + bytes(max(0, size - len(data)))
        assert (room / "f").stat().st_size == size
        assert stored("f") == data


def test_a_log_is_appended_to(room: Path, stored: Stored) -> None:
    data = random_bytes(SIZE)
    (room / "log").write_bytes(data)
    for number in range(4):
        with (room / "log").open("ab") as file:
            for line in range(100):
                file.write(b"line %d of %d\n" % (line, number))
                data += b"line %d of %d\n" % (line, number)
        run("sh", "-c", 'echo "from the shell" >> "$1"', "sh", room / "log")
        data += b"from the shell\n"
    assert stored("log") == data


def test_an_editor_saves(room: Path, stored: Stored, stored_names: Callable[[], list[str]]) -> None:
    """As vim does: the old text is renamed, the new one written and synced, the old one deleted; then by renaming."""
    (room / "text").write_bytes(random_bytes(SIZE))
    (room / "text").rename(room / "text~")
    new = random_bytes(SIZE, 2)
    with (room / "text").open("xb") as file:
        file.write(new)
        os.fsync(file.fileno())
    (room / "text").chmod(0o644)
    (room / "text~").unlink()
    assert stored("text") == new
    newer = random_bytes(SIZE, 3)
    with (room / ".text.swp").open("xb") as file:
        file.write(newer)
        (room / ".text.swp").replace(room / "text")
    assert stored("text") == newer
    assert stored_names() == ["text"]


# -- mappings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["msync", "munmap", "exit"])
def test_a_shared_mapping_that_outlives_its_descriptor(room: Path, stored: Stored, ending: str) -> None:
    """The kernel sends what was changed when it is synced or unmapped: after close(2) was answered. Nothing is lost."""
    want = bytearray(random_bytes(SIZE))
    (room / "f").write_bytes(want)
    end = {"msync": "view.flush(); view.close()", "munmap": "view.close()", "exit": "os._exit(0)"}[ending]
    program = f"""
import mmap, os
file = os.open({str(room / "f")!r}, os.O_RDWR)
view = mmap.mmap(file, 0)
os.close(file)
for at in range(0, {SIZE}, {MIB}):
    view[at : at + 5] = b"MAGIC"
{end}
"""
    for at in range(0, SIZE, MIB):
        want[at : at + 5] = b"MAGIC"
    run(sys.executable, "-c", program)
    if ending == "msync":
        assert stored("f") == want
    until(lambda: stored("f") == want, "it is uploaded when the kernel has released the file")


def test_a_private_mapping_changes_nothing(room: Path, stored: Stored) -> None:
    data = random_bytes(SIZE)
    (room / "f").write_bytes(data)
    with (room / "f").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        view[6 * MIB] = 0
    assert stored("f") == data


# -- whole applications -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["delete", "truncate", "wal"])
def test_sqlite(room: Path, stored: Stored, tmp_path: Path, journal: str) -> None:
    """Each transaction is synced, so each is uploaded whole: it works, and is no place for a busy database."""
    rows = {number: random_bytes(MIB, number) for number in range(7)}
    for start in range(0, 7, 4):
        database = sqlite3.connect(room / "a.db", isolation_level=None)
        database.execute(f"PRAGMA journal_mode = {journal}")
        database.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB)")
        database.execute("BEGIN")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(n, b) for n, b in rows.items() if start <= n < start + 4])
        database.execute("COMMIT")
        database.execute("BEGIN")
        database.execute("DELETE FROM t")
        database.execute("ROLLBACK")
        database.close()
    database = sqlite3.connect(room / "a.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert dict(database.execute("SELECT id, body FROM t").fetchall()) == rows
    database.close()
    (tmp_path / "copy.db").write_bytes(stored("a.db"))
    database = sqlite3.connect(tmp_path / "copy.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert dict(database.execute("SELECT id, body FROM t").fetchall()) == rows
    database.close()
    assert os.listdir(room) == (["a.db", "a.db-journal"] if journal == "truncate" else ["a.db"])


def test_git(room: Path, tmp_path: Path) -> None:
    origin, clone = tmp_path / "origin", room / "clone"
    env = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    for name in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{name}_NAME": "lazyfs", f"GIT_{name}_EMAIL": "lazyfs@example.org"}

    def git(place: Path, *arguments: str) -> str:
        command = ["git", "-C", str(place), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    (origin / "large").write_bytes(random_bytes(PART + MIB))
    (origin / "sub").mkdir()
    (origin / "sub/text").write_text("text\n" * 1000)
    git(origin, "add", ".")
    git(origin, "commit", "-q", "-m", "first")
    git(room, "clone", "-q", f"file://{origin}", "clone")
    assert (clone / "large").read_bytes() == (origin / "large").read_bytes()
    assert git(clone, "status", "--porcelain") == ""
    (clone / "sub/text").write_text("changed\n")
    (clone / "new").write_bytes(random_bytes(PART + MIB, 2))
    assert git(clone, "status", "--porcelain").splitlines() == [" M sub/text", "?? new"]
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "second")
    assert git(clone, "status", "--porcelain") == ""
    git(clone, "checkout", "-q", "-b", "other", "HEAD~1")
    assert (clone / "sub/text").read_text() == "text\n" * 1000
    git(clone, "checkout", "-q", "main")
    git(clone, "gc", "-q")
    git(clone, "fsck", "--strict")
    assert (clone / "new").read_bytes() == random_bytes(PART + MIB, 2)


# -- modes and owners -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["cp", "tar", "rsync", "install"])
def test_copying_an_executable(room: Path, stored: Stored, source: Path, tmp_path: Path, program: str) -> None:
    """It runs, and FSx and the next node find its mode in the bucket."""
    script = source / "a/small"
    script.write_text("#!/bin/sh\necho it runs\n")
    os.utime(script, (1_600_000_000, 1_600_000_000))
    run("tar", "cf", tmp_path / "all.tar", "-C", source.parent, source.name)
    commands: dict[str, list[str | Path]] = {
        "cp": ["cp", "-a", source, room / "source"],
        "tar": ["tar", "xpf", tmp_path / "all.tar", "-C", room],
        "rsync": ["rsync", "-a", "--inplace", source, room],
        "install": ["install", "-D", "-m", "0755", script, room / "source/a/small"],
    }
    run(*commands[program])
    if program != "install":
        check_copy(source, stored, "source", room)
    assert run(room / "source/a/small").stdout == "it runs\n"
