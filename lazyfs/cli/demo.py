"""`lazyfs demo`: the whole story in a minute, on a bucket of its own making.

Every byte that is read is compared with what was put in, and the checkpoint is read back by a client that is not
lazyfs. Anything wrong is an exit code that is not zero.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lazyfs.bench.mounting import counters, mounted
from lazyfs.cli.gateway import REGION, Gateway, running_gateway
from lazyfs.core.errors import LazyfsError
from lazyfs.core.units import format_duration, format_size, parse_size

BUCKET = "demo"
READERS = 8
CHUNK = 1024**2


class DemoError(LazyfsError):
    """A step of the demonstration went wrong."""


@click.command()
@click.option("--images", default=400, show_default=True, help="How many image-sized files (about 110 KB).")
@click.option("--shard", default="256MiB", show_default=True, metavar="SIZE", help="The size of one large object.")
@click.option("--checkpoint", default="64MiB", show_default=True, metavar="SIZE", help="The size of the checkpoint.")
@click.option("--batch", default=32, show_default=True, help="How many images make the first batch.")
def demo(images: int, shard: str, checkpoint: str, batch: int) -> None:
    """Show what lazyfs does, on an S3 server that it starts and stops by itself.

    Fills a bucket, mounts it, reads a first batch, everything, everything again, and again after a remount; writes a
    checkpoint and has another client look for it; unmounts. Says how long each step took and where the bytes came from.
    """
    sizes = {"shard": parse_size(shard), "checkpoint": parse_size(checkpoint)}
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    with tempfile.TemporaryDirectory(prefix="lazyfs-demo-") as scratch, contextlib.ExitStack() as stack:
        story = Story(Path(scratch), console)
        console.print("starting an S3 server on loopback (juicefs gateway) …")
        gateway = stack.enter_context(running_gateway(story.make("server")))
        progress = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        story.tell(gateway, progress, images=images, shard_size=sizes["shard"], saved=sizes["checkpoint"], batch=batch)
    console.print(story.table)
    console.print(f"first batch after {format_duration(story.first_batch_s)}; every byte was compared; nothing is left")


@dataclass(slots=True)
class Story:
    """The steps, and the table of what they took."""

    scratch: Path
    console: Console
    digests: dict[str, str] = field(default_factory=dict)
    first_batch_s: float = 0.0
    table: Table = field(default_factory=lambda: Table(box=box.SIMPLE))

    def make(self, name: str) -> Path:
        """A fresh directory below the scratch directory."""
        path = self.scratch / name
        path.mkdir(mode=0o700)
        return path

    def tell(
        self, gateway: Gateway, progress: Progress, *, images: int, shard_size: int, saved: int, batch: int
    ) -> None:
        """Everything, in order."""
        for column in ("step", "took", "amount", "rate", "requests", "S3", "SSD", "RAM"):
            self.table.add_column(column, justify="left" if column == "step" else "right", no_wrap=True)
        client = witness(gateway)
        self._fill(client, progress, images, shard_size)
        mountpoint = self.make("mnt")
        names = sorted(self.digests)
        pictures = [name for name in names if name.startswith("train/")]
        random.Random(0).shuffle(pictures)  # noqa: S311 - the order of an epoch is no secret
        mounting_s = time.monotonic()
        with self._mounted(gateway, mountpoint):
            with self._step("mount, first batch", lambda: self._size(mountpoint, pictures[:batch])):
                self._read(mountpoint, pictures[:batch], progress, "first batch")
            self.first_batch_s = time.monotonic() - mounting_s
            for step in ("read everything", "read everything again"):
                with self._step(step, lambda: self._size(mountpoint, names)):
                    self._read(mountpoint, names, progress, step)
            with self._step("write a checkpoint", lambda: saved):
                digest = _write(mountpoint / "checkpoint.pt", saved)
            _check_arrived(client, "checkpoint.pt", digest)
        remounted = self._step("read everything, remounted", lambda: self._size(mountpoint, names))
        with self._mounted(gateway, mountpoint), remounted:
            self._read(mountpoint, names, progress, "after a remount")

    def _fill(self, client: Any, progress: Progress, images: int, shard_size: int) -> None:
        """Make the bucket and put objects of known content into it, by a client that is not lazyfs."""
        self.console.print(f"filling a bucket: {images} images and a shard of {format_size(shard_size)} …")
        client.make_bucket(BUCKET)
        source = random.Random(1)  # noqa: S311 - content that can be made again
        sizes = {f"train/class{n % 10}/{n:05}.jpg": source.randrange(60_000, 160_000) for n in range(images)}
        sizes["shards/shard-000.tar"] = shard_size
        for name in progress.track(sizes, description="filling"):
            body = b"".join(source.randbytes(min(CHUNK, sizes[name] - at)) for at in range(0, sizes[name], CHUNK))
            client.put_object(BUCKET, name, io.BytesIO(body), len(body))
            self.digests[name] = _digest(body)

    def _mounted(self, gateway: Gateway, mountpoint: Path) -> contextlib.AbstractContextManager[None]:
        options = ("--endpoint-url", gateway.endpoint_url, "--cache-dir", str(self.scratch / "cache"))
        log = ("--log-file", str(self.scratch / "lazyfs.log"))
        return mounted(BUCKET, mountpoint, *options, *log, environment=gateway.environment())

    @contextlib.contextmanager
    def _step(self, name: str, amount: Callable[[], int]) -> Iterator[None]:
        """Time the body and tell by the daemon's counters where its bytes came from."""
        self.console.print(f"{name} …")
        before, began = self._counters(), time.monotonic()
        yield
        took = time.monotonic() - began
        after = self._counters()
        grew = {key: after.get(key, 0) - before.get(key, 0) for key in after}
        requests = sum(count for key, count in grew.items() if key.startswith("s3.requests."))
        size = amount()
        sources = [grew.get("s3.bytes.read", 0), grew.get("cache.disk.hit_bytes", 0)]
        reading = not name.startswith("write")
        memory = max(0, size - sum(sources)) if reading else 0
        cells = [format_size(count) if count else "–" for count in (*sources, memory)]
        self.table.add_row(
            name, format_duration(took), format_size(size), f"{format_size(size / took)}/s", f"{requests}", *cells
        )

    def _counters(self) -> dict[str, int]:
        return counters(self.scratch / "mnt")

    def _size(self, mountpoint: Path, names: Sequence[str]) -> int:
        return sum((mountpoint / name).stat().st_size for name in names)

    def _read(self, mountpoint: Path, names: Sequence[str], progress: Progress, what: str) -> None:
        """Read whole files by several threads, as a data loader does, and compare every byte."""

        def read(name: str) -> None:
            if _digest_file(mountpoint / name) != self.digests[name]:
                raise DemoError(f"{name} is not what was put into the bucket")

        with ThreadPoolExecutor(READERS) as pool:
            for _ in progress.track(pool.map(read, names), total=len(names), description=what):
                pass


def witness(gateway: Gateway) -> Any:
    """A client of this server that is not lazyfs."""
    from minio import Minio  # noqa: PLC0415 - heavy; `lazyfs --help` does not need it

    return Minio(
        gateway.address, access_key=gateway.access_key, secret_key=gateway.secret_key, secure=False, region=REGION
    )


def _write(path: Path, size: int) -> str:
    """Write a file of `size` random bytes sequentially; its digest."""
    digest = blake2b()
    with path.open("wb") as file:
        for start in range(0, size, CHUNK):
            piece = os.urandom(min(CHUNK, size - start))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _check_arrived(client: Any, key: str, digest: str) -> None:
    answer = client.get_object(BUCKET, key)
    try:
        if _digest(answer.read()) != digest:
            raise DemoError(f"{key} in the bucket is not what was written")
    finally:
        answer.close()
        answer.release_conn()


def _digest(body: bytes) -> str:
    return blake2b(body).hexdigest()


def _digest_file(path: Path) -> str:
    digest = blake2b()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()
