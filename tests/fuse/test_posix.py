"""What POSIX says of paths and descriptors, after the parts of pjdfstest that apply: mostly how it says no.

What differs from POSIX stands in docs/semantics.md. The server makes no difference here, so one is enough.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import new_bucket_name
from tests.fuse.mounts import SESSIONS, Mount, mounted
from tests.servers import Server

LONG = "x" * 255
_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2


@pytest.fixture(scope="module", params=SESSIONS)
def shared_mount(
    request: pytest.FixtureRequest, moto: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """One mount for all of them."""
    bucket = moto.make_bucket(new_bucket_name())
    with mounted(bucket, moto, directory=tmp_path_factory.mktemp("posix"), session=request.param) as mount:
        yield mount
        mount.wait_closed()
    moto.drop_bucket(bucket)


@pytest.fixture
def at(room: Path) -> Iterator[Path]:
    """A directory with one of everything; the working directory meanwhile."""
    (room / "file").write_bytes(b"content")
    (room / "dir/sub").mkdir(parents=True)
    (room / "dir/inner").write_bytes(b"inner")
    (room / "empty").mkdir()
    for name, target in {"link": "file", "dirlink": "dir", "dangling": "nowhere", "loop": "loop"}.items():
        (room / name).symlink_to(target)
    before = Path.cwd()
    os.chdir(room)
    yield room
    os.chdir(before)


def renameat2(old: str, new: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), old)


def opened(flags: int, act: Callable[[int], object], path: str = "file") -> Callable[[], object]:
    def run() -> object:
        fd = os.open(path, flags, 0o644)
        try:
            return act(fd)
        finally:
            os.close(fd)

    return run


def just(flags: int, path: str) -> Callable[[], object]:
    return opened(flags, lambda fd: fd, path)


REFUSED: dict[str, tuple[int, Callable[[], object]]] = {
    # open
    "open what is not": (errno.ENOENT, just(os.O_RDONLY, "no")),
    "open below what is not": (errno.ENOENT, just(os.O_CREAT | os.O_WRONLY, "no/file")),
    "open below a file": (errno.ENOTDIR, just(os.O_RDONLY, "file/x")),
    "create below a file": (errno.ENOTDIR, just(os.O_CREAT | os.O_WRONLY, "file/x")),
    "open a file as a directory": (errno.ENOTDIR, just(os.O_RDONLY | os.O_DIRECTORY, "file")),
    "open a directory to write": (errno.EISDIR, just(os.O_WRONLY, "dir")),
    "open a directory to read and write": (errno.EISDIR, just(os.O_RDWR, "dir")),
    "truncate a directory by open": (errno.EISDIR, just(os.O_RDWR | os.O_TRUNC, "dir")),
    "create over a directory": (errno.EISDIR, just(os.O_CREAT | os.O_WRONLY, "dir")),
    "create anew what is there": (errno.EEXIST, just(os.O_CREAT | os.O_EXCL | os.O_WRONLY, "file")),
    "create anew a directory": (errno.EEXIST, just(os.O_CREAT | os.O_EXCL | os.O_WRONLY, "dir")),
    "create anew a link": (errno.EEXIST, just(os.O_CREAT | os.O_EXCL | os.O_WRONLY, "link")),
    "create anew a dangling link": (errno.EEXIST, just(os.O_CREAT | os.O_EXCL | os.O_WRONLY, "dangling")),
    "open a dangling link": (errno.ENOENT, just(os.O_RDONLY, "dangling")),
    "open a link that is not to be followed": (errno.ELOOP, just(os.O_RDONLY | os.O_NOFOLLOW, "link")),
    "open a loop": (errno.ELOOP, just(os.O_RDONLY, "loop")),
    "open a name that is too long": (errno.ENAMETOOLONG, just(os.O_CREAT | os.O_WRONLY, LONG + "x")),
    "open a path that is too long": (errno.ENAMETOOLONG, just(os.O_RDONLY, "/".join(["dir"] * 1100))),
    "open nothing": (errno.ENOENT, just(os.O_RDONLY, "")),
    "open a file with a slash": (errno.ENOTDIR, just(os.O_RDONLY, "file/")),
    # read, write, seek, truncate
    "read what is open to write": (errno.EBADF, opened(os.O_WRONLY, lambda fd: os.read(fd, 1))),
    "write what is open to read": (errno.EBADF, opened(os.O_RDONLY, lambda fd: os.write(fd, b"x"))),
    "read a directory": (errno.EISDIR, opened(os.O_RDONLY, lambda fd: os.read(fd, 1), "dir")),
    "seek before the start": (errno.EINVAL, opened(os.O_RDONLY, lambda fd: os.lseek(fd, -1, os.SEEK_SET))),
    "truncate what is open to read": (errno.EINVAL, opened(os.O_RDONLY, lambda fd: os.ftruncate(fd, 0))),
    "truncate below nothing": (errno.EINVAL, lambda: os.truncate("file", -1)),
    "truncate a directory": (errno.EISDIR, lambda: os.truncate("dir", 0)),
    "truncate what is not": (errno.ENOENT, lambda: os.truncate("no", 0)),
    "truncate to more than an object can be": (errno.EFBIG, lambda: os.truncate("file", 2**60)),
    "write where no object reaches": (errno.EFBIG, opened(os.O_RDWR, lambda fd: os.pwrite(fd, b"x", 2**60))),
    # unlink, rmdir, mkdir
    "unlink a directory": (errno.EISDIR, lambda: os.unlink("dir")),
    "unlink what is not": (errno.ENOENT, lambda: os.unlink("no")),
    "unlink below a file": (errno.ENOTDIR, lambda: os.unlink("file/x")),
    "unlink a file with a slash": (errno.ENOTDIR, lambda: os.unlink("file/")),
    "rmdir a file": (errno.ENOTDIR, lambda: os.rmdir("file")),
    "rmdir a link to a directory": (errno.ENOTDIR, lambda: os.rmdir("dirlink")),
    "rmdir what is not": (errno.ENOENT, lambda: os.rmdir("no")),
    "rmdir what is not empty": (errno.ENOTEMPTY, lambda: os.rmdir("dir")),
    "rmdir .": (errno.EINVAL, lambda: os.rmdir("empty/.")),
    "rmdir ..": (errno.ENOTEMPTY, lambda: os.rmdir("empty/..")),
    "mkdir over a file": (errno.EEXIST, lambda: os.mkdir("file")),
    "mkdir over a directory": (errno.EEXIST, lambda: os.mkdir("dir")),
    "mkdir over a dangling link": (errno.EEXIST, lambda: os.mkdir("dangling")),
    "mkdir below what is not": (errno.ENOENT, lambda: os.mkdir("no/dir")),
    "mkdir below a file": (errno.ENOTDIR, lambda: os.mkdir("file/dir")),
    "mkdir a name that is too long": (errno.ENAMETOOLONG, lambda: os.mkdir(LONG + "x")),
    # rename
    "rename what is not": (errno.ENOENT, lambda: os.rename("no", "new")),
    "rename to below what is not": (errno.ENOENT, lambda: os.rename("file", "no/new")),
    "rename to below a file": (errno.ENOTDIR, lambda: os.rename("dir", "file/new")),
    "rename a file over a directory": (errno.EISDIR, lambda: os.rename("file", "empty")),
    "rename a directory over a file": (errno.ENOTDIR, lambda: os.rename("empty", "file")),
    "rename a directory over one that is not empty": (errno.ENOTEMPTY, lambda: os.rename("empty", "dir")),
    "rename a directory into itself": (errno.EINVAL, lambda: os.rename("dir", "dir/sub/new")),
    "rename a directory over its parent": (errno.ENOTEMPTY, lambda: os.rename("dir/sub", "dir")),
    "rename a file with a slash": (errno.ENOTDIR, lambda: os.rename("file/", "new")),
    "rename to a name that is too long": (errno.ENAMETOOLONG, lambda: os.rename("file", LONG + "x")),
    "rename without replacing": (errno.EEXIST, lambda: renameat2("file", "link", _RENAME_NOREPLACE)),
    "exchange": (errno.EINVAL, lambda: renameat2("file", "link", _RENAME_EXCHANGE)),
    # links and attributes
    "symlink over a file": (errno.EEXIST, lambda: os.symlink("x", "file")),
    "symlink over a dangling link": (errno.EEXIST, lambda: os.symlink("x", "dangling")),
    "symlink below what is not": (errno.ENOENT, lambda: os.symlink("x", "no/link")),
    "symlink to nothing": (errno.ENOENT, lambda: os.symlink("", "new")),
    "readlink of a file": (errno.EINVAL, lambda: os.readlink("file")),
    "readlink of what is not": (errno.ENOENT, lambda: os.readlink("no")),
    "chmod what is not": (errno.ENOENT, lambda: os.chmod("no", 0o600)),
    "chmod a dangling link": (errno.ENOENT, lambda: os.chmod("dangling", 0o600)),
    "chown below a file": (errno.ENOTDIR, lambda: os.chown("file/x", 0, 0)),
    "utime of what is not": (errno.ENOENT, lambda: os.utime("no")),
    "list a file": (errno.ENOTDIR, lambda: os.listdir("file")),
    "list what is not": (errno.ENOENT, lambda: os.listdir("no")),
    "stat a loop": (errno.ELOOP, lambda: os.stat("loop")),
    "mknod of a device": (errno.EPERM, lambda: os.mknod("new", stat.S_IFCHR | 0o600, os.makedev(1, 3))),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_changes_nothing(at: Path, what: str) -> None:
    expected, act = REFUSED[what]
    before = _facts(at)
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is looked at
        act()
    assert errno.errorcode[raised.value.errno or 0] == errno.errorcode[expected]
    assert _facts(at) == before


def _facts(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            facts = path.lstat()
            body = path.read_bytes() if stat.S_ISREG(facts.st_mode) else None
            found[str(path.relative_to(root))] = (facts.st_mode, facts.st_uid, facts.st_ino, facts.st_mtime_ns, body)
    return found


def test_names_up_to_the_longest(at: Path) -> None:
    (at / LONG).write_bytes(b"x")
    os.rename(LONG, "y" * 255)
    assert (at / ("y" * 255)).read_bytes() == b"x"


def test_links_are_followed_or_not(at: Path) -> None:
    (at / "link").write_bytes(b"through the link")
    assert (at / "file").read_bytes() == b"through the link"
    (at / "dangling").write_bytes(b"made through it")
    assert (at / "nowhere").read_bytes() == b"made through it"
    os.unlink("link")
    assert (at / "file").exists()
    os.rename("dirlink", "moved")
    assert os.readlink("moved") == "dir"
    assert sorted(os.listdir("moved")) == ["inner", "sub"]
    os.chmod("dangling", 0o600)
    assert stat.S_IMODE((at / "nowhere").stat().st_mode) == 0o600
    assert stat.S_IMODE((at / "dangling").lstat().st_mode) == 0o777
    assert (at / "dangling").lstat().st_size == len("nowhere")


def test_a_rename_over_what_is_there(at: Path) -> None:
    (at / "other").write_bytes(b"other")
    with (at / "other").open("rb") as replaced:
        os.rename("file", "other")
        assert replaced.read() == b"other", "who has it open goes on reading it"
    assert (at / "other").read_bytes() == b"content"
    os.rename("other", "other")
    ino = (at / "dir").stat().st_ino
    os.rename("dir", "empty")
    assert (at / "empty").stat().st_ino == ino
    assert sorted(os.listdir("empty")) == ["inner", "sub"]
    os.rename("link", "dangling")
    assert os.readlink("dangling") == "file"


def test_an_open_file_outlives_its_name(at: Path) -> None:
    fd = os.open("file", os.O_RDWR)
    os.unlink("file")
    assert os.pread(fd, 100, 0) == b"content"
    assert os.fstat(fd).st_size == 7
    (at / "file").write_bytes(b"another")
    assert os.pread(fd, 100, 0) == b"content"
    os.close(fd)
    assert (at / "file").read_bytes() == b"another"


def test_holes_and_ends(at: Path) -> None:
    fd = os.open("file", os.O_RDWR)
    assert os.pread(fd, 100, 7) == os.pread(fd, 100, 2**40) == b""
    os.pwrite(fd, b"end", 100_000)
    assert os.fstat(fd).st_size == 100_003
    assert os.pread(fd, 200_000, 0) == b"content" + bytes(100_000 - 7) + b"end"
    os.posix_fallocate(fd, 0, 100_010)  # by glibc, where the file system cannot
    assert os.fstat(fd).st_size == 100_010
    os.ftruncate(fd, 3)
    assert os.pread(fd, 100, 0) == b"con"
    os.ftruncate(fd, 10)
    assert os.pread(fd, 100, 0) == b"con" + bytes(7)
    assert os.lseek(fd, 0, os.SEEK_END) == 10
    os.close(fd)
    os.truncate("file", 5)
    assert (at / "file").read_bytes() == b"con\0\0"


def test_appending_goes_to_the_end_wherever_it_is(at: Path) -> None:
    first, second = (os.open("file", os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for fd, word in ((first, b"1"), (second, b"2"), (first, b"3")):
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.write(fd, word) == 1
    os.close(first)
    os.close(second)
    assert (at / "file").read_bytes() == b"content123"


def test_times(at: Path) -> None:
    for ns in ((0, 0), (1, 999_999_999), (10**18, 1_234_567_890_123_456_789), (-(10**9), -5 * 10**9)):
        os.utime("file", ns=ns)
        facts = (at / "file").stat()
        assert (facts.st_atime_ns, facts.st_mtime_ns) == ns or facts.st_mtime_ns == ns[1]
        assert facts.st_mtime_ns == ns[1]
    fd = os.open("file", os.O_RDONLY)
    os.utime(fd, (5, 6))
    assert os.fstat(fd).st_mtime == 6
    os.close(fd)
    before = time.time()
    os.utime("file")
    assert before - 2 < (at / "file").stat().st_mtime < time.time() + 2
    os.utime("link", (7, 8), follow_symlinks=False)
    assert (at / "link").lstat().st_mtime == 8
    assert (at / "file").stat().st_mtime != 8


def test_writing_changes_the_time_and_reading_does_not(at: Path) -> None:
    os.utime("file", (1, 1))
    (at / "file").read_bytes()
    assert (at / "file").stat().st_mtime == 1
    with (at / "file").open("ab") as file:
        file.write(b"more")
    assert (at / "file").stat().st_mtime > 10**9


def test_modes(at: Path) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir("newdir", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE((at / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((at / "newdir").stat().st_mode) == 0o750
    for mode in (0o000, 0o777, 0o1755, 0o4755, 0o2755):
        os.chmod("new", mode)
        assert stat.S_IMODE((at / "new").stat().st_mode) == mode
    os.chmod("new", 0o6755)
    os.chown("new", 1234, 5678)
    facts = (at / "new").stat()
    assert (facts.st_uid, facts.st_gid) == (1234, 5678)


def test_locks_are_those_of_this_host(at: Path) -> None:
    with (at / "file").open("r+b") as one, (at / "file").open("r+b") as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_directory_that_is_emptied_while_it_is_listed(at: Path) -> None:
    os.mkdir("many")
    for number in range(100):
        (at / f"many/{number}").touch()
    for entry in os.scandir("many"):
        os.unlink(entry.path)
    assert os.listdir("many") == []
    os.rmdir("many")


def test_copying_on_the_server_side(at: Path) -> None:
    source, target = os.open("file", os.O_RDONLY), os.open("copy", os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        assert os.copy_file_range(source, target, 7) == 7
    except OSError:  # whatever it is, cp falls back
        os.write(target, b"content")
    os.close(source)
    os.close(target)
    assert (at / "copy").read_bytes() == b"content"
