"""The part of the composition root that builds write-back.

Promises that what an earlier mount acknowledged is never passed over: a mount that could not upload it does not start.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

import trio

from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.spool import Spool
from lazyfs.config import Config
from lazyfs.core.backoff import Backoff
from lazyfs.core.errors import StartupError
from lazyfs.core.parts import PartSizes
from lazyfs.index.changes import ChangeJournal
from lazyfs.index.database import Index
from lazyfs.index.home import home_name, locked
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.copying import Copier
from lazyfs.vfs.uploader import Uploader
from lazyfs.vfs.uploads import Uploads
from lazyfs.vfs.writeback import WriteBack

log = logging.getLogger(__name__)

RETRY_CAP_S = 60.0
"""Between two attempts at an upload, once many have failed."""


@contextlib.contextmanager
def opened_backlog(
    config: Config, identity: Mapping[str, str], *, spool: Spool | None, index: Index
) -> Iterator[Backlog | None]:
    """The backlog of what `identity` names, with --write-back; else None. StartupError if another mount has it, or if
    this one would leave what is in it where it is."""
    if config.cache.directory is None:
        yield None
        return
    directory = config.cache.directory / "write-back" / home_name(identity)
    if not config.write.write_back and not (directory / "journal.db").exists():
        yield None
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        is_ours = stack.enter_context(locked(directory / "lock"))
        if not config.write.write_back or config.mount.read_only:
            if is_ours:
                _check_empty(config, stack.enter_context(contextlib.closing(ChangeJournal(directory / "journal.db"))))
            yield None
            return
        if not is_ours:
            raise StartupError(
                f"another mount of this bucket and prefix has --write-back with {config.cache.directory}; "
                "give this one another --cache-dir"
            )
        journal = stack.enter_context(contextlib.closing(ChangeJournal(directory / "journal.db")))
        assert spool is not None
        yield Backlog(
            journal=journal,
            spool=spool,
            directory=directory,
            index=index,
            root=config.bucket.prefix,
            first_part=config.write.part_size,
        )


def _check_empty(config: Config, journal: ChangeJournal) -> None:
    left = len(journal.load())
    if not left:
        return
    told = f"{left:,} changes of an earlier mount with --write-back are not in the bucket yet"
    if not config.mount.read_only:
        raise StartupError(f"{told}; mount with --write-back until they are")
    log.warning("%s, and this mount does not show them: mount with --write-back", told)


def new_uploader(
    config: Config,
    write_back: WriteBack,
    *,
    store: Store,
    uploads: Uploads,
    copier: Copier,
    memory: MemoryTier,
    conditional: bool,
) -> Uploader:
    """What brings the backlog to the bucket; the caller runs it."""
    return Uploader(
        backlog=write_back.backlog,
        store=store,
        uploads=uploads,
        copier=copier,
        memory=memory,
        part_sizes=PartSizes(config.write.part_size),
        options=PutOptions(storage_class=config.write.storage_class),
        conditional=conditional,
        backoff=Backoff(base_s=1.0, cap_s=RETRY_CAP_S),
        metadata=write_back.metadata,
        landed=write_back.landed,
        restate=write_back.restate,
        keep=write_back.keep,
        lost=write_back.lost,
    )


async def drain(backlog: Backlog, leave: trio.Event) -> None:
    """Return when the bucket has everything, or when `leave` says to leave the rest to the next mount."""
    if len(backlog):
        log.info("unmounted; %d changes are still to be uploaded", len(backlog))

    async def give_up() -> None:
        await leave.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        await backlog.drained()
        nursery.cancel_scope.cancel()
    if len(backlog):
        log.warning("%d changes are left for the next mount with --write-back", len(backlog))
