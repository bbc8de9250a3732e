"""From a mount point to a descriptor of /dev/fuse, and back: mount(2) as root, else fusermount3.

Promises that a failure leaves nothing mounted. Waits for other processes: run it in a thread.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lazyfs.core.errors import StartupError

DEVICE = "/dev/fuse"
FS_TYPE = "fuse.lazyfs"
_RDONLY, _NOSUID, _NODEV = 1, 2, 4
_DETACH = 2
_INHERITED = re.compile(r"/dev/fd/(\d+)")
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
OLDEST_LINUX = (5, 4)
"""The first that speaks FUSE 7.31."""
PATIENCE_S = 20.0
"""For fusermount3, which only waits for locks of its own."""


def why_not_direct() -> str | None:
    """What stands in the way of the direct session here; None if nothing does."""
    if sys.platform != "linux":
        return f"it speaks with Linux, and this is {sys.platform}"
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    if release is not None and (int(release[1]), int(release[2])) < OLDEST_LINUX:
        return f"Linux {platform.release()} is older than 5.4"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} cannot be opened"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "only root can mount without fusermount3"
    return None


@dataclass(slots=True)
class Device:
    """An open connection to the kernel. `mountpoint` is None where somebody else has mounted, and will unmount."""

    fd: int
    mountpoint: Path | None

    def close(self, *, gone: bool, busy: bool) -> None:
        """Close it, and unmount, unless it is `gone` from there already and another mount may be in its place. While a
        thread is `busy` with the descriptor it is left to the end of the process: its number must not be reused."""
        if not busy:
            os.close(self.fd)
        if self.mountpoint is not None and not gone:
            unmount(self.mountpoint)


def mount(mountpoint: Path, *, source: str, read_only: bool, allow_other: bool) -> Device:
    """A mount that nobody serves yet; its descriptor does not block. StartupError."""
    inherited = _INHERITED.fullmatch(os.fspath(mountpoint))
    try:
        if inherited is not None:
            device = Device(int(inherited[1]), None)
        else:
            device = Device(_mounted(mountpoint, source, read_only=read_only, allow_other=allow_other), mountpoint)
        os.set_blocking(device.fd, False)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartupError(f"cannot mount on {mountpoint}: {reason}") from error
    return device


def unmount(mountpoint: Path) -> None:
    """Take away what is mounted there, also from under who uses it."""
    if _LIBC.umount2(os.fsencode(mountpoint), _DETACH) == 0 or os.geteuid() == 0:
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [_fusermount(), "-u", "-q", "-z", "--", os.fspath(mountpoint)]
        subprocess.run(command, check=False, timeout=PATIENCE_S, capture_output=True)  # noqa: S603 - a fixed program


def _mounted(mountpoint: Path, source: str, *, read_only: bool, allow_other: bool) -> int:
    options = ["default_permissions", *(["allow_other"] if allow_other else [])]
    if os.geteuid() == 0:
        try:
            return _by_syscall(mountpoint, source, options, read_only=read_only)
        except PermissionError:  # root of a container that may not mount; fusermount3 may have leave to
            if shutil.which("fusermount3") is None:
                raise
    options += ["subtype=lazyfs", f"fsname={_escaped(source)}", *(["ro"] if read_only else [])]
    return _by_fusermount(mountpoint, options)


def _by_syscall(mountpoint: Path, source: str, options: list[str], *, read_only: bool) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        kind = stat.S_IFMT(mountpoint.stat().st_mode)
        who = [f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
        data = ",".join([f"fd={fd}", f"rootmode={kind:o}", *who, *options])
        flags = _NOSUID | _NODEV | (_RDONLY if read_only else 0)
        _call_mount(source.encode(), os.fsencode(mountpoint), FS_TYPE.encode(), flags, data.encode())
    except BaseException:
        os.close(fd)
        raise
    return fd


def _call_mount(*arguments: bytes | int) -> None:
    if _LIBC.mount(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _escaped(source: str) -> str:
    return source.replace("\\", "\\\\").replace(",", "\\,")


def _fusermount() -> str:
    program = shutil.which("fusermount3")
    if program is None:
        raise OSError(errno.ENOENT, "fusermount3 is not installed; run: apt install fuse3")
    return program


def _by_fusermount(mountpoint: Path, options: list[str]) -> int:
    """fusermount3 mounts, and sends the descriptor over the socket that _FUSE_COMMFD names."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [_fusermount(), "-o", ",".join(options), "--", os.fspath(mountpoint)]
        ours.settimeout(PATIENCE_S)
        done = subprocess.run(  # noqa: S603 - a fixed program
            command,
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PATIENCE_S,
        )
        if done.returncode != 0:
            raise OSError(errno.EPERM, done.stderr.strip().removeprefix("fusermount3: ") or "fusermount3 failed")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            (fd,) = array.array("i", payload[:4])
            os.set_inheritable(fd, False)  # noqa: FBT003 - os's signature
            return fd
    unmount(mountpoint)
    raise OSError(errno.EPROTO, "fusermount3 sent no descriptor")
