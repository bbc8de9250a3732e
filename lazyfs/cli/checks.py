"""What `lazyfs doctor` looks at on this machine. Looks only: nothing is created or changed."""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lazyfs.cli.mounts import parse_mountinfo
from lazyfs.cli.preflight import FUSE_DEVICE, check_fuse
from lazyfs.config import CacheConfig
from lazyfs.core.errors import StartupError
from lazyfs.core.units import format_size
from lazyfs.fuse.mounting import why_not_direct

BDI = Path("/sys/class/bdi")
FUSECTL = Path("/sys/fs/fuse/connections")
_NOT_LOCAL = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "fuse")


class Level(enum.Enum):
    """How good a finding is: fine, working at a cost, or in the way of any mount."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the list; `advice` says what it costs and what would help."""

    level: Level
    text: str
    advice: str = ""


def check_machine(cache: CacheConfig) -> Iterator[Finding]:
    """Every check that needs no bucket, in an order that reads well."""
    yield Finding(Level.OK, f"Python {platform.python_version()}, Linux {platform.release()}")
    yield check_device()
    yield check_fusermount()
    yield check_libfuse()
    yield check_direct()
    yield from check_tuning()
    yield check_cache(cache)
    yield check_memory(cache)


def check_device() -> Finding:
    """Whether this user can mount."""
    try:
        check_fuse(allow_other=False)
    except StartupError as error:
        return Finding(Level.FAIL, str(error))
    return Finding(Level.OK, f"{FUSE_DEVICE} can be opened")


def check_fusermount() -> Finding:
    """Whether fusermount3 is there, and which one; root can do without."""
    program = shutil.which("fusermount3")
    if program is None:
        level = Level.WARN if os.geteuid() == 0 else Level.FAIL
        return Finding(level, "fusermount3 is not installed", "only root can mount and unmount; run: apt install fuse3")
    done = subprocess.run([program, "-V"], capture_output=True, text=True, check=False)  # noqa: S603 - a fixed program
    return Finding(Level.OK, done.stdout.strip() or program)


def check_libfuse() -> Finding:
    """Whether the library that pyfuse3 needs is there, and which one."""
    try:
        library = ctypes.CDLL("libfuse3.so.3")
    except OSError:
        try:
            library = ctypes.CDLL("libfuse3.so.4")
        except OSError:
            return Finding(Level.FAIL, "libfuse3 is not installed", "run: apt install libfuse3-3")
    library.fuse_pkgversion.restype = ctypes.c_char_p
    return Finding(Level.OK, f"libfuse {library.fuse_pkgversion().decode()}")


def check_direct() -> Finding:
    """Whether the kernel can be spoken with without libfuse."""
    reason = why_not_direct()
    if reason is None:
        return Finding(Level.OK, "the kernel can be served without libfuse (--session direct)")
    return Finding(
        Level.WARN, f"no --session direct: {reason}", "--session pyfuse3 does the same, at more CPU a request"
    )


def check_tuning() -> Iterator[Finding]:
    """Whether a mount can raise the kernel's limits for itself. The costs are measured: shared/design.md, D1."""
    if os.geteuid() == 0 and os.access(BDI, os.W_OK):
        yield Finding(Level.OK, "the kernel's read-ahead can be raised")
    else:
        yield Finding(
            Level.WARN,
            "the kernel's read-ahead cannot be raised by this user",
            "reads arrive as 128 KiB instead of 1 MiB: sequential reads from memory at 2.4 instead of 3.9 GB/s",
        )
    if os.geteuid() == 0 and FUSECTL.is_mount():
        yield Finding(Level.OK, "the kernel's limit of parallel reads can be raised")
    else:
        how = f"; run: mount -t fusectl fusectl {FUSECTL}" if os.geteuid() == 0 else ""
        yield Finding(
            Level.WARN,
            "the kernel's limit of parallel reads cannot be raised" + ("" if how else " by this user"),
            f"12 reads ahead at a time: 32 cold readers of small files get 619 instead of 807 files/s{how}",
        )


def check_cache(cache: CacheConfig) -> Finding:
    """Whether the cache directory can be used, and on what it lies."""
    directory = cache.directory
    if directory is None:
        return Finding(Level.WARN, "no cache directory", "every mount starts cold, and only memory caches data")
    existing = Path(os.path.realpath(next(path for path in (directory, *directory.parents) if path.exists())))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(Level.FAIL, f"the cache directory {directory} cannot be used", "choose one with --cache-dir")
    free = shutil.disk_usage(existing).free
    kind = file_system_of(existing)
    text = f"cache directory {directory}: {format_size(cache.size)} at most, {format_size(free)} free, {kind}"
    if kind == "tmpfs":
        return Finding(Level.WARN, text, "tmpfs is memory, outside of the budget of --memory")
    if kind.partition(".")[0] in _NOT_LOCAL:
        return Finding(Level.WARN, text, "the cache wants a local disk: over the network it is slow, and its locks lie")
    if cache.size > free:
        return Finding(Level.WARN, text, "the disk will be full before the cache is; lower --cache-size")
    return Finding(Level.OK, text)


def check_memory(cache: CacheConfig) -> Finding:
    """Whether the budget fits into the machine."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"memory: {format_size(cache.memory)} at most, of {format_size(total)}"
    if cache.memory > total // 2:
        return Finding(Level.WARN, text, "more than half of the RAM: the page cache, which is faster, gets the rest")
    return Finding(Level.OK, text)


def file_system_of(path: Path) -> str:
    """The type of the file system that holds `path`, as the kernel names it."""
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    holding = [entry for entry in parse_mountinfo(text) if path.is_relative_to(entry.mountpoint)]
    # The deepest mount point holds it; of several on one place the last covers the others.
    deepest = max(enumerate(holding), key=lambda item: (len(item[1].mountpoint.parts), item[0]), default=None)
    return deepest[1].fs_type if deepest else "unknown"
