"""A training job without its model: a data loader that really reads, and an accelerator that sleeps.

Promises that every file is read whole once an epoch, in an order that the seed decides, and that no thread is left when
`train` returns or raises. Knows nothing of S3 and FUSE: any directory will do.

The loader behaves as torch.utils.data.DataLoader does: a worker makes a whole batch, file after file, two batches a
worker are on their way, and batches are handed over in order. The accelerator sleeps instead of computing, as in MLPerf
Storage, so that the figures tell of storage alone.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from lazyfs.core.errors import LazyfsError

PREFETCH = 2
"""Batches on their way per worker. Source: `prefetch_factor` in https://docs.pytorch.org/docs/stable/data.html"""
CHUNK = 1024**2
"""The most that one read(2) asks for; what was read is hashed and let go, so that files may be larger than memory."""

Check = Callable[[str, int, bytes], None]
"""Told the name, size and digest of each file that was read; raises if that is not what the file should hold."""


class BenchError(LazyfsError):
    """The benchmark cannot go on, or read something wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is trained with: files a batch, threads of the loader, and how long a batch keeps the accelerator busy."""

    batch: int = 32
    workers: int = 8
    compute_s: float = 0.1
    epochs: int = 1
    seed: int = 0

    def batches(self, names: Sequence[str]) -> Iterator[list[str]]:
        """The batches of all epochs, each epoch in an order of its own; the last of an epoch may be smaller."""
        for epoch in range(self.epochs):
            order = list(names)
            random.Random(self.seed + epoch).shuffle(order)  # noqa: S311 - the order of an epoch is no secret
            yield from (order[at : at + self.batch] for at in range(0, len(order), self.batch))

    def count(self, files: int) -> int:
        """How many batches there will be."""
        return self.epochs * -(-files // self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """How the time from the beginning to the end of the last batch was spent: the first three make up `total_s`.

    first_batch_s   until the first batch could be computed
    stall_s         all that came later and was not computing: the accelerator waited
    compute_s       batches times the job's compute_s, so that a sleep that lasts too long does not count as work
    """

    first_batch_s: float
    stall_s: float
    compute_s: float
    total_s: float
    bytes_read: int

    @property
    def utilisation(self) -> float:
        """The share of the time in which the accelerator computed, 0 to 1."""
        return self.compute_s / self.total_s


def train(
    directory: Path,
    names: Sequence[str],
    job: Job,
    *,
    check: Check,
    began_s: float,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Timeline:
    """Train on the files `names` of `directory`. `began_s`, of time.monotonic, is when the whole began.

    `on_batch` hears after each batch how many there were. Raises BenchError for a file that cannot be read, and what
    `check` raises.
    """
    loader = _Loader(directory, check)
    pool = ThreadPoolExecutor(job.workers, thread_name_prefix="loader")
    try:
        return _consume(loader, pool, job.batches(names), job, began_s, on_batch)
    finally:
        loader.stopping.set()
        pool.shutdown(cancel_futures=True)


def _consume(
    loader: _Loader,
    pool: ThreadPoolExecutor,
    batches: Iterator[list[str]],
    job: Job,
    began_s: float,
    on_batch: Callable[[int], None],
) -> Timeline:
    """The accelerator's side: take a batch, have the next one begun, compute."""
    ahead: deque[Future[int]] = deque(
        pool.submit(loader.load, batch) for batch in islice(batches, PREFETCH * job.workers)
    )
    computed, size, first_s = 0, 0, 0.0
    while ahead:
        size += ahead.popleft().result()
        if not computed:
            first_s = time.monotonic() - began_s
        ahead.extend(pool.submit(loader.load, batch) for batch in islice(batches, 1))
        time.sleep(job.compute_s)
        computed += 1
        on_batch(computed)
    total_s, compute_s = time.monotonic() - began_s, computed * job.compute_s
    return Timeline(
        first_batch_s=first_s,
        stall_s=max(0.0, total_s - first_s - compute_s),
        compute_s=compute_s,
        total_s=total_s,
        bytes_read=size,
    )


class _Loader:
    """The workers' side. `stopping` is set by whoever ends the job, and only looked at by them."""

    def __init__(self, directory: Path, check: Check) -> None:
        self._directory = directory
        self._check = check
        self.stopping = threading.Event()

    def load(self, batch: Sequence[str]) -> int:
        """Read the files of a batch one after the other; how many bytes that were."""
        return sum(self._read(name) for name in batch)

    def _read(self, name: str) -> int:
        # Hashed where it was read: the cost (0.1 ms for an image) takes the place of decoding, is the same whatever
        # the directory, is spent without the GIL, and never in the accelerator's thread.
        digest, size, buffer = blake2b(digest_size=16), 0, bytearray(CHUNK)
        path = self._directory / name
        try:
            with path.open("rb", buffering=0) as file:
                while (count := file.readinto(buffer)) and not self.stopping.is_set():
                    digest.update(memoryview(buffer)[:count])
                    size += count
        except OSError as error:
            raise BenchError(f"cannot read {path}: {error.strerror}") from error
        if not self.stopping.is_set():
            self._check(name, size, digest.digest())
        return size
