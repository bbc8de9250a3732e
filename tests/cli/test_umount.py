from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lazyfs.cli import umount as umount_module  # noqa: F401 - the module, not the command
from lazyfs.cli import unmounting
from lazyfs.cli.holders import find_holders
from lazyfs.cli.main import run
from lazyfs.cli.mounts import FS_TYPE, MountEntry, find_mount, is_dead, parse_mountinfo, resolve_mountpoint
from lazyfs.control import registry

command_module = sys.modules["lazyfs.cli.umount"]

MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
70 22 0:44 / /mnt/a\\040b\\134 rw,nosuid shared:9 master:1 - fuse.lazyfs bucket\\012x rw,user_id=0
71 22 0:45 / /mnt/c rw - fuse.rclone r: rw

rubbish
"""


# -- the kernel's table -------------------------------------------------------------------------------------


def test_mountinfo_is_understood() -> None:
    assert parse_mountinfo(MOUNTINFO) == [
        MountEntry(Path("/"), "ext4", "/dev/root"),
        MountEntry(Path("/mnt/a b\\"), "fuse.lazyfs", "bucket\nx"),
        MountEntry(Path("/mnt/c"), "fuse.rclone", "r:"),
    ]


def test_a_real_mount_is_found(tmp_path: Path) -> None:
    entry = find_mount(Path("/proc"))
    assert entry is not None
    assert entry.fs_type == "proc"
    assert find_mount(tmp_path) is None
    assert not is_dead(tmp_path)
    assert not is_dead(tmp_path / "missing")


def test_mount_points_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert resolve_mountpoint(str(tmp_path / "link")) == tmp_path.resolve() / "real"
    monkeypatch.chdir("/")
    assert resolve_mountpoint("proc") == Path("/proc")


# -- who holds it -------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its working directory in tmp_path/held."""
    (tmp_path / "held").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path / "held",
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.communicate(b"\n", timeout=30)


def test_holders_are_found_by_directory_and_by_file(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    held = tmp_path / "held"
    assert [pid for pid, _ in find_holders(held)] == [holder.pid]
    with (held / "file").open("w"):
        found = find_holders(held)
    assert {pid for pid, _ in found} == {holder.pid, os.getpid()}
    assert all(name for _, name in found)
    assert find_holders(tmp_path / "hel") == []


# -- detaching ----------------------------------------------------------------------------------------------


def as_user(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put a fusermount3 into PATH that runs `script`."""
    program = folder / "fusermount3"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_a_user_calls_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, tmp_path, f'echo "$@" >> {tmp_path}/calls')
    unmounting.unmount(Path("/mnt/x"), lazy=False)
    unmounting.unmount(Path("/mnt/x"), lazy=True)
    assert (tmp_path / "calls").read_text() == "-u -- /mnt/x\n-u -z -- /mnt/x\n"


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("echo 'fusermount3: failed to unmount /mnt/x: Device or resource busy' >&2; exit 1", errno.EBUSY, "busy"),
        ("echo 'fusermount3: entry for /mnt/x not found in /etc/mtab' >&2; exit 1", errno.EIO, "not found"),
        ("exit 3", errno.EIO, "ended with code 3"),
    ],
)
def test_fusermount3_says_no(
    script: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_user(monkeypatch, tmp_path, script)
    with pytest.raises(OSError, match=said) as caught:
        unmounting.unmount(Path("/mnt/x"), lazy=False)
    assert caught.value.errno == code


def test_no_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, tmp_path, "")
    (tmp_path / "fusermount3").unlink()
    with pytest.raises(OSError, match="not installed"):
        unmounting.unmount(Path("/mnt/x"), lazy=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may call umount2")
def test_root_asks_the_kernel(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        unmounting.unmount(tmp_path, lazy=False)


# -- the command --------------------------------------------------------------------------------------------


def test_not_a_mount_point(mountpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["umount", str(mountpoint)]) == 1
    assert capsys.readouterr().err == f"lazyfs: {mountpoint} is not a mount point\n"


@pytest.mark.usefixtures("home")
def test_somebody_elses_mount_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["umount", "/proc"]) == 1
    assert capsys.readouterr().err == "lazyfs: /proc is a mount of type proc, not of lazyfs; left alone\n"


@pytest.fixture
def mounted(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """`mountpoint` looks like a mount of lazyfs. Holds the `lazy` of each attempt to detach it."""
    calls: list[bool] = []
    monkeypatch.setattr(command_module, "find_mount", lambda path: MountEntry(path, FS_TYPE, "bucket"))
    monkeypatch.setattr(command_module, "unmount", lambda path, *, lazy: calls.append(lazy))
    return calls


@pytest.fixture
def daemon(mountpoint: Path) -> Iterator[Callable[[], None]]:
    """A registered process that looks like the daemon; call to end it."""
    code = (
        "import sys; from pathlib import Path; from lazyfs.control.registry import register;"
        "register(Path(sys.argv[1]), bucket='b'); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(mountpoint)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()

        def end() -> None:
            process.communicate(b"\n", timeout=30)

        yield end
        if process.poll() is None:
            end()


def test_a_healthy_mount(
    mountpoint: Path,
    mounted: list[bool],
    daemon: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waits = iter([lambda: None, daemon])
    monkeypatch.setattr(
        command_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: next(waits)())
    )
    monkeypatch.setattr(command_module, "_TELL_EVERY_S", 0)
    assert run(["umount", str(mountpoint)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"unmounted {mountpoint}\n"
    assert captured.err.startswith("waiting for the daemon (process ")
    assert mounted == [False]
    assert registry.find(mountpoint) is None


def test_a_daemon_that_takes_too_long(
    mountpoint: Path, mounted: list[bool], daemon: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["umount", str(mountpoint), "--timeout", "0"]) == 1
    assert "is still busy after 0 ms; it goes on by itself" in capsys.readouterr().err
    assert registry.find(mountpoint) is not None


def test_lazy_is_passed_on(mountpoint: Path, mounted: list[bool]) -> None:
    assert run(["umount", "--lazy", str(mountpoint)]) == 0
    assert mounted == [True]


def test_a_mount_whose_daemon_was_killed(
    mountpoint: Path,
    mounted: list[bool],
    daemon: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    daemon()
    monkeypatch.setattr(command_module, "is_dead", lambda path: True)
    assert run(["umount", str(mountpoint)]) == 0
    assert capsys.readouterr().out == f"unmounted {mountpoint}, whose daemon had died\n"
    assert mounted == [True]
    assert registry.find(mountpoint) is None


def test_unmounted_by_others_while_the_daemon_finishes(
    mountpoint: Path,
    daemon: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        command_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: daemon())
    )
    assert run(["umount", str(mountpoint)]) == 0
    assert capsys.readouterr().out == f"{mountpoint} was unmounted already\n"
    assert registry.find(mountpoint) is None


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def unmount(path: Path, *, lazy: bool) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(command_module, "unmount", unmount)


@pytest.mark.usefixtures("mounted")
def test_a_busy_mount_names_up_to_five_processes(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch, errno.EBUSY)
    monkeypatch.setattr(command_module, "find_holders", lambda path: [(pid, "python") for pid in range(1, 8)])
    assert run(["umount", str(mountpoint)]) == 1
    named = ", ".join(f"{pid} (python)" for pid in range(1, 6))
    said = f"lazyfs: {mountpoint} is in use by process {named} and 2 more; --lazy detaches it all the same\n"
    assert capsys.readouterr().err == said
    monkeypatch.setattr(command_module, "find_holders", lambda path: [])
    assert run(["umount", str(mountpoint)]) == 1
    assert capsys.readouterr().err == f"lazyfs: {mountpoint} is in use; --lazy detaches it all the same\n"


@pytest.mark.usefixtures("mounted")
def test_not_allowed(mountpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(monkeypatch, errno.EPERM)
    assert run(["umount", str(mountpoint)]) == 1
    assert capsys.readouterr().err == f"lazyfs: cannot unmount {mountpoint}: Operation not permitted\n"
