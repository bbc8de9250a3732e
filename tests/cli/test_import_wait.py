"""What a person sees of an import that the mount waits for."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_mount import fake, log_of

Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no FUSE on this machine")

PROGRESS = "dict(state='running', objects=12345, rate=678.9, requests=13, elapsed_s=18.2)"
TELL = f"on_progress({PROGRESS})\n"
LINE = "importing: 12,345 objects, 679/s, 13 requests, "


@pytest.mark.parametrize("place", [[], ["-f"]])
def test_a_line_now_and_then_where_there_is_no_terminal(lazyfs: Run, mountpoint: Path, place: list[str]) -> None:
    done = lazyfs("mount", "bucket", mountpoint, *place, before=fake(TELL * 3 + "on_ready()"))
    assert done.returncode == 0
    assert done.stderr.count(LINE) == done.stderr.count("\n") == 1
    assert done.stdout.startswith("mounted bucket at ")


def test_a_daemon_that_fails_after_progress_still_says_why(lazyfs: Run, mountpoint: Path) -> None:
    body = TELL + "from lazyfs.core.errors import StartupError\nraise StartupError('the server went away')"
    done = lazyfs("mount", "bucket", mountpoint, before=fake(body))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "lazyfs: the server went away"


def test_a_daemon_that_dies_after_progress_is_noticed(lazyfs: Run, mountpoint: Path) -> None:
    body = TELL + "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    done = lazyfs("mount", "bucket", mountpoint, before=fake(body))
    assert done.returncode == 1
    assert "was killed by SIGKILL before the mount was ready" in done.stderr


def test_a_parent_that_does_not_read_holds_nobody_up(lazyfs: Run, mountpoint: Path, home: Path) -> None:
    body = f"""
import os, signal
os.kill(os.getppid(), signal.SIGSTOP)
for _ in range(3000):  # more than a pipe holds
    {TELL.strip()}
os.kill(os.getppid(), signal.SIGCONT)
on_ready()
"""
    done = lazyfs("mount", "bucket", mountpoint, before=fake(body))
    assert done.returncode == 0
    assert "Traceback" not in log_of(home)


def test_an_interrupt_ends_the_daemon(home: Path, mountpoint: Path) -> None:
    body = f"import os, signal\nprint(os.getpid(), flush=True)\n{TELL}signal.pause()"
    heard = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background jobs ignore it
    )
    code = f"{heard}\n{fake(body)}\nfrom lazyfs.cli.main import main\nmain()"
    command = [sys.executable, "-c", code, "mount", "bucket", str(mountpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(LINE)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == "lazyfs: interrupted"
    assert process.wait(10) == 130
    pid = int(log_of(home).split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_terminal_gets_a_moving_line(home: Path, mountpoint: Path) -> None:
    body = f"import time\nfor _ in range(5):\n    {TELL}    time.sleep(0.1)\non_ready()"
    code = f"{fake(body)}\nfrom lazyfs.cli.main import main\nmain()"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, "mount", "bucket", str(mountpoint)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(10) == 0
    assert b"12,345 objects, 679/s, 13 requests" in shown
    assert b"importing:" not in shown
