"""How far something is, for the person who waits: a moving line on a terminal, a plain one now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lazyfs.cli.output import say, shown
from lazyfs.core.units import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY_S = 5.0
"""Between two plain lines."""

Tell = Callable[[dict[str, Any]], None]


class View:
    """Shows what `tell` is told, on standard error. `close` it before anything else is printed.

    `may_draw` False: other lines come to the same terminal, so nothing may be drawn over. A `label` stands before the
    moving line, and then the time behind it. The first plain line comes after `first_s`, else EVERY_S.
    """

    def __init__(self, *, may_draw: bool = True, label: str = "", first_s: float | None = None) -> None:
        self._draws = may_draw and sys.stderr.isatty()
        self._label = label
        self._bar: Progress | None = None
        self._next_s = time.monotonic() + (EVERY_S if first_s is None else first_s)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, text: str, *, plain: str = "", done: float | None = None, total: float | None = None) -> None:
        """It is so far now; `plain` is what a plain line says instead of `text`."""
        if self._draws:
            if self._bar is None:
                self._bar = _moving_line(self._label)
                self._bar.start()
                self._bar.add_task("", total=None)
            self._bar.update(self._bar.task_ids[0], description=shown(text), completed=done or 0, total=total)
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + EVERY_S
            say(plain or text, err=True)

    def close(self) -> None:
        """Take the moving line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def import_view(*, may_draw: bool = True) -> View:
    """A view for `tell_import`. `may_draw`: see View."""
    return View(may_draw=may_draw, label="importing", first_s=0.0)


def tell_import(view: View, progress: dict[str, Any]) -> None:
    """The import is so far now."""
    so_far = describe(progress)
    view.tell(so_far, plain=f"importing: {so_far}, {format_duration(progress['elapsed_s'])}")


def describe(progress: dict[str, Any]) -> str:
    """Objects, their rate and requests. How many there will be, nobody knows."""
    return f"{progress['objects']:,} objects, {progress['rate']:,.0f}/s, {progress['requests']:,} requests"


def _moving_line(label: str) -> Progress:
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns: list[ProgressColumn] = [BarColumn(20), TextColumn("{task.description}", markup=False)]
    if label:
        columns = [TextColumn(label), *columns, TimeElapsedColumn()]
    return Progress(*columns, console=Console(stderr=True), transient=True)
