"""`lazyfs umount`: detaches a mount, then waits until its daemon has finished what it owes the bucket.

Also cleans up after a daemon that was killed: the kernel keeps such a mount until somebody detaches it.
"""

from __future__ import annotations

import contextlib
import errno
import time
from pathlib import Path
from typing import Any

import click

from lazyfs.cli.backlog import backlog_of
from lazyfs.cli.holders import find_holders
from lazyfs.cli.mounts import FS_TYPE, find_mount, is_dead, resolve_mountpoint
from lazyfs.cli.output import say
from lazyfs.cli.unmounting import unmount
from lazyfs.control import registry
from lazyfs.control.client import call
from lazyfs.control.registry import Registration
from lazyfs.core.errors import ControlError, StartupError
from lazyfs.core.units import format_duration, parse_duration

_SHOWN_HOLDERS = 5
_POLL_S = 0.1
_TELL_EVERY_S = 2.0
_TIMEOUT_S = 300.0
_ANSWER_S = 2.0


@click.command()
@click.argument("mountpoint")
@click.option("--lazy", is_flag=True, help="Detach now, even if in use; programs keep what they have open.")
@click.option(
    "--timeout",
    metavar="TIME",
    help="How long to wait; what --write-back has not uploaded by then is left to the next mount. "
    "[5m, and for uploads as long as they take]",
)
def umount(mountpoint: str, lazy: bool, timeout: str | None) -> None:
    """Unmount MOUNTPOINT and wait until its daemon has finished.

    Works for a mount whose daemon was killed, too.
    """
    timeout_s = None if timeout is None else parse_duration(timeout)
    path = resolve_mountpoint(mountpoint)
    registration = registry.find(path)
    entry = find_mount(path)
    if entry is None:
        _finish_unmounted(path, registration, timeout_s)
        return
    if entry.fs_type != FS_TYPE:
        raise StartupError(f"{path} is a mount of type {entry.fs_type}, not of lazyfs; left alone")
    served = registration is not None and registration.is_alive
    # What a program still holds of a dead mount is of no use to it, and must not keep the mount.
    _detach(path, lazy=lazy or (not served and is_dead(path)))
    if registration is not None and served:
        _wait(registration, timeout_s)
    registry.unregister(path)
    say(f"unmounted {path}" + ("" if served or registration is None else ", whose daemon had died"))


def _finish_unmounted(path: Path, registration: Registration | None, timeout_s: float | None) -> None:
    """Nothing is mounted: wait for a daemon that is still finishing, clean up after one that died, or say so."""
    if registration is None:
        raise StartupError(f"{path} is not a mount point")
    if registration.is_alive:
        _wait(registration, timeout_s)
    registry.unregister(path)
    say(f"{path} was unmounted already")


def _detach(path: Path, *, lazy: bool) -> None:
    try:
        unmount(path, lazy=lazy)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise StartupError(f"{path} is in use{_holders(path)}; --lazy detaches it all the same") from error
        raise StartupError(f"cannot unmount {path}: {error.strerror}") from error


def _holders(path: Path) -> str:
    holders = find_holders(path)
    shown = ", ".join(f"{pid} ({name})" for pid, name in holders[:_SHOWN_HOLDERS])
    more = f" and {len(holders) - _SHOWN_HOLDERS} more" if len(holders) > _SHOWN_HOLDERS else ""
    return f" by process {shown}{more}" if holders else ""


def _wait(registration: Registration, timeout_s: float | None) -> None:
    """Return when the daemon has ended; meanwhile say what it still does. Raises StartupError if it does not end in
    time, or ends before everything is uploaded."""
    start = told = time.monotonic()
    left: dict[str, Any] = {}
    has_left = False
    while registration.is_alive:
        now = time.monotonic()
        if now - told >= _TELL_EVERY_S:
            told = now
            left = _pending(registration)
            does = f"uploading {backlog_of(left)}" if left else "to finish"
            say(f"waiting for the daemon (process {registration.pid}): {does}", err=True)
        if now - start > (_TIMEOUT_S if timeout_s is None else timeout_s) and not (left and timeout_s is None):
            left = _pending(registration)
            if not left or has_left:
                waited = format_duration(now - start)
                raise StartupError(
                    f"the daemon (process {registration.pid}) is still busy after {waited}; it goes on by itself"
                )
            has_left = True
            start = now
            with contextlib.suppress(ControlError):
                call(registration.socket, "leave_uploads", timeout_s=_ANSWER_S)
        time.sleep(_POLL_S)
    if has_left:
        raise StartupError(
            f"unmounted, but not everything is in the bucket yet: {backlog_of(left)}; it is kept here, and the next "
            "mount with --write-back uploads it"
        )


def _pending(registration: Registration) -> dict[str, Any]:
    """What the daemon says that it still has to upload; empty if nothing."""
    waiting: dict[str, Any] | None = None
    with contextlib.suppress(ControlError):
        waiting = call(registration.socket, "status", timeout_s=_ANSWER_S).get("write_back")
    return waiting if waiting and waiting.get("changes") else {}
