"""Defaults that depend on the machine: where the user's directories are, how much room there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lazyfs.config.values import MIN_MEMORY

GIB = 1024**3

Known: TypeAlias = Mapping[str, Any]
"""Values settled so far, by option name; and `bucket`, the bucket's name."""
Environ: TypeAlias = Mapping[str, str]


def xdg_directory(variable: str, fallback: str, environ: Environ) -> Path:
    """A base directory of the XDG specification, which says to ignore relative values."""
    given = Path(environ.get(variable, ""))
    return given if given.is_absolute() else Path.home() / fallback


def default_cache_directory(_known: Known, environ: Environ) -> Path:
    """`lazyfs` in the user's cache directory."""
    return xdg_directory("XDG_CACHE_HOME", ".cache", environ) / "lazyfs"


def default_cache_size(known: Known, environ: Environ) -> int:
    """20 GiB or a fifth of what is free, the smaller; 0 without a directory."""
    directory = known["cache-dir"] if "cache-dir" in known else default_cache_directory(known, environ)
    if directory is None:
        return 0
    existing = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    return int(min(20 * GIB, shutil.disk_usage(existing).free // 5))


def default_memory(_known: Known, _environ: Environ) -> int:
    """1 GiB or an eighth of the RAM, the smaller; a container may have less RAM than its machine."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):
        limit = physical
    return max(MIN_MEMORY, min(GIB, min(physical, limit) // 8))


def default_log_file(known: Known, environ: Environ) -> Path | None:
    """One file a bucket in the user's state directory; None, the terminal, in the foreground."""
    if known.get("foreground", True):
        return None
    return xdg_directory("XDG_STATE_HOME", ".local/state", environ) / "lazyfs" / f"{known['bucket']}.log"
