"""What FUSE_PASSTHROUGH (Linux 6.9, root) would give where a whole object is one local file.

`python -m bench.passthrough` mounts one file by the direct session's own protocol, which the kernel reads from its
backing file by itself, and prints MB/s and opens a second beside the same file read locally, with and without its pages
in the page cache. docs/decisions/013-direct-session.md has the figures and what was made of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
import time
from pathlib import Path
from struct import Struct

from lazyfs.core.types import Attributes, Kind
from lazyfs.fuse import answers
from lazyfs.fuse import protocol as p
from lazyfs.fuse.mounting import mount
from lazyfs.fuse.protocol import InitFlag, Opcode

MIB = 1024**2
SIZE = 512 * MIB
OPENS = 3000
BIG = 2
INIT_EXT, PASSTHROUGH_FLAG2 = 1 << 30, 1 << 5
FOPEN_PASSTHROUGH = 1 << 7
BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
INIT_OUT, OPEN_OUT, BACKING_MAP = Struct("=IIIIHHIIHHIII20x"), Struct("=QIi"), Struct("=iIQ")


class OneFile:
    """Serves a directory with one file, `big`, of which the kernel reads `backing`."""

    def __init__(self, fd: int, backing: Path) -> None:
        self._fd = fd
        self._backing = os.open(backing, os.O_RDONLY)
        self._id = -1
        self.reads = 0

    def serve(self) -> None:
        """Until unmounted."""
        buffer = bytearray(p.BUFFER_BYTES)
        os.set_blocking(self._fd, True)
        while True:
            try:
                length = os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                return
            header, request = p.decode(bytes(buffer[:length]))
            if header.opcode in p.UNANSWERED:
                continue
            body = self._answer(header, request)
            number = errno.ENOSYS if body is None else 0
            os.writev(self._fd, [answers.answer(header.unique, len(body or b""), number), body or b""])

    def _answer(self, header: p.Header, request: p.Request) -> bytes | None:
        if isinstance(request, p.Init):
            flags = (InitFlag.ASYNC_READ | InitFlag.MAX_PAGES | INIT_EXT) & request.flags
            return INIT_OUT.pack(
                7, 40, request.max_readahead, flags, 256, 192, p.IO_BYTES, 1, 256, 0, PASSTHROUGH_FLAG2, 1, 0
            )
        if header.opcode == Opcode.LOOKUP:
            return answers.entry(self._attributes(BIG))
        if header.opcode == Opcode.GETATTR:
            return answers.attributes(self._attributes(header.nodeid))
        if header.opcode == Opcode.OPEN:
            if self._id < 0:
                self._id = fcntl.ioctl(self._fd, BACKING_OPEN, bytearray(BACKING_MAP.pack(self._backing, 0, 0)), True)
            return OPEN_OUT.pack(1, FOPEN_PASSTHROUGH | p.NOFLUSH, self._id)
        if header.opcode == Opcode.RELEASE:
            return b""
        if header.opcode == Opcode.READ:
            self.reads += 1
        return None

    def _attributes(self, ino: int) -> Attributes:
        kind, mode = (Kind.FILE, 0o100644) if ino == BIG else (Kind.DIRECTORY, 0o040755)
        return Attributes(ino, kind, SIZE if ino == BIG else 4096, 0, mode, 0, 0, 3600.0)


def read(path: Path) -> float:
    """MB/s of one sequential reader."""
    buffer, start = bytearray(MIB), time.perf_counter()
    with path.open("rb", 0) as file:
        while file.readinto(buffer):
            pass
    return SIZE / 1e6 / (time.perf_counter() - start)


def open_often(path: Path) -> float:
    """Files opened, read 100 KB of and closed, a second."""
    start = time.perf_counter()
    for number in range(OPENS):
        fd = os.open(path, os.O_RDONLY)
        os.pread(fd, 100_000, number * 100_000)
        os.close(fd)
    return OPENS / (time.perf_counter() - start)


def drop_page_cache() -> None:
    """Of everything that is clean."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def main() -> None:
    """Measure three times."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-", dir="/var/tmp") as name:
        backing, mountpoint = Path(name) / "backing", Path(name) / "mnt"
        mountpoint.mkdir()
        with backing.open("wb") as file:
            for _ in range(SIZE // MIB):
                file.write(os.urandom(MIB))
        device = mount(mountpoint, source="passthrough", read_only=True, allow_other=False)
        served = OneFile(device.fd, backing)
        threading.Thread(target=served.serve, daemon=True).start()
        try:
            for _ in range(3):
                for label, path in (("local disk", backing), ("passthrough", mountpoint / "big")):
                    drop_page_cache()
                    cold, warm = read(path), read(path)
                    print(f"{label:12} {cold:6.0f} MB/s from disk, {warm:6.0f} from the page cache, "
                          f"{open_often(path):6.0f} opens/s")  # fmt: skip
            print(f"{served.reads} reads reached the daemon")
        finally:
            device.close(gone=False, busy=False)


if __name__ == "__main__":
    main()
