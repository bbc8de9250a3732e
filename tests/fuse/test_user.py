"""A mount by somebody who is not root: by way of fusermount3, on each session."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from tests.fuse.mounts import COMMAND_S, ROOT, Watchdog, connection_of, detach, environment, is_mounted
from tests.fuse.trees import put
from tests.servers import Server

NOBODY = 65534
DEVICE = Path("/dev/fuse")
Run = Callable[..., Any]


def as_nobody(*command: str | Path, env: dict[str, str]) -> Any:
    return subprocess.run(
        [*map(str, command)],
        env=env, cwd="/", user=NOBODY, group=NOBODY, extra_groups=[], umask=0o022,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip


@pytest.fixture
def interpreter(env: dict[str, str]) -> str:
    """One that nobody may run, and that runs lazyfs: this one may lie in root's home."""
    for found in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            if as_nobody(found, "-c", "import lazyfs.daemon", env=env).returncode == 0:
                return found
        except OSError:
            continue
    pytest.skip("no Python here that other users than root may run")


@pytest.fixture
def home() -> Iterator[Path]:
    """Of nobody, where nobody can go: pytest's own directories are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="lazyfs-nobody-", dir="/var/tmp"))
    shutil.chown(path, NOBODY, NOBODY)
    (path / "mnt").mkdir()
    shutil.chown(path / "mnt", NOBODY, NOBODY)
    watchdog = Watchdog(path / "mnt", 60)
    yield path
    watchdog.stop()
    detach(path / "mnt")
    shutil.rmtree(path)


@pytest.fixture
def env(server: Server, home: Path) -> dict[str, str]:
    packages = sysconfig.get_path("purelib")
    return environment(server, home) | {"PYTHONPATH": f"{ROOT}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """As udev makes it; in bare containers it is root's alone."""
    before = stat.S_IMODE(DEVICE.stat().st_mode)
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    DEVICE.chmod(before | 0o666)
    yield
    DEVICE.chmod(before)


@pytest.mark.both_sessions
@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["read-write", "read-only"])
def test_a_user_mounts_reads_writes_and_unmounts(
    options: tuple[str, ...], session: str, server: Server, client: Minio, bucket: str, home: Path,
    interpreter: str, env: dict[str, str],
) -> None:  # fmt: skip
    mnt = home / "mnt"
    put(client, bucket, "a/b", b"hello")

    def lazyfs(*arguments: str | Path) -> Any:
        return as_nobody(interpreter, "-m", "lazyfs", *arguments, env=env)

    done = lazyfs("mount", bucket, mnt, "--endpoint-url", server.endpoint_url, "--session", session, *options)
    assert done.returncode == 0, done.stderr
    assert connection_of(mnt) is not None
    assert as_nobody("cat", mnt / "a/b", env=env).stdout == "hello"
    written = as_nobody("sh", "-c", f"echo new > {mnt}/c && cat {mnt}/c && stat -c %u {mnt}/c", env=env)
    if options:
        assert "Read-only" in written.stderr
    else:
        assert written.stdout == f"new\n{NOBODY}\n", written.stderr
        got = client.get_object(bucket, "c")
        assert got.read() == b"new\n"
        got.close()
    done = lazyfs("umount", mnt)
    assert done.returncode == 0, done.stderr
    assert not is_mounted(mnt)


def test_who_may_not_open_the_device_is_told(
    session: str, server: Server, bucket: str, home: Path, interpreter: str, env: dict[str, str]
) -> None:
    DEVICE.chmod(0o600)
    done = as_nobody(
        interpreter, "-m", "lazyfs", "mount", bucket, home / "mnt", "--endpoint-url", server.endpoint_url,
        "--session", session, env=env,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("lazyfs: ")
    assert "chmod 666 /dev/fuse" in done.stderr
    assert not is_mounted(home / "mnt")
