"""Which processes keep a mount busy, as far as /proc lets this user see. Reads links only, never the mount."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def find_holders(mountpoint: Path, proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """Number and name of each process with a file, a mapping or its working directory below `mountpoint`."""
    return sorted(
        (int(process.name), _name(process))
        for process in proc.iterdir()
        if process.name.isdecimal() and any(_is_below(target, mountpoint) for target in _targets(process))
    )


def _targets(process: Path) -> Iterator[str]:
    """The paths that a process holds; those that we may not see, or that went away meanwhile, are left out."""
    links = [process / "cwd", process / "root", process / "exe"]
    for folder in ("fd", "map_files"):
        with contextlib.suppress(OSError):
            links.extend((process / folder).iterdir())
    for link in links:
        with contextlib.suppress(OSError):
            yield os.readlink(link)


def _is_below(target: str, mountpoint: Path) -> bool:
    return target == str(mountpoint) or target.startswith(f"{mountpoint}/")


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"
