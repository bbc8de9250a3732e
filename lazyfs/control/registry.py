"""Where the mounts of this user are written down, so that `lazyfs status` finds their daemons.

One file and one socket a mount, named by a hash of the mount point, in a directory that only the user may enter. A
daemon killed with -9 leaves its file behind: its process is gone, so the entry counts as dead until it is unregistered
or replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from lazyfs import __version__
from lazyfs.control.private import make_private_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One mount. `started_at` is in seconds since the epoch, `process_start` in the kernel's ticks since boot."""

    mountpoint: str
    bucket: str
    pid: int
    process_start: int
    started_at: float
    version: str

    @property
    def is_alive(self) -> bool:
        """Whether the process that registered still runs; another one with its number does not count."""
        return _process_start(self.pid) == self.process_start

    @property
    def socket(self) -> Path:
        """Where its daemon listens."""
        return socket_path(Path(self.mountpoint))


def runtime_directory(environ: Mapping[str, str] | None = None) -> Path:
    """The user's directory of running mounts; it may not exist yet."""
    environ = os.environ if environ is None else environ
    if given := environ.get("LAZYFS_RUNTIME_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/lazyfs")
    if given := environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "lazyfs"
    return Path.home() / ".cache/lazyfs/run"


def socket_path(mountpoint: Path) -> Path:
    """Where the daemon of this mount point listens."""
    return _entry(mountpoint).with_suffix(".sock")


def register(mountpoint: Path, *, bucket: str) -> Registration:
    """Write down that this process serves `mountpoint`, in place of whoever did before. Raises StartupError."""
    pid = os.getpid()
    registration = Registration(
        mountpoint=str(mountpoint),
        bucket=bucket,
        pid=pid,
        process_start=_process_start(pid) or 0,
        started_at=time.time(),
        version=__version__,
    )
    entry = _entry(mountpoint)
    make_private_directory(entry.parent)
    draft = entry.with_suffix(f".{pid}.tmp")
    draft.write_text(json.dumps(asdict(registration)) + "\n", encoding="utf-8")
    draft.replace(entry)
    return registration


def unregister(mountpoint: Path) -> None:
    """Forget the mount and its socket, unless another living process has registered it since."""
    registration = find(mountpoint)
    if registration is not None and registration.is_alive and registration.pid != os.getpid():
        return
    for path in (_entry(mountpoint), socket_path(mountpoint)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def find(mountpoint: Path) -> Registration | None:
    """The registration of exactly this mount point, alive or dead."""
    return _read(_entry(mountpoint))


def all_mounts() -> list[Registration]:
    """Every registration of this user, dead ones too, by mount point."""
    entries = [_read(path) for path in runtime_directory().glob("*.json")]
    return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.mountpoint)


def _entry(mountpoint: Path) -> Path:
    digest = blake2b(os.fsencode(mountpoint), digest_size=8).hexdigest()
    return runtime_directory() / f"{digest}.json"


def _read(path: Path) -> Registration | None:
    """The registration in a file; None if it is gone or was not written by this version."""
    try:
        found = Registration(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts, numbers = (found.mountpoint, found.bucket, found.version), (found.pid, found.process_start)
    is_sound = all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)
    return found if is_sound and isinstance(found.started_at, int | float) else None


def _process_start(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if there is none or it is a zombie.

    Source: proc_pid_stat(5); the second field, the name, may hold spaces and parentheses.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
