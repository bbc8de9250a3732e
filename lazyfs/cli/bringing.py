"""What `lazyfs preload` and `lazyfs pin` share: a list of paths is told to the daemons, which make tasks of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.places import Place, Places
from lazyfs.cli.taskreport import Report, written
from lazyfs.cli.waiting import describe, wait_for
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import LazyfsError, StartupError, UsageError

MAX_LINE_BYTES = 8192
"""Of a list: a path of 4,096 bytes fits, and a file without ends of lines is not read into memory."""
_AT_ONCE = 200
"""Paths in one message."""
_MESSAGE_BYTES = 64 * 1024
_LOOK_UP_S = 600.0


def options(command: Callable[..., int]) -> Callable[..., int]:
    """The arguments of a command that brings files, but for its own."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="The task of each mount, for programs."),
        click.option(
            "--report",
            metavar="FILE",
            help="Wait, and write a CSV of what failed: path, operation, error; - is stdout.",
        ),
        click.option("--wait", is_flag=True, help="Return when everything is there."),
        click.option(
            "--jobs", type=click.IntRange(1, 1024), metavar="N", help="Files under way at a time.  [default: 64]"
        ),
        click.option(
            "--list", "lists", metavar="FILE", multiple=True, help="A file of paths, one a line; - is standard input."
        ),
        click.argument("paths", nargs=-1, metavar="[PATH]..."),
    ):
        command = option(command)
    return command


def bring(
    verb: str,
    paths: tuple[str, ...],
    lists: tuple[str, ...],
    *,
    wait: bool,
    report: str | None,
    as_json: bool,
    **how: Any,
) -> int:
    """Have the daemons bring what is named, `how` they are told; the exit code. LazyfsError."""
    if not paths and not lists:
        raise UsageError(f"{verb} needs a PATH or --list FILE (see lazyfs {verb} --help)")
    if report == "-" and as_json:
        raise UsageError("--report - and --json both want standard output")
    with written(report) as rows:
        troubles = _Told(rows, verb)
        return _bring(verb, paths, lists, troubles, rows, wait=wait or report is not None, as_json=as_json, how=how)


def _bring(
    verb: str,
    paths: tuple[str, ...],
    lists: tuple[str, ...],
    troubles: _Told,
    rows: Report,
    *,
    wait: bool,
    as_json: bool,
    how: dict[str, Any],
) -> int:
    done = "pinned" if verb == "pin" else "preloaded"
    tasks: list[tuple[Registration, dict[str, Any]]] = []
    for one in _sent(paths, lists, troubles):
        tasks += _begun(one, troubles, about=" ".join((*paths, *lists))[:500], **how)
    if wait:
        tasks = [(registration, wait_for(registration, task["id"])) for registration, task in tasks]
    for registration, task in tasks:
        if wait and task["state"] != "done":
            troubles.tell(f"{verb} of {registration.mountpoint} {task['state']}: {task['error'] or 'by lazyfs task'}")
        elif not as_json and not rows.is_stdout:
            say(f"{done} {describe(task)}" if wait else f"task {task['id']} {verb}s; see: lazyfs task ls")
        if wait:
            rows.add_task(registration, task)
    if as_json:
        echo_json({**task, "mountpoint": registration.mountpoint} for registration, task in tasks)
    return troubles.exit_code


def _sent(paths: tuple[str, ...], lists: tuple[str, ...], troubles: _Told) -> list[_Sending]:
    """What is named, told to the mounts that it is in."""
    sending: dict[str, _Sending] = {}
    places = Places()
    for where, line, path in _named(paths, lists, troubles):
        try:
            place = places.locate(path)
            mountpoint = place.registration.mountpoint
            sending.setdefault(mountpoint, _Sending(place.registration, troubles)).add(where, line, place)
        except StartupError as error:
            troubles.tell_of(_at(where, line), path, str(error))
    return list(sending.values())


class _Told(Troubles):
    """Also puts what is told of a path into the report."""

    def __init__(self, rows: Report, verb: str) -> None:
        super().__init__()
        self._rows = rows
        self._verb = verb

    def tell_of(self, at: str, path: str, reason: str) -> None:
        """Say what is wrong with a path that was named `at` some place."""
        self._rows.add(path, self._verb, reason)
        self.tell(at + reason)


class _Sending:
    """Tells one daemon a list, in pieces; what it says of bad ones is told as `FILE:LINE: reason`."""

    def __init__(self, registration: Registration, troubles: _Told) -> None:
        self.registration = registration
        self.number: int | None = None
        self.count = 0
        """Of what was told."""
        self._troubles = troubles
        self._waiting: list[tuple[str, int, Place]] = []
        self._bytes = 0

    def add(self, where: str, line: int, place: Place) -> None:
        """One more. ControlError."""
        self._waiting.append((where, line, place))
        self._bytes += len(place.path)
        if len(self._waiting) >= _AT_ONCE or self._bytes >= _MESSAGE_BYTES:
            self.send()

    def send(self) -> None:
        """Tell what waits. ControlError."""
        items = [(number, place.path) for number, (_, _, place) in enumerate(self._waiting)]
        told = call(self.registration.socket, "list", timeout_s=_LOOK_UP_S, list=self.number, items=items)
        self.number = told["list"]
        self.count += len(items) - len(told["bad"])
        for number, reason in told["bad"]:
            where, line, place = self._waiting[number]
            self._troubles.tell_of(_at(where, line), place.full(place.path), reason)
        self._waiting, self._bytes = [], 0


def _begun(sending: _Sending, troubles: _Told, **how: Any) -> Iterator[tuple[Registration, dict[str, Any]]]:
    try:
        sending.send()
        if sending.count:
            socket = sending.registration.socket
            yield sending.registration, call(socket, "preload", list=sending.number, **how)
    except LazyfsError as error:
        troubles.tell(str(error))


def _named(paths: tuple[str, ...], lists: tuple[str, ...], troubles: Troubles) -> Iterator[tuple[str, int, str]]:
    """What the user names, with the file and the line where."""
    yield from (("", 0, path) for path in paths)
    for name in lists:
        try:
            file: BinaryIO
            with sys.stdin.buffer if name == "-" else Path(name).open("rb") as file:
                yield from _lines(name, file, troubles)
        except OSError as error:
            troubles.tell(f"cannot read the list {name}: {error.strerror}")


def _lines(name: str, file: BinaryIO, troubles: Troubles) -> Iterator[tuple[str, int, str]]:
    """The paths of a list; empty lines say nothing."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            troubles.tell(f"{name}:{number}: the line is too long for a path")
            continue
        path = line.rstrip(b"\r\n")
        if b"\0" in path:
            troubles.tell(f"{name}:{number}: not a path")
        elif path.strip():
            yield name, number, path.decode("utf-8", "surrogateescape")


def _at(where: str, line: int) -> str:
    return f"{where}:{line}: " if where else ""
