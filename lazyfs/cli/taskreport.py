"""`--report FILE`: what of a task failed, as a CSV: path, operation, error."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import StartupError

COLUMNS = ("path", "operation", "error")


class Report:
    """Rows of a CSV; without a file they go nowhere."""

    def __init__(self, file: TextIO | None, *, is_stdout: bool = False) -> None:
        self.is_stdout = is_stdout
        self._rows = None if file is None else csv.writer(file, lineterminator="\n")
        if self._rows is not None:
            self._rows.writerow(COLUMNS)

    def add(self, path: str, operation: str, error: str) -> None:
        """One more."""
        if self._rows is not None:
            self._rows.writerow((path, operation, error))

    def add_task(self, registration: Registration, task: dict[str, Any]) -> None:
        """What failed of a task; what its daemon has forgotten is one row that says how much. ControlError."""
        if self._rows is None:
            return
        told = 0
        while page := call(registration.socket, "failures", id=task["id"], after=told)["failures"]:
            for what, reason in page:  # a path in the mount begins with a slash; anything else is no path
                self.add(registration.mountpoint + what if what.startswith("/") else what, task["verb"], reason)
            told += len(page)
        if task["failed"] > told:
            self.add("", task["verb"], f"{task['failed'] - told} more are not remembered")
        if not task["failed"] and task["error"]:
            self.add(registration.mountpoint, task["verb"], task["error"])


@contextlib.contextmanager
def written(name: str | None) -> Iterator[Report]:
    """A report to the file `name`, `-` is standard output, None none. StartupError, before anything is done."""
    if name is None:
        yield Report(None)
        return
    is_stdout = name == "-"
    where = sys.stdout.fileno() if is_stdout else Path(name)
    try:
        with open(where, "w", encoding="utf-8", errors="surrogateescape", newline="", closefd=not is_stdout) as file:
            yield Report(file, is_stdout=is_stdout)
    except OSError as error:
        raise StartupError(f"cannot write the report {name}: {error.strerror}") from error
