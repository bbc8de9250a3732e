"""How far an import is, for the person who waits: a moving line on a terminal, a plain one now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from lazyfs.core.units import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY_S = 5.0
"""Between two plain lines."""

Tell = Callable[[dict[str, Any]], None]


class ImportView:
    """Shows what `tell` is told, on standard error. `close` it before anything else is printed.

    `may_draw` False: other lines come to the same terminal, so nothing may be drawn over.
    """

    def __init__(self, *, may_draw: bool = True) -> None:
        self._draws = may_draw and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._next_s = 0.0

    def __enter__(self) -> ImportView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def tell(self, progress: dict[str, Any]) -> None:
        """The import is so far now."""
        if self._draws:
            self._draw(describe(progress))
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + EVERY_S
            click.echo(f"importing: {describe(progress)}, {format_duration(progress['elapsed_s'])}", err=True)

    def close(self) -> None:
        """Take the moving line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, text: str) -> None:
        if self._bar is None:
            self._bar = _moving_line()
            self._bar.start()
            self._bar.add_task("", total=None)
        self._bar.update(self._bar.task_ids[0], description=text)


def describe(progress: dict[str, Any]) -> str:
    """Objects, their rate and requests. How many there will be, nobody knows."""
    return f"{progress['objects']:,} objects, {progress['rate']:,.0f}/s, {progress['requests']:,} requests"


def _moving_line() -> Progress:
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("importing"), BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
