"""The composition root: builds every part of a mount, runs them in one nursery, and takes them down in order.

The only module that sees the Config and all rooms. Order of shutdown: the kernel session ends, what programs left
unfinished is withdrawn, background work stops, pending cache writes are kept, files and connections close.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from typing import Any

import trio

from lazyfs.cache.spool import Spool
from lazyfs.cache.tiered import TieredCache
from lazyfs.config import Config
from lazyfs.config.endpoint import s3_settings
from lazyfs.control import registry
from lazyfs.control.http import served_metrics
from lazyfs.control.server import serve
from lazyfs.core.backoff import Backoff
from lazyfs.core.concurrency import HIGHEST, Concurrency
from lazyfs.core.errors import StartupError, StoreError, first_error
from lazyfs.core.parts import PartSizes
from lazyfs.core.readahead import ReadAheadPolicy
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, Capabilities, Condition
from lazyfs.fuse.session import Session
from lazyfs.index.database import Index
from lazyfs.index.exchange import OpenStore
from lazyfs.index.home import opened_index
from lazyfs.lifecycle.verbs import Lifecycle
from lazyfs.mounted import Mount
from lazyfs.store.base import PutOptions, Store
from lazyfs.store.probe import probe
from lazyfs.store.remote import S3Store, open_s3_store
from lazyfs.store.retrying import Retrying
from lazyfs.store.settings import S3Settings
from lazyfs.tiers import opened_cache
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.copying import Copier
from lazyfs.vfs.fetcher import Fetcher, nothing_waits
from lazyfs.vfs.filesystem import FileSystem
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.policy import Policy
from lazyfs.vfs.preloader import Preloader
from lazyfs.vfs.procfs import still_open
from lazyfs.vfs.reader import Reader
from lazyfs.vfs.renaming import Journal
from lazyfs.vfs.slots import Slots
from lazyfs.vfs.uploads import Uploads
from lazyfs.vfs.watching import Watcher
from lazyfs.vfs.writer import Writer
from lazyfs.writeback import drain, new_uploader, opened_backlog

log = logging.getLogger(__name__)

BLOCK_SIZE = 256 * 1024
"""The cache's unit: a random read fetches no more than this per block that it touches."""
EXTENT_SIZE = 4 * 1024**2
"""The most that one GET asks for: 25 ms to the first byte, then 45 ms at the 90 MB/s that S3 gives one connection. With
8 MiB a reader waited longer for the extent that it needed than it gained by fewer requests."""
WHOLE_OBJECT_BYTES = 1024**2
MAX_WINDOW = 64 * 1024**2
"""How far ahead of a sequential reader: sixteen extents keep sixteen connections busy, which fill 900 MB/s."""
CONNECTIONS = 32
"""Of boto3 and of LIST each. Range GETs have their own, as many as core.concurrency finds to help."""
IMPORT_WORKERS = 16
"""LIST requests at a time; half of the connections stay for what programs wait for."""
STARTUP_DEADLINE_S = 10.0
REIMPORT_S = 30.0
PROGRESS_S = 0.5
SHUTDOWN_S = 60.0


Progress = Callable[[dict[str, Any]], None]


def run(config: Config, *, on_ready: Callable[[], None], on_progress: Progress) -> None:
    """Mount, call `on_ready` once the mount answers, and serve until it is unmounted or the process is told to end.

    While the mount waits for its import, `on_progress` is told every PROGRESS_S how far that is. Raises LazyfsError if
    the mount cannot work, with nothing left mounted.
    """
    try:
        trio.run(_main, config, on_ready, on_progress, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _main(config: Config, on_ready: Callable[[], None], on_progress: Progress) -> None:
    stats = Stats()
    bare = open_s3_store(_settings(config), stats=stats)
    try:
        await _greet(bare, config, stats)
        directory, snapshot, stores = config.cache.directory, config.cache.snapshot, _stores(config, bare, stats)
        async with opened_index(directory, _identity(config), snapshot=snapshot, stores=stores) as index:
            await _settle_capabilities(bare, _patient(bare, stats), config, index)
            await index.remove_local()
            spool = None if directory is None else Spool(directory / "spool", limit_bytes=config.write.spool_size)
            with opened_backlog(config, _identity(config), spool=spool, index=index) as backlog:
                running = _running(config, stats=stats, bare=bare, index=index, spool=spool, backlog=backlog)
                async with (
                    running as (mount, background),
                    served_metrics(
                        config.log.metrics_address, config.log.metrics_port, mount.status
                    ) as mount.metrics_url,
                ):
                    await _serve(mount, on_ready, on_progress, background)
    finally:
        with trio.CancelScope(shield=True):
            await bare.aclose()


@contextlib.asynccontextmanager
async def _running(
    config: Config,
    *,
    stats: Stats,
    bare: S3Store,
    index: Index,
    spool: Spool | None,
    backlog: Backlog | None,
) -> AsyncIterator[tuple[Mount, trio.Nursery]]:
    """A mount built on what is open, with all that runs in its background but the kernel session, until the block
    ends."""
    opened = opened_cache(config.bucket, config.cache, block_size=BLOCK_SIZE, stats=stats)
    async with opened as cache, trio.open_nursery() as background:
        slots = Slots(Concurrency())
        backoff = Backoff(deadline_s=config.bucket.retry_for_s)
        store = Retrying(bare, backoff=backoff, stats=stats, on_throttled=slots.observe_throttled)
        journal, uploads = Journal(index), Uploads(store=store, index=index)
        copier = Copier(store=store, uploads=uploads, renames=_settings(config).is_directory_bucket)
        if not config.mount.read_only:
            await journal.finish(store, copier)
            await uploads.abort_left()
        mount = _build(
            config,
            stats=stats,
            bare=bare,
            store=store,
            slots=slots,
            index=index,
            journal=journal,
            uploads=uploads,
            copier=copier,
            cache=cache,
            spool=spool,
            backlog=backlog,
            background=background,
        )
        if mount.write_back is not None and mount.uploader is not None:
            await mount.write_back.recover()
            background.start_soon(mount.uploader.run)
        background.start_soon(mount.recover_index)
        yield mount, background
        background.cancel_scope.cancel()


async def _greet(bare: S3Store, config: Config, stats: Stats) -> None:
    """Fail now and clearly if the bucket cannot be listed."""
    bucket = config.bucket
    try:
        await _patient(bare, stats).list_page(bucket.prefix, limit=1)
    except StoreError as error:
        server = f" on {bucket.endpoint_url}" if bucket.endpoint_url else ""
        reason = str(error).removeprefix(f"LIST {bucket.prefix!r}: ")
        raise StartupError(f"cannot list bucket {bucket.name}{server}: {reason}") from error


def _patient(bare: S3Store, stats: Stats) -> Retrying:
    """For as long as somebody waits for the mount."""
    return Retrying(bare, backoff=Backoff(deadline_s=STARTUP_DEADLINE_S), stats=stats)


async def _import_first(namespace: Namespace, on_progress: Progress) -> None:
    """Bring the whole listing in, and tell how far that is."""

    async def tell() -> None:
        while True:
            await trio.sleep(PROGRESS_S)
            on_progress(namespace.importer.progress.told(time.time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        await namespace.refresh()
        nursery.cancel_scope.cancel()


async def _watch(mount: Mount, background: trio.Nursery) -> None:
    """With `--events`, follow changes from now on; before the first import, so that nothing falls between."""
    config = mount.config
    if config.cache.events is None:
        return
    source = mount.store.events(config.cache.events, _settings(config), prefix=config.bucket.prefix)
    backoff = Backoff(deadline_s=STARTUP_DEADLINE_S)
    watcher = Watcher(source=source, namespace=mount.namespace, backoff=backoff, stats=mount.stats)
    try:
        await background.start(watcher.run)
    except StoreError as error:
        raise StartupError(f"--events {config.cache.events}: {error}") from error


async def _serve(mount: Mount, on_ready: Callable[[], None], on_progress: Progress, background: trio.Nursery) -> None:
    config, namespace = mount.config, mount.namespace
    await _watch(mount, background)
    if config.cache.import_mode == "wait":
        await _import_first(namespace, on_progress)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_on_signal, mount)
            await nursery.start(_run_session, mount, nursery.cancel_scope)
            registry.register(config.mount.mountpoint, bucket=config.bucket.name)
            socket = registry.socket_path(config.mount.mountpoint)
            verbs = mount.verbs() | mount.lifecycle.verbs()
            await nursery.start(lambda task_status: serve(socket, verbs, task_status=task_status))
            background.start_soon(_bring_in, mount)
            on_ready()
            log.info("%s is mounted at %s", config.bucket.name, config.mount.mountpoint)
    finally:
        registry.unregister(config.mount.mountpoint)
    log.info("%s is unmounted", config.mount.mountpoint)


async def _run_session(
    mount: Mount, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the kernel; when that ends, for whatever reason, withdraw what was not finished."""
    try:
        await mount.session.run(task_status=task_status)
    finally:
        with trio.move_on_after(SHUTDOWN_S) as deadline:
            deadline.shield = True
            await mount.filesystem.abandon()
    if mount.write_back is not None:
        await drain(mount.write_back.backlog, mount.leave)
    scope.cancel()


async def _stop_on_signal(mount: Mount, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    # SIGHUP: the terminal of a mount in the foreground is closed. By default it would end us and leave a dead mount.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for received in signals:
            log.info("%s: unmounting", signal.Signals(received).name)
            if mount.session.stop():
                continue
            mount.leave.set()  # it is unmounted already, and still uploads: the second signal does not wait for that


async def _bring_in(mount: Mount) -> None:
    """The listing, if nobody has waited for it, and with `--preload` all data."""
    if mount.config.cache.import_mode != "wait":
        await _import(mount.namespace)
    if mount.preloader is not None:
        await mount.preloader.run()


async def _import(namespace: Namespace) -> None:
    """Bring the whole listing in; while the endpoint is in trouble, try again. On-demand listing goes on meanwhile."""
    while True:
        try:
            return await namespace.refresh()
        except StoreError as error:
            log.warning("listing the bucket: %s; trying again in %.0f s", error, REIMPORT_S)
        await trio.sleep(REIMPORT_S)


def _build(
    config: Config,
    *,
    stats: Stats,
    bare: S3Store,
    store: Store,
    slots: Slots,
    index: Index,
    journal: Journal,
    uploads: Uploads,
    copier: Copier,
    cache: TieredCache,
    spool: Spool | None,
    backlog: Backlog | None,
    background: trio.Nursery,
) -> Mount:
    """Put the parts together; nothing runs yet."""
    namespace = Namespace(
        index=index,
        store=store,
        root=config.bucket.prefix,
        ttl_s=config.cache.metadata_ttl_s,
        import_workers=IMPORT_WORKERS,
        sorted_keys=not _settings(config).is_directory_bucket,
        clock_ns=time.time_ns,
        nursery=background,
        stats=stats,
    )
    fetcher = Fetcher(
        store=store,
        cache=cache,
        nursery=background,
        slots=slots,
        block_size=BLOCK_SIZE,
        extent_size=min(EXTENT_SIZE, config.cache.memory // 8),
        on_stale=namespace.expire_key,
        stats=stats,
        waiting=nothing_waits if backlog is None else backlog.read,
    )
    part_sizes = PartSizes(config.write.part_size)

    def new_writer(key: str, content: Buffer, condition: Condition) -> Writer:
        return Writer(
            store=uploads,
            memory=cache.memory,
            nursery=background,
            key=key,
            content=content,
            condition=condition,
            options=PutOptions(storage_class=config.write.storage_class),
            part_sizes=part_sizes,
            spool=spool,
            streaming=backlog is None,
        )

    reader = Reader(fetcher=fetcher, whole_object_bytes=WHOLE_OBJECT_BYTES, stats=stats)
    filesystem = FileSystem(
        namespace=namespace,
        store=store,
        reader=reader,
        new_writer=new_writer,
        readahead=ReadAheadPolicy(max_window=min(MAX_WINDOW, config.cache.memory // 4), step=EXTENT_SIZE),
        part_sizes=part_sizes,
        policy=_policy(config, bare.capabilities),
        journal=journal,
        copier=copier,
        clock_ns=time.time_ns,
        still_open=still_open,
        backlog=backlog,
        fsync_to_bucket=config.write.fsync == "s3",
    )
    uploader = None
    if filesystem.write_back is not None:
        conditional, later = bare.capabilities.conditional_put, filesystem.write_back
        uploader = new_uploader(
            config, later, store=store, uploads=uploads, copier=copier, memory=cache.memory, conditional=conditional
        )
    session = Session(
        filesystem,
        mountpoint=config.mount.mountpoint,
        source=config.bucket.name,
        allow_other=config.mount.allow_other,
    )
    preloader = None
    if config.cache.preload and cache.disk is not None:
        preloader = Preloader(namespace=namespace, fetcher=fetcher, disk=cache.disk)
    return Mount(
        config=config,
        stats=stats,
        store=bare,
        index=index,
        namespace=namespace,
        cache=cache,
        filesystem=filesystem,
        session=session,
        slots=slots,
        spool=spool,
        preloader=preloader,
        write_back=filesystem.write_back,
        uploader=uploader,
        lifecycle=Lifecycle(filesystem, index=index, fetcher=fetcher, cache=cache, backlog=backlog, nursery=background),
        stores=_stores(config, bare, stats),
        started_s=time.time(),
    )


def _settings(config: Config) -> S3Settings:
    settings = s3_settings(config.bucket, max_connections=CONNECTIONS, bulk_connections=HIGHEST)
    write = config.write
    return replace(settings, sse=write.sse, sse_kms_key_id=write.sse_kms_key_id, checksum=write.checksum)


def _policy(config: Config, capabilities: Capabilities) -> Policy:
    return Policy(
        read_only=config.mount.read_only,
        no_overwrite=config.write.no_overwrite,
        no_delete=config.write.no_delete,
        conditional_put=capabilities.conditional_put,
        uid=config.mount.uid,
        gid=config.mount.gid,
        file_mode=config.mount.file_mode,
        dir_mode=config.mount.dir_mode,
        xattrs=config.mount.xattrs,
        asks_modes=config.mount.posix_metadata == "lazy",
    )


# -- what is kept on disk -----------------------------------------------------------------------------------------


def _identity(config: Config) -> dict[str, str]:
    return {
        "endpoint": config.bucket.endpoint_url or "",
        "bucket": config.bucket.name,
        "prefix": config.bucket.prefix,
    }


def _stores(config: Config, bare: S3Store, stats: Stats) -> OpenStore:
    """Opens any bucket of the mount's endpoint as the mount's user."""

    @contextlib.asynccontextmanager
    async def opened(bucket: str) -> AsyncIterator[Store]:
        is_ours = bucket == config.bucket.name
        found = bare if is_ours else open_s3_store(replace(_settings(config), bucket=bucket), stats=stats)
        try:
            yield Retrying(found, backoff=Backoff(deadline_s=config.bucket.retry_for_s), stats=stats)
        finally:
            if not is_ours:
                with trio.CancelScope(shield=True):
                    await found.aclose()

    return opened


async def _settle_capabilities(bare: S3Store, patient: Retrying, config: Config, index: Index) -> None:
    """Find out what the endpoint honours, once per bucket: the answer is kept in the index."""
    kind = "reads" if config.mount.read_only else "reads and writes"
    kept = index.meta(f"capabilities of {kind}")
    if kept is not None:
        with contextlib.suppress(ValueError, TypeError):  # damaged, or of another lazyfs: asked again
            bare.capabilities = Capabilities(**json.loads(kept))
            return
    page = await patient.list_page(config.bucket.prefix, limit=10)
    sample = next((info for info in page.objects if info.size > 0), None)
    writable = not config.mount.read_only
    try:
        bare.capabilities = await probe(patient, writable=writable, sample=sample)
    except StoreError as error:
        # A key that we may not read or write, or that is gone by now, is no reason not to mount.
        log.info("what the endpoint honours is not known: %s", error)
        bare.capabilities = Capabilities(conditional_put=False)
        return
    if sample is not None or writable:
        await index.set_meta(f"capabilities of {kind}", json.dumps(asdict(bare.capabilities)))
