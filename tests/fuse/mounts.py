"""Real mounts: the command `lazyfs` in processes of its own, with a watchdog that frees whoever hangs on one.

A test touches the mount from its own process. If a call never returns, the watchdog aborts the FUSE connection and
kills the daemon, so the call ends with an error and the test fails instead of hanging.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minio import Minio

from lazyfs.control.client import call
from tests.servers import Server

SESSIONS = os.environ.get("LAZYFS_TEST_SESSIONS", "pyfuse3 direct").split()
"""The kernel sessions that run these tests. Usually the second runs only those marked `both_sessions`: see conftest."""
TIME_LIMIT_S = 60
COMMAND_S = 40
ROOT = Path(__file__).parents[2]
"""Commands run here, so that the package under test is the one beside these tests."""
POLL_S = 0.02
FUSECTL = Path("/sys/fs/fuse/connections")
_TROUBLE = re.compile(r"^\S+ \S+ (WARNING|ERROR|CRITICAL) ")
_MNT_DETACH = 2


def until(true: Callable[[], Any], what: str, timeout_s: float = 15) -> Any:
    """The first true answer, or an AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = true()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(POLL_S)


def environment(server: Server, directory: Path) -> dict[str, str]:
    """The environment of a user of `server` whose home is `directory`: nothing of the developer's reaches it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LAZYFS_", "XDG_"))}
    own = {
        "HOME": str(directory),
        "XDG_CACHE_HOME": str(directory / "cache-home"),
        "XDG_STATE_HOME": str(directory / "state-home"),
        "LAZYFS_RUNTIME_DIR": str(directory / "run"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "COLUMNS": "120",
    }
    return kept | own | server.environment()


def lazyfs(*arguments: str | Path, env: dict[str, str], timeout_s: float = COMMAND_S) -> Any:
    """The finished command `lazyfs ARGUMENTS`; its output as text."""
    command = [sys.executable, "-m", "lazyfs", *map(str, arguments)]
    return subprocess.run(
        command,
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def witness(server: Server) -> Minio:
    """A client that shares no code with lazyfs."""
    host = server.endpoint_url.removeprefix("http://")
    return Minio(host, server.access_key, server.secret_key, secure=False, region="us-east-1")


# -- what the kernel knows ------------------------------------------------------------------------------------------


def connection_of(path: Path) -> int | None:
    """The number of the FUSE connection mounted on `path`; never asks the mount itself, which may hang."""
    for line in reversed(Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()):
        fields = line.split(" ")
        if fields[4] == str(path):
            return int(fields[2].partition(":")[2])
    return None


def is_mounted(path: Path) -> bool:
    """Whether anything is mounted on exactly this path."""
    return connection_of(path) is not None


def detach(path: Path) -> None:
    """Unmount lazily whatever is mounted on `path`, as often as it takes."""
    libc = ctypes.CDLL(None, use_errno=True)
    while is_mounted(path) and libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        pass


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


DEAD = "not connected|connection abort"
"""What calls on a mount say whose daemon died: which of the two depends on whether it died during the call."""


def drop_page_cache() -> None:
    """Make the kernel forget clean pages, names and inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


class Watchdog:
    """Ends a mount that a test would wait for for ever."""

    def __init__(self, path: Path, time_limit_s: float) -> None:
        self._path = path
        self._pids: list[int] = []
        self.barked = False
        self._timer = threading.Timer(time_limit_s, self.bark)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, pid: int) -> None:
        """`pid` serves the mount."""
        self._pids.append(pid)

    def bark(self) -> None:
        """Every call on the mount ends now."""
        self.barked = True
        self.end()

    def end(self) -> None:
        """Abort the connection, kill the daemon, leave nothing mounted."""
        number = connection_of(self._path)
        if number is not None:
            with contextlib.suppress(OSError):
                (FUSECTL / str(number) / "abort").write_text("1")
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        detach(self._path)

    def stop(self) -> None:
        """Nothing to watch any more."""
        self._timer.cancel()


@contextlib.contextmanager
def nothing_left(path: Path, time_limit_s: float = TIME_LIMIT_S) -> Iterator[None]:
    """For the body of the ``with``, which mounts on `path` as it likes, and unmounts."""
    watchdog = Watchdog(path, time_limit_s)
    yield
    watchdog.stop()
    left = is_mounted(path)
    watchdog.end()
    assert not left, "something was left mounted"


# -- a mount --------------------------------------------------------------------------------------------------------


@dataclass
class Mount:
    """A mounted bucket. `expected` holds patterns of log lines at WARNING and above that the test means to cause."""

    path: Path
    bucket: str
    server: Server
    log_file: Path
    env: dict[str, str] = field(repr=False)
    output: str
    pid: int
    watchdog: Watchdog = field(repr=False)
    expected: list[str] = field(default_factory=list)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def status(self) -> dict[str, Any]:
        """What the daemon says, by its control socket."""
        (socket,) = Path(self.env["LAZYFS_RUNTIME_DIR"]).glob("*.sock")
        return call(socket, "status", timeout_s=15)

    def stat_of(self, name: str) -> int:
        """One counter of the daemon."""
        return int(self.status()["stats"].get(name, 0))

    def requests(self, *kinds: str) -> int:
        """How many S3 requests the daemon has sent, of these kinds (list, head, get, put …) or of all."""
        stats = self.status()["stats"]
        names = [f"s3.requests.{kind}" for kind in kinds] or [n for n in stats if n.startswith("s3.requests.")]
        return sum(stats.get(name, 0) for name in names)

    def wait_imported(self, timeout_s: float = 15) -> None:
        """Return when the whole bucket is listed."""
        until(lambda: self.status()["import"]["state"] == "done", "the import ends", timeout_s)

    def wait_closed(self) -> None:
        """Return when the kernel has released every handle: it does so after close(2) has returned."""
        until(lambda: self.status()["open_handles"] == 0, "all handles are released")

    def wait_uploaded(self, timeout_s: float = 60) -> None:
        """Return when the bucket has everything; at once without write-back."""
        until(lambda: self.status()["pending_uploads"] == 0, "everything is uploaded", timeout_s)

    def log(self) -> str:
        """The log so far."""
        return self.log_file.read_text(errors="surrogateescape")

    def expect_log(self, *patterns: str) -> None:
        """Lines at WARNING and above that match one of `patterns` are meant to be there."""
        self.expected += patterns

    def trouble(self) -> list[str]:
        """Log lines at WARNING and above that nobody expected."""
        lines = [line for line in self.log().splitlines() if _TROUBLE.match(line)]
        return [line for line in lines if not any(re.search(pattern, line) for pattern in self.expected)]

    def lazyfs(self, *arguments: str | Path, timeout_s: float = COMMAND_S) -> Any:
        """The command line, as the user who mounted."""
        return lazyfs(*arguments, env=self.env, timeout_s=timeout_s)

    def umount(self, *options: str) -> Any:
        """`lazyfs umount`, finished."""
        return self.lazyfs("umount", self.path, *options)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        os.kill(self.pid, signal.SIGKILL)
        until(lambda: not is_running(self.pid), "the daemon is dead")


@contextlib.contextmanager
def mounted(
    bucket: str,
    server: Server,
    *options: str,
    directory: Path,
    session: str = "pyfuse3",
    expect_log: Sequence[str] = (),
    time_limit_s: float = TIME_LIMIT_S,
) -> Iterator[Mount]:
    """`lazyfs mount BUCKET`, until the block ends; then it must unmount cleanly and have had no trouble.

    `directory` holds the mount point, the cache, the log and the sockets: mounting in the same directory again is the
    same user's next mount. A block may unmount, or kill the daemon and unmount, by itself.
    """
    path = directory / "mnt"
    path.mkdir(parents=True, exist_ok=True)
    log_file = directory / f"mount-{len(list(directory.glob('mount-*.log'))) + 1}.log"
    env = environment(server, directory)
    watchdog = Watchdog(path, time_limit_s)
    try:
        command = ["mount", bucket, path, "--endpoint-url", server.endpoint_url, "--log-file", log_file]
        command += ["--cache-dir", directory / "cache", *_session_options(session), *options]
        done = lazyfs(*command, env=env)
        assert done.returncode == 0, done.stderr
        mount = Mount(path, bucket, server, log_file, env, done.stdout, 0, watchdog, list(expect_log))
        mount.pid = mount.status()["pid"]
        watchdog.watch(mount.pid)
        try:
            yield mount
        except BaseException:
            print(f"--- log of {path}\n{mount.log()[-8000:]}")  # noqa: T201 - pytest shows it with the failure
            raise
        _end_well(mount)
    finally:
        watchdog.stop()
        watchdog.end()
    assert not watchdog.barked, f"the mount hung: its watchdog ended it after {time_limit_s} s"


def _end_well(mount: Mount) -> None:
    if mount.watchdog.barked:
        return
    if is_mounted(mount.path):
        done = mount.umount()
        assert done.returncode == 0, done.stderr + mount.log()[-4000:]
    assert not is_mounted(mount.path)
    assert not is_running(mount.pid)
    assert not mount.trouble(), mount.trouble()
    runtime = Path(mount.env["LAZYFS_RUNTIME_DIR"])
    assert not list(runtime.glob("*.sock")) + list(runtime.glob("*.json")), "a socket or a registration stayed behind"


def _session_options(session: str) -> list[str]:
    return ["--session", session]
