"""`lazyfs report`: what the run was like, from the first open to the last stall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lazyfs.cli.mounts import resolve_mountpoint
from lazyfs.cli.output import Troubles, echo_json, say
from lazyfs.cli.runview import rows, title
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import ControlError, LazyfsError, StartupError, UsageError

ANSWER_S = 30.0


@click.command()
@click.argument("mountpoint", required=False)
@click.option("--reset", is_flag=True, help="Then begin anew: the next report tells of what comes from now on.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects, one a mount, for programs.")
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Draw it, too; of one mount.")
def report(mountpoint: str | None, reset: bool, as_json: bool, png: Path | None) -> int:
    """Tell what the run was like: the time to the first byte and the first batch, stalls, bytes by tier and pass.

    It also tells how long it would have taken to download everything first, and which directories are hot. A pass is
    how often a file has been opened: the second pass over all files is the second epoch. Without MOUNTPOINT: all mounts
    of this user.
    """
    registrations = _named(mountpoint)
    if png is not None:
        if len(registrations) != 1:
            raise UsageError("--png draws one mount: name its mount point")
        from lazyfs.bench.picture import check_can_draw  # noqa: PLC0415 - rarely needed

        check_can_draw()
    troubles = Troubles()
    reports = []
    for registration in registrations:
        try:
            reports.append(_asked(registration, reset=reset))
        except ControlError as error:
            troubles.tell(f"{registration.mountpoint}: {error}")
    if as_json:
        echo_json(reports)
    else:
        for number, one in enumerate(reports):
            _print(one, after_another=number > 0)
    if png is not None and reports:
        _draw(reports[0], png)
    return troubles.exit_code


def _named(mountpoint: str | None) -> list[Registration]:
    """The mounts to tell of. StartupError if there are none."""
    if mountpoint is None:
        found = registry.all_mounts()
        if not found:
            raise StartupError("no mounts")
        return found
    one = registry.find(resolve_mountpoint(mountpoint))
    if one is None:
        raise StartupError(f"{mountpoint} is not a mount of lazyfs of this user")
    return [one]


def _asked(registration: Registration, *, reset: bool) -> dict[str, Any]:
    """The daemon's report. ControlError."""
    if not registration.is_alive:
        raise ControlError(f"its daemon has died; run: lazyfs umount {registration.mountpoint}")
    told = call(registration.socket, "report", timeout_s=ANSWER_S, reset=reset)
    return {"mountpoint": registration.mountpoint, "bucket": registration.bucket, **told}


def _print(one: dict[str, Any], *, after_another: bool) -> None:
    if after_another:
        click.echo()
    say(title(one))
    for name, value in rows(one):
        say(f"  {name:<17}  {value}")


def _draw(one: dict[str, Any], file: Path) -> None:
    from lazyfs.bench.runpicture import draw  # noqa: PLC0415 - matplotlib is slow to import

    try:
        draw(one, file=file)
    except OSError as error:
        raise LazyfsError(f"cannot write {file}: {error.strerror or error}") from error
