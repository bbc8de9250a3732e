"""Where the index of a mount lives, and that only one mount at a time uses it there.

The kept one lies in the cache directory, by the name of its bucket and prefix, under a lock. Where there is no cache
directory, or another mount holds the lock, a mount has one for itself alone, which goes when it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

from lazyfs.index.database import Index, open_index
from lazyfs.index.exchange import OpenStore, install_snapshot
from lazyfs.index.snapshot import sweep

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def opened_index(
    directory: Path | None, identity: Mapping[str, str], *, snapshot: str | None, stores: OpenStore
) -> AsyncIterator[Index]:
    """The index of what `identity` names, kept in cache directory `directory` if there is one.

    It starts from `snapshot`, a path or s3://BUCKET/KEY, if that is newer than what is kept. Raises SnapshotError.
    """
    with _home(directory, identity) as path:
        sweep(path)
        if snapshot is not None and await install_snapshot(snapshot, path, identity, stores):
            log.info("starting from the snapshot %s", snapshot)
        with contextlib.closing(open_index(path, identity, log.warning)) as index:
            yield index


@contextlib.contextmanager
def _home(directory: Path | None, identity: Mapping[str, str]) -> Iterator[Path]:
    """The path of the index file, for us alone."""
    with contextlib.ExitStack() as stack:
        if directory is not None:
            name = home_name(identity)
            folder = directory / "index"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stack.enter_context(locked(folder / f"{name}.lock")):
                yield folder / f"{name}.db"
                return
            log.info("another mount uses this bucket's index; this one lists for itself")
        yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lazyfs-"))) / "index.db"


def home_name(identity: Mapping[str, str]) -> str:
    """The name of what a cache directory keeps of the bucket and prefix that `identity` tells."""
    return blake2b(json.dumps(identity).encode(), digest_size=10).hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the lock file for the body of the ``with``."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
