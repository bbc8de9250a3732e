"""The command `lazyfs` as a user runs it, for demonstrations and benchmarks.

Promises that nothing stays mounted behind a block of `mounted`, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from lazyfs.config import OPTIONS, BucketConfig
from lazyfs.control import client, registry
from lazyfs.core.errors import StartupError

COMMAND_S = 60.0
STOP_S = 15.0


@contextlib.contextmanager
def mounted(
    bucket: str, mountpoint: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """`lazyfs mount BUCKET MOUNTPOINT OPTIONS` until the block ends; the daemon has ended, too. StartupError."""
    environment = environment or {}
    try:
        run_lazyfs("mount", bucket, str(mountpoint), *options, environment=environment)
        yield
    finally:
        if registry.find(mountpoint) is not None or os.path.ismount(mountpoint):
            _unmount(mountpoint, environment)


def counters(mountpoint: Path) -> dict[str, int]:
    """What the daemon of this mount has counted so far."""
    found: dict[str, int] = client.call(registry.socket_path(mountpoint), "status")["stats"]
    return found


def run_lazyfs(*arguments: str, environment: Mapping[str, str]) -> None:
    """Run a command of lazyfs, with `environment` added to our own. StartupError with its reason if it fails."""
    process = subprocess.Popen(  # noqa: S603 - ourselves
        (sys.executable, "-m", "lazyfs", *arguments),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C goes to us, who end it in order
    )
    with process:
        try:
            _, said = process.communicate(timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            _interrupt(process)
            raise StartupError(f"lazyfs {arguments[0]} did not finish within {COMMAND_S:.0f} s") from None
        except BaseException:
            _interrupt(process)
            raise
    if process.returncode:
        raise StartupError(f"lazyfs {arguments[0]} failed: {said.strip().removeprefix('lazyfs: ')}")


def bucket_arguments(bucket: BucketConfig) -> list[str]:
    """The options that make another command see this bucket as it is configured here, wherever that was written."""
    arguments: list[str] = []
    for option in OPTIONS:
        value = getattr(bucket, option.field) if option.group == "bucket" else None
        if value is None:
            continue
        if not option.is_switch:
            arguments += [f"--{option.name}", str(value)]
        elif value:
            arguments.append(f"--{option.name}")
        elif option.negation:
            arguments.append(f"--{option.negation}")
    return arguments


def _unmount(mountpoint: Path, environment: Mapping[str, str]) -> None:
    try:
        run_lazyfs("umount", str(mountpoint), environment=environment)
    except StartupError:
        if os.path.ismount(mountpoint):
            run_lazyfs("umount", "--lazy", str(mountpoint), environment=environment)
        raise


def _interrupt(process: subprocess.Popen[str]) -> None:
    """End a command as Ctrl-C does: `lazyfs mount` then takes its daemon along."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
