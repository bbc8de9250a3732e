"""`lazyfs top`: the mounts of this user, live. Draws on the terminal's other screen, and always gives it back."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.frames import Rates, rows, title
from lazyfs.cli.mounts import resolve_mountpoint
from lazyfs.cli.output import say, shown
from lazyfs.cli.status import report_of
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import ControlError, StartupError, UsageError
from lazyfs.core.units import parse_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

ANSWER_S = 5.0
HISTORY = 40
"""Frames of which the line of throughput tells."""
MIN_INTERVAL_S = 0.1


@dataclass(slots=True)
class _Seen:
    """What is known of one mount."""

    now: dict[str, Any]
    before: dict[str, Any] | None = None
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))


@click.command()
@click.argument("mountpoint", required=False)
@click.option("--once", is_flag=True, help="Print one frame and end, for scripts.")
@click.option("--interval", metavar="TIME", default="1s", show_default=True, help="Between two frames.")
def top(mountpoint: str | None, once: bool, interval: str) -> None:
    """Show what the mounts of this user do now: bytes by tier, how long readers wait, which program reads and writes
    which files, requests, uploads, the import.

    With MOUNTPOINT, only that one. q or Ctrl-C ends it.
    """
    interval_s = parse_duration(interval)
    if not MIN_INTERVAL_S <= interval_s <= 3600:
        raise UsageError("--interval: from 100ms to 1h")
    seen: dict[str, _Seen] = {}
    _look(mountpoint, seen)
    if not seen:
        raise StartupError("no mounts" if mountpoint is None else f"{mountpoint} is not a mount of lazyfs of this user")
    if once:
        time.sleep(interval_s)
        _look(mountpoint, seen)
        _print(seen)
    elif sys.stdin.isatty() and sys.stdout.isatty():
        _watch(mountpoint, seen, interval_s)
    else:
        raise UsageError("lazyfs top needs a terminal; --once prints one frame")


def _look(mountpoint: str | None, seen: dict[str, _Seen]) -> None:
    """Ask each mount how it is. One that is gone is forgotten."""
    registrations = registry.all_mounts()
    if mountpoint is not None:
        found = registry.find(resolve_mountpoint(mountpoint))
        registrations = [] if found is None else [found]
    for path in set(seen) - {registration.mountpoint for registration in registrations}:
        del seen[path]
    for registration in registrations:
        now = _asked(registration)
        one = seen.setdefault(registration.mountpoint, _Seen(now))
        if one.now is not now:
            one.before = one.now if one.now["state"] == "mounted" else None
            one.now = now
            if now["state"] == "mounted":
                one.history.append(Rates(one.before, now).read())


def _asked(registration: Registration) -> dict[str, Any]:
    """What the mount says of itself, and who uses it."""
    now = report_of(registration, timeout_s=ANSWER_S)
    if now["state"] == "mounted":
        with contextlib.suppress(ControlError):  # it ends just now, or was begun by an older lazyfs
            now |= call(registration.socket, "programs", timeout_s=ANSWER_S)
    return now


def _print(seen: dict[str, _Seen]) -> None:
    """Plain lines: a script reads them."""
    for one in seen.values():
        say(title(one.now))
        for row in rows(one.before, one.now, one.history):
            say(f"  {row.name:<12} {row.value}{'  (!)' if row.alarm else ''}")


# -- on a terminal --------------------------------------------------------------------------------------------------


def _watch(mountpoint: str | None, seen: dict[str, _Seen], interval_s: float) -> None:
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import
    from rich.live import Live  # noqa: PLC0415

    console = Console(highlight=False, markup=False)
    with (
        contextlib.suppress(KeyboardInterrupt),
        _ended_by_signals(),
        _keys_at_once(),
        Live(_frame(seen), console=console, screen=True, auto_refresh=False) as live,
    ):
        while seen:
            live.update(_frame(seen), refresh=True)
            if _quits(interval_s):
                return
            _look(mountpoint, seen)
    if not seen:
        click.echo("unmounted")


def _frame(seen: dict[str, _Seen]) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.panel import Panel  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    panels: list[RenderableType] = []
    for one in seen.values():
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows(one.before, one.now, one.history):
            table.add_row(Text(row.name), Text(shown(row.value), style="bold red" if row.alarm else ""))
        panels.append(Panel(table, title=Text(shown(title(one.now))), title_align="left"))
    return Group(*panels, Text("q quits", style="dim"))


@contextlib.contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys arrive without Enter and are not echoed, until the block ends."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does: the terminal must be put in order."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quits(seconds: float) -> bool:
    """Whether q was pressed, or the terminal went away, within `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready:
            key = os.read(sys.stdin.fileno(), 1)
            if key in (b"q", b"Q", b""):
                return True
    return False
