"""Waiting for a task: a bar on a terminal, a plain line now and then elsewhere. Ctrl-C ends only the waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from lazyfs.cli.progress import View
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.units import format_duration, format_size

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
