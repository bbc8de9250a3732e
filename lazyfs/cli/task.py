"""`lazyfs task`: what daemons do in the background because somebody has asked for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from lazyfs.cli.mounts import resolve_mountpoint
from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.taskreport import written
from lazyfs.cli.waiting import describe
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import LazyfsError, StartupError


@click.group()
def task() -> None:
    """Look at preloads and refreshes that go on in the background, or cancel them."""


@task.command("ls")
@click.argument("mountpoint", required=False)
@click.option("--json", "as_json", is_flag=True, help="A list of objects, for programs.")
def list_tasks(mountpoint: str | None, as_json: bool) -> int:
    """Show the tasks of all mounts of this user, or of MOUNTPOINT: those that run, and the latest that have ended."""
    troubles = Troubles()
    tasks = _all(mountpoint, troubles)
    if as_json:
        echo_json(tasks)
        return troubles.exit_code
    count = 0
    for count, one in enumerate(tasks, 1):  # noqa: B007 - how many there were
        say(f"{one['id']:<12} {one['verb']:<8} {one['state']:<10} {describe(one)}  {one['about']}")
    if not count and not troubles.count:
        say("no tasks")
    return troubles.exit_code


@task.command()
@click.argument("id")
@click.option("--report", metavar="FILE", help="Write what failed to a CSV: path, operation, error; - is stdout.")
@click.option("--json", "as_json", is_flag=True, help="An object, for programs.")
def show(id: str, report: str | None, as_json: bool) -> None:  # noqa: A002 - click hands it over by this name
    """Show a task, with what has failed of it."""
    registration = _owner(id)
    told = call(registration.socket, "task", id=id)
    if report is not None:
        with written(report) as rows:
            rows.add_task(registration, told)
        if report == "-":
            return
    if as_json:
        click.echo(json.dumps({**told, "mountpoint": registration.mountpoint}))
        return
    say(f"{told['id']}: {told['verb']} of {told['about']}, in {registration.mountpoint}")
    say(f"{told['state']}, {describe(told)}" + (f"; {told['error']}" if told["error"] else ""))
    for what, reason in told["failures"]:
        say(f"  {what}: {reason}")
    if told["failed"] > len(told["failures"]):
        say(f"  and {told['failed'] - len(told['failures']):,} more (lazyfs task show {id} --report FILE)")


@task.command()
@click.argument("id")
def cancel(id: str) -> None:  # noqa: A002 - click hands it over by this name
    """End a task. What it has brought stays."""
    call(_owner(id).socket, "cancel", id=id)
    say(f"cancelled {id}")


def _all(mountpoint: str | None, troubles: Troubles) -> Iterator[dict[str, Any]]:
    if mountpoint is None:
        chosen = [registration for registration in registry.all_mounts() if registration.is_alive]
    else:
        path = resolve_mountpoint(mountpoint)
        registration = registry.find(path)
        if registration is None or not registration.is_alive:
            raise StartupError(f"{path} is not a mount of lazyfs of this user, or its daemon has died")
        chosen = [registration]
    for registration in chosen:
        try:
            tasks = call(registration.socket, "tasks")["tasks"]
        except LazyfsError as error:
            troubles.tell(f"{registration.mountpoint}: {error}")
            continue
        yield from ({**one, "mountpoint": registration.mountpoint} for one in tasks)


def _owner(id: str) -> Registration:  # noqa: A002 - the user's word
    """The mount whose task it is: its daemon's process number is what the id begins with."""
    for registration in registry.all_mounts():
        if registration.is_alive and id.startswith(f"{registration.pid}-"):
            return registration
    raise StartupError(f"there is no task {id} (any more); see lazyfs task ls")
