"""`lazyfs preload`: has the daemon bring files to its SSD tier, in the order in which they are named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.places import Places
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


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--list", "lists", metavar="FILE", multiple=True, help="A file of paths, one a line; - is standard input."
)
@click.option("--wait", is_flag=True, help="Return when everything is there.")
@click.option("--json", "as_json", is_flag=True, help="The task of each mount, for programs.")
def preload(paths: tuple[str, ...], lists: tuple[str, ...], wait: bool, as_json: bool) -> int:
    """Bring files, or all below directories, to the cache directory while programs go on reading.

    What is listed comes in the given order, like that of the training; readers go first. Without --wait it goes on in
    the background: see lazyfs task. PATH may be a glob in quotes.
    """
    if not paths and not lists:
        raise UsageError("preload needs a PATH or --list FILE (see lazyfs preload --help)")
    troubles = Troubles()
    sending: dict[str, _Sending] = {}
    places = Places()
    for where, line, path in _named(paths, lists, troubles):
        try:
            place = places.locate(path)
            mountpoint = place.registration.mountpoint
            sending.setdefault(mountpoint, _Sending(place.registration, troubles)).add(where, line, place.path)
        except StartupError as error:
            troubles.tell(_at(where, line) + str(error))
    tasks = [task for one in sending.values() for task in _begun(one, troubles, about=" ".join((*paths, *lists)))]
    if wait:
        tasks = [(registration, wait_for(registration, task["id"])) for registration, task in tasks]
    for registration, task in tasks:
        if wait and task["state"] != "done":
            troubles.tell(f"preload of {registration.mountpoint} {task['state']}: {task['error'] or 'by lazyfs task'}")
        elif not as_json:
            say(f"preloaded {describe(task)}" if wait else f"task {task['id']} preloads; see: lazyfs task ls")
    if as_json:
        echo_json({**task, "mountpoint": registration.mountpoint} for registration, task in tasks)
    return troubles.exit_code


class _Sending:
    """Tells one daemon a list, in pieces; what it says of bad ones is told as `FILE:LINE: reason`."""

    def __init__(self, registration: Registration, troubles: Troubles) -> None:
        self.registration = registration
        self.number: int | None = None
        self.count = 0
        """Of what was told."""
        self._troubles = troubles
        self._waiting: list[tuple[str, int, str]] = []
        self._bytes = 0

    def add(self, where: str, line: int, path: str) -> None:
        """One more. ControlError."""
        self._waiting.append((where, line, path))
        self._bytes += len(path)
        if len(self._waiting) >= _AT_ONCE or self._bytes >= _MESSAGE_BYTES:
            self.send()

    def send(self) -> None:
        """Tell what waits. ControlError."""
        items = [(number, path) for number, (_, _, path) in enumerate(self._waiting)]
        told = call(self.registration.socket, "list", timeout_s=_LOOK_UP_S, list=self.number, items=items)
        self.number = told["list"]
        self.count += len(items) - len(told["bad"])
        for number, reason in told["bad"]:
            where, line, _ = self._waiting[number]
            self._troubles.tell(_at(where, line) + reason)
        self._waiting, self._bytes = [], 0


def _begun(sending: _Sending, troubles: Troubles, *, about: str) -> Iterator[tuple[Registration, dict[str, Any]]]:
    try:
        sending.send()
        if sending.count:
            yield (
                sending.registration,
                call(sending.registration.socket, "preload", list=sending.number, about=about[:500]),
            )
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
