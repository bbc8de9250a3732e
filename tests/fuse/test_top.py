"""`lazyfs top` on a real mount and a real terminal, which it leaves as it was."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import ROOT, Mount, until
from tests.fuse.trees import put, random_bytes

SHOW_CURSOR, LEAVE_OTHER_SCREEN = b"\x1b[?25h", b"\x1b[?1049l"


class Screen:
    """`lazyfs top` on a terminal of its own."""

    def __init__(self, m: Mount) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (40, 120))
        self.modes = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lazyfs", "top", str(m.path), "--interval", "200ms"],
            env={**m.env, "TERM": "xterm-256color", "LANG": "C.UTF-8"},
            cwd=ROOT,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )
        self.output = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while part := os.read(self.master, 65536):
                self.output += part

    def text(self) -> str:
        """What was drawn, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.output.decode(errors="replace"))

    def press(self, key: bytes) -> None:
        os.write(self.master, key)


@pytest.fixture
def screen(mount: Mounter, client: Minio, bucket: str) -> Iterator[tuple[Screen, Mount]]:
    put(client, bucket, "f", random_bytes(300_000))
    m = mount()
    m.wait_imported()
    screen = Screen(m)
    try:
        yield screen, m
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.slave)
        os.close(screen.master)


def test_it_shows_what_a_mount_does_and_ends_with_q(screen: tuple[Screen, Mount]) -> None:
    view, m = screen
    until(lambda: "import" in view.text(), "the first frame")
    assert "done, 1 objects" in view.text()
    assert str(m.path) in view.text()
    (m / "f").read_bytes()
    until(lambda: re.search(r"read +[\d.]+ .?i?B/s +293\.0 KiB in all", view.text()), "what was read shows")
    view.press(b"q")
    assert view.process.wait(15) == 0
    ended_well(view)


@pytest.mark.parametrize("end", ["ctrl-c", "SIGTERM", "unmounted"])
def test_the_terminal_is_as_before_however_it_ends(end: str, screen: tuple[Screen, Mount]) -> None:
    view, m = screen
    until(lambda: "import" in view.text(), "the first frame")
    if end == "ctrl-c":
        view.process.send_signal(signal.SIGINT)
    elif end == "SIGTERM":
        view.process.terminate()
    else:
        assert m.umount().returncode == 0
    assert view.process.wait(15) == 0
    ended_well(view)
    if end == "unmounted":
        assert view.text().rstrip().endswith("unmounted")


def test_one_frame_for_scripts(mount: Mounter, client: Minio, bucket: str) -> None:
    put(client, bucket, "f", random_bytes(300_000))
    m = mount("--write-back")
    (m / "f").read_bytes()
    done = m.lazyfs("top", "--once", "--interval", "200ms")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{m.path}  {bucket}, ")
    assert re.search(r"^  read +0 B/s +293\.0 KiB in all", done.stdout, re.MULTILINE), done.stdout
    assert "to upload    nothing" in done.stdout
    m.kill()
    dead = m.lazyfs("top", m.path, "--once", "--interval", "200ms")
    assert "dead: process" in dead.stdout
    assert m.umount().returncode == 0


def ended_well(view: Screen) -> None:
    until(lambda: LEAVE_OTHER_SCREEN in view.output, "the other screen is left")
    assert view.output.rindex(SHOW_CURSOR) > 0
    assert b"\x1b[?1049h" not in view.output[view.output.rindex(LEAVE_OTHER_SCREEN) :]
    assert termios.tcgetattr(view.slave) == view.modes
    assert "Traceback" not in view.text()
