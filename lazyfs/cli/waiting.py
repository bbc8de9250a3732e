"""Waiting for a task: a bar on a terminal, a plain line now and then elsewhere. Ctrl-C ends only the waiting."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY_S = 5.0
"""Between two plain lines."""
_FIRST_POLL_S, _POLL_S = 0.05, 1.0


def polls() -> Iterator[None]:
    """Once more, after a pause that grows."""
    pause_s = _FIRST_POLL_S
    while True:
        yield
        time.sleep(pause_s)
        pause_s = min(_POLL_S, pause_s * 1.5)


def wait_for(registration: Registration, task_id: str) -> dict[str, Any]:
    """What the task says when it has ended. ControlError if the daemon ends before."""
    with View() as view:
        try:
            for _ in polls():
                told = call(registration.socket, "task", id=task_id)
                if told["state"] != "running":
                    return told
                view.tell(describe(told), done=told["progress"].get("bytes"), total=told["progress"].get("total_bytes"))
        except KeyboardInterrupt:
            view.close()
            click.echo(f"it goes on in the background; lazyfs task cancel {task_id} ends it", err=True)
            raise
    raise AssertionError("polls never end")


def describe(told: dict[str, Any]) -> str:
    """How far a task is, in a few words."""
    progress = told["progress"]
    parts = [f"{progress[name]:,}{_of(progress, name)} {name}" for name in ("files", "objects") if name in progress]
    if "bytes" in progress:
        total = progress.get("total_bytes")
        parts.append(format_size(progress["bytes"]) + (f" of {format_size(total)}" if total is not None else ""))
    if failed := told["failed"] or progress.get("failures"):
        parts.append(f"{failed:,} failed")
    return ", ".join([*parts, format_duration(told["seconds"])])


def _of(progress: dict[str, Any], name: str) -> str:
    total = progress.get(f"total_{name}")
    return "" if total is None else f" of {total:,}"


class View:
    """Shows on standard error what `tell` is told."""

    def __init__(self) -> None:
        self._draws = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._next_s = time.monotonic() + EVERY_S

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        """It is so far now."""
        if self._draws:
            if self._bar is None:
                self._bar = _moving_line()
                self._bar.start()
                self._bar.add_task("", total=None)
            self._bar.update(self._bar.task_ids[0], description=text, completed=done or 0, total=total)
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + EVERY_S
            click.echo(text, err=True)

    def close(self) -> None:
        """Take the moving line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _moving_line() -> Progress:
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    return Progress(BarColumn(20), TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
