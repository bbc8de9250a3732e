"""`lazyfs flush`: is it in the bucket yet?"""

from __future__ import annotations

import time
from typing import Any

import click

from lazyfs.cli.output import Troubles, echo_json, say, shown
from lazyfs.cli.places import Place, locate
from lazyfs.cli.progress import View
from lazyfs.cli.waiting import polls
from lazyfs.control import registry
from lazyfs.core.errors import StartupError
from lazyfs.core.units import format_size, parse_duration


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--wait", is_flag=True, help="Return when the bucket has everything; at the first upload that fails, with 1."
)
@click.option("--timeout", metavar="TIME", help="How long to wait; until then failures are waited for, too.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one a path, for programs.")
def flush(paths: tuple[str, ...], wait: bool, timeout: str | None, as_json: bool) -> int:
    """Tell what of files and directories, or of all mounts of this user, --write-back has still to upload.

    Uploads begin by themselves; what programs have not closed is not among them. Without --write-back there is nothing
    to wait for.
    """
    troubles = Troubles()
    until_s = None if timeout is None else time.monotonic() + parse_duration(timeout)
    chosen = paths or [entry.mountpoint for entry in registry.all_mounts() if entry.is_alive]
    told = []
    for path, answer in troubles.each(chosen, lambda path: [(path, _flushed(path, wait=wait, until_s=until_s))]):
        told.append({"path": path, **answer})
        for key, reason in answer["failed"]:
            troubles.tell(f"{shown(key)}: {reason}; it is tried again")
        if wait and answer["changes"] and not answer["failed"]:
            troubles.tell(f"{path}: still waiting for {_changes(answer)}")
        if not as_json:
            say(f"{path}: {_changes(answer) if answer['changes'] else 'everything is in the bucket'}")
            if answer["open"]:
                say(f"{path}: {answer['open']:,} files are still being written by programs")
    if as_json:
        echo_json(told)
    return troubles.exit_code


def _flushed(path: str, *, wait: bool, until_s: float | None) -> dict[str, Any]:
    """What the daemon says at the end."""
    place = locate(path)
    with View() as view:
        for _ in polls():
            answer = _ask(place, path)
            if not wait or not answer["changes"] or (until_s is not None and time.monotonic() >= until_s):
                return answer
            if answer["failed"] and until_s is None:
                return answer
            view.tell(f"{path}: {_changes(answer)}")
    raise AssertionError("polls never end")


def _ask(place: Place, path: str) -> dict[str, Any]:
    answer = place.ask("pending", path=place.path)
    if not isinstance(answer.get("changes"), int):
        raise StartupError(f"the daemon of {path} does not say what is pending")
    return answer


def _changes(answer: dict[str, Any]) -> str:
    return f"{answer['changes']:,} changes, {format_size(answer['bytes'])}, are on their way"
