from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.cli import preflight
from lazyfs.cli.mount import write_policy
from lazyfs.cli.mounts import FS_TYPE, MountEntry
from lazyfs.config import Config, load
from lazyfs.core.errors import StartupError

Run = Callable[..., "subprocess.CompletedProcess[str]"]

FAKE = """
import sys, types
daemon = types.ModuleType("lazyfs.daemon")
sys.modules["lazyfs.daemon"] = daemon
def run(config, *, on_ready, on_progress):
{body}
daemon.run = run
"""

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no FUSE on this machine")


def fake(body: str) -> str:
    """Python that puts a daemon in place whose `run` is `body`."""
    return FAKE.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))


def log_of(home: Path) -> str:
    return (home / "state" / "lazyfs" / "bucket.log").read_text()


# -- into the background ------------------------------------------------------------------------------------


def test_the_parent_returns_when_the_daemon_is_ready(lazyfs: Run, mountpoint: Path, home: Path) -> None:
    body = f"""
import json, os, signal
facts = dict(pid=os.getpid(), session=os.getsid(0), directory=os.getcwd(), foreground=config.mount.foreground)
with open({str(home / "facts")!r}, "w") as file:
    json.dump(facts, file)
print("to the log")
on_ready()
on_ready()
signal.pause()
"""
    done = lazyfs("mount", "bucket/a", mountpoint, "--no-delete", before=fake(body))
    facts = json.loads((home / "facts").read_text())
    try:
        assert (done.returncode, done.stderr) == (0, "")
        policy = "files are uploaded when closed, in parts of 8.0 MiB; deleting is refused"
        assert done.stdout == f"mounted bucket/a at {mountpoint} ({policy})\n"
        assert facts["session"] == facts["pid"] != os.getsid(0)
        assert facts["directory"] == "/"
        assert os.readlink(f"/proc/{facts['pid']}/fd/0") == "/dev/null"
        for descriptor in (1, 2):
            assert os.readlink(f"/proc/{facts['pid']}/fd/{descriptor}") == str(home / "state/lazyfs/bucket.log")
    finally:
        os.kill(facts["pid"], signal.SIGKILL)
    assert stat.S_IMODE((home / "state/lazyfs/bucket.log").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "cache/lazyfs").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (
            "from lazyfs.core.errors import StartupError\nraise StartupError('no such bucket: x')",
            1,
            "no such bucket: x",
        ),
        ("from lazyfs.core.errors import UsageError\nraise UsageError('nonsense')", 2, "nonsense"),
        ("raise ValueError('a\\nb')", 1, "unexpected error: ValueError: a b"),
        ("raise ExceptionGroup('g', [ExceptionGroup('h', [KeyError('k')])])", 1, "unexpected error: KeyError: 'k'"),
        ("return", 1, "the daemon ended before the mount was ready"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", 1, "the daemon was killed by SIGKILL before"),
        ("import os\nos._exit(7)", 1, "the daemon ended with code 7 before"),
        ("sys.exit(3)", 1, "the daemon ended with code 1 before"),
    ],
)
def test_the_parent_says_why_it_did_not_work(
    body: str, code: int, said: str, lazyfs: Run, mountpoint: Path, home: Path
) -> None:
    done = lazyfs("mount", "bucket", mountpoint, before=fake(body))
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith(f"lazyfs: {said}")
    assert done.stderr.count("\n") == 1
    if "before" in said and "ended before" not in said:
        assert str(home / "state/lazyfs/bucket.log") in done.stderr


def test_the_log_has_one_line_a_record(lazyfs: Run, mountpoint: Path, home: Path) -> None:
    body = """
import logging
logging.getLogger("lazyfs.x").info("one\\ntwo")
logging.getLogger("lazyfs.x").debug("not asked for")
logging.getLogger("botocore").info("not ours")
raise ValueError("deep")
"""
    lazyfs("mount", "bucket", mountpoint, before=fake(body))
    lines = log_of(home).splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"[-0-9]+ [:,0-9]+ INFO lazyfs\.x: one\\ntwo", lines[0])
    assert "Traceback" in lines[1]
    assert lines[1].endswith("ValueError: deep")


def test_an_error_after_ready_is_in_the_log(lazyfs: Run, mountpoint: Path, home: Path) -> None:
    body = f"""
import os
from lazyfs.core.errors import StoreError
on_ready()
os.write(os.open("{home}/fifo", os.O_WRONLY), b"x")
raise StoreError("the bucket went away")
"""
    os.mkfifo(home / "fifo")
    assert lazyfs("mount", "bucket", mountpoint, before=fake(body)).returncode == 0
    with (home / "fifo").open("rb") as fifo:
        assert fifo.read() == b"x"  # ends when the daemon has
    assert "ERROR lazyfs.cli.daemonise: the bucket went away" in log_of(home)


def test_an_interrupt_while_waiting_ends_the_daemon(mountpoint: Path, home: Path) -> None:
    os.mkfifo(home / "fifo")
    body = f"""
import os, signal
file = os.open("{home}/fifo", os.O_WRONLY)
os.write(file, b"%d " % os.getpid())
signal.pause()
"""
    code = f"{fake(body)}\nfrom lazyfs.cli.main import main\nmain()"
    command = [sys.executable, "-c", code, "mount", "bucket", str(mountpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, (home / "fifo").open("rb") as fifo:
        assert fifo.read(1)  # the daemon runs, the parent waits
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        fifo.read()  # ends because the daemon did
    assert (process.returncode, said.strip()) == (130, "lazyfs: interrupted")


def test_the_foreground_stays_and_logs_to_the_terminal(lazyfs: Run, mountpoint: Path) -> None:
    body = "import logging\non_ready()\nlogging.getLogger('lazyfs').info('here')"
    done = lazyfs("mount", "bucket", mountpoint, "-f", "--read-only", before=fake(body))
    assert done.returncode == 0
    assert done.stdout == f"mounted bucket at {mountpoint} (read-only)\n"
    assert done.stderr.endswith("INFO lazyfs: here\n")


def test_an_error_in_the_foreground(lazyfs: Run, mountpoint: Path) -> None:
    body = "from lazyfs.core.errors import StartupError\nraise StartupError('no such bucket: x')"
    done = lazyfs("mount", "bucket", mountpoint, "-f", before=fake(body))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "lazyfs: no such bucket: x\n")


# -- before it is tried -------------------------------------------------------------------------------------


def config_for(mountpoint: Path, **flags: str | bool) -> Config:
    return load("bucket", str(mountpoint), {name.replace("_", "-"): value for name, value in flags.items()})


def test_all_is_well(mountpoint: Path, home: Path) -> None:
    preflight.preflight(config_for(mountpoint))
    assert (home / "cache" / "lazyfs").is_dir()


def test_mount_points_that_cannot_be(home: Path) -> None:
    (home / "file").write_text("")
    for path, said in {
        home / "missing": "does not exist; run: mkdir -p",
        home / "file": "is not a directory",
        home / "file" / "below": "cannot use the mount point .*: Not a directory",
        Path("/proc"): r"something is mounted on /proc already \(proc\)",
    }.items():
        with pytest.raises(StartupError, match=said):
            preflight.check_mountpoint(path)


def test_mounted_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_mount", lambda path: MountEntry(path, FS_TYPE, "bucket"))
    monkeypatch.setattr(preflight, "is_dead", lambda path: False)
    with pytest.raises(StartupError, match="something is mounted on /mnt/x already; run: lazyfs umount /mnt/x"):
        preflight.check_mountpoint(Path("/mnt/x"))
    monkeypatch.setattr(preflight, "is_dead", lambda path: True)
    with pytest.raises(StartupError, match="whose daemon died; run: lazyfs umount /mnt/x"):
        preflight.check_mountpoint(Path("/mnt/x"))


@pytest.mark.parametrize("flag", ["cache_dir", "log_file"])
def test_own_files_and_mount_point_stay_apart(flag: str, mountpoint: Path) -> None:
    with pytest.raises(StartupError, match="lies inside the mount point"):
        preflight.preflight(config_for(mountpoint, **{flag: str(mountpoint / "x")}))


def test_a_mount_point_in_the_cache_directory(mountpoint: Path) -> None:
    with pytest.raises(StartupError, match="lies inside the cache directory"):
        preflight.preflight(config_for(mountpoint, cache_dir=str(mountpoint.parent)))


def test_a_cache_directory_that_cannot_be(mountpoint: Path, home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(StartupError, match="is not a directory"):
        preflight.preflight(config_for(mountpoint, cache_dir=str(home / "file")))


def test_no_cache_directory_makes_none(mountpoint: Path, home: Path) -> None:
    preflight.preflight(config_for(mountpoint, cache_dir="none"))
    assert not (home / "cache").exists()


def test_no_fuse(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", home / "fuse")
    with pytest.raises(StartupError, match="modprobe fuse"):
        preflight.check_fuse(allow_other=False)


def test_what_a_user_needs(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    conf = home / "fuse.conf"
    monkeypatch.setattr(preflight, "FUSE_CONF", conf)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    preflight.check_fuse(allow_other=False)
    with pytest.raises(StartupError, match="needs the line user_allow_other"):
        preflight.check_fuse(allow_other=True)
    conf.write_text("# user_allow_other\n")
    with pytest.raises(StartupError, match="needs the line user_allow_other"):
        preflight.check_fuse(allow_other=True)
    conf.write_text("mount_max = 10\nuser_allow_other\n")
    preflight.check_fuse(allow_other=True)
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(StartupError, match="apt install fuse3"):
        preflight.check_fuse(allow_other=False)


def test_the_policy_is_said(mountpoint: Path) -> None:
    assert write_policy(config_for(mountpoint, read_only=True)) == "read-only"
    said = write_policy(config_for(mountpoint, no_overwrite=True, no_delete=True, part_size="16MiB"))
    assert said == "files are uploaded when closed, in parts of 16.0 MiB; replacing is refused; deleting is refused"


def test_nothing_is_mounted_after_a_refusal(lazyfs: Run, home: Path) -> None:
    done = lazyfs("mount", "bucket", home / "missing")
    assert done.returncode == 1
    assert done.stderr == f"lazyfs: the mount point {home}/missing does not exist; run: mkdir -p {home}/missing\n"
