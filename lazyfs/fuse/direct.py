"""A mount, from mount(2) to unmount, that speaks the kernel's protocol itself: no libfuse, no task for what is at hand.

Promises what `session` does, and that no request ends the loop, whatever it holds: what is malformed or unknown is
answered. It drains the device before it waits, answers at once what memory and index know, and begins a task only for
what must wait. Hard points: fairness to the rest of the daemon (`BATCH`); requests that nobody waits for any more
(`interrupts`); and what the kernel is told unasked, which may wait for locks that our own answers free
(`notifications`). See docs/concurrency.md.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from lazyfs.cache.warm import WarmMemory
from lazyfs.core.errors import StartupError
from lazyfs.core.types import Buffer
from lazyfs.fuse import answers
from lazyfs.fuse import protocol as p
from lazyfs.fuse.door import errno_of
from lazyfs.fuse.interrupts import AGAIN_S, asked_to_end
from lazyfs.fuse.mounting import Device, mount
from lazyfs.fuse.notifications import Notifier
from lazyfs.fuse.protocol import Header, InitFlag, Opcode
from lazyfs.fuse.session import ANSWER_TIMEOUT_S, DRAIN_S
from lazyfs.fuse.tuning import CONGESTION_THRESHOLD, MAX_BACKGROUND, tune_kernel
from lazyfs.fuse.verbs import RefusedError, Verbs
from lazyfs.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH = 32
"""Requests answered without giving the rest of the daemon a turn: at 1 MiB each some milliseconds."""
COPIED_BYTES = 64 * 1024
"""Requests up to this make room for the next at once; of longer ones, which are what is to be written, the memory goes
along, and the next is read into other."""
MAX_WAITING = 4096
"""Requests that wait at a time: each is a blocked thread of a program, or one of the kernel's own MAX_BACKGROUND. When
there are more, the device is not read until one has ended."""
WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.ASYNC_DIO
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
)
INTERRUPTIBLE = frozenset(
    {
        Opcode.LOOKUP,
        Opcode.GETATTR,
        Opcode.READLINK,
        Opcode.READ,
        Opcode.OPENDIR,
        Opcode.READDIR,
        Opcode.READDIRPLUS,
        Opcode.GETXATTR,
        Opcode.LISTXATTR,
    }
)
"""What changes nothing and takes nothing from others when it is given up. A change goes on to its end."""
_OVER = (errno.ENODEV, errno.ECONNABORTED)
_WITHDRAWN = (errno.ENOENT, errno.EINTR, *_OVER)


class DirectSession:
    """One mount point."""

    name = "direct"

    def __init__(self, filesystem: FileSystem, *, mountpoint: Path, source: str, allow_other: bool) -> None:
        self._filesystem = filesystem
        self._verbs = Verbs(filesystem)
        self._mountpoint = mountpoint
        self._source = source
        self._allow_other = allow_other
        self.untuned: list[str] = []
        """Kernel settings that were left as they are."""
        self._notifier = Notifier()
        self._memory = WarmMemory(limit_bytes=4 * p.BUFFER_BYTES)
        self._device: Device | None = None
        self._fd = -1
        self._waiting: dict[int, tuple[Header, trio.CancelScope]] = {}
        self._unbegun = 0
        """Requests whose tasks have not had their first turn."""
        self._room = trio.Event()
        self._reading = trio.CancelScope()
        self._agreed = trio.Event()
        self._refused: str | None = None
        """Why this kernel cannot be served."""
        self._told_to_stop = trio.Event()
        self._is_over = False
        self._is_gone = False
        """The kernel has no connection with us any more."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount, serve until unmounted or `stop`, and unmount. StartupError if it cannot be mounted."""
        read_only = self._filesystem.policy.read_only
        device = await trio.to_thread.run_sync(
            lambda: mount(self._mountpoint, source=self._source, read_only=read_only, allow_other=self._allow_other)
        )
        self._device, self._fd = device, device.fd
        self._filesystem.namespace.kernel = self._notifier
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._notifier.run, device.fd)
                nursery.start_soon(self._serve, nursery.cancel_scope)
                await self._wait_until_it_answers()
                task_status.started()
                await self._told_to_stop.wait()
                await trio.sleep(DRAIN_S)
                log.warning("requests did not end within %.0f s of the signal; giving them up", DRAIN_S)
                nursery.cancel_scope.cancel()
        finally:
            self._is_over = True
            device.close(gone=self._is_gone, busy=self._notifier.is_telling)

    def stop(self) -> bool:
        """End `run` in good order: requests in progress may end, for DRAIN_S at most. False if it has ended already."""
        if self._is_over:
            return False
        self._told_to_stop.set()
        self._reading.cancel()
        return True

    async def _wait_until_it_answers(self) -> None:
        with trio.move_on_after(ANSWER_TIMEOUT_S), contextlib.suppress(OSError):
            if self._device is not None and self._device.mountpoint is None:  # where it is mounted, nobody has told us
                await self._agreed.wait()
                return
            facts = await self._look(self._mountpoint.stat)
            self.untuned = await self._look(lambda: tune_kernel(facts.st_dev))
            return
        raise StartupError(self._refused or f"the mount at {self._mountpoint} does not answer")

    async def _look(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    # -- the loop ---------------------------------------------------------------------------------------------------

    async def _serve(self, scope: trio.CancelScope) -> None:
        """Serve until the mount is gone or `stop`; then until what waits has been answered."""
        async with trio.open_nursery() as tasks:
            await self._read_requests(tasks)
        scope.cancel()

    async def _read_requests(self, tasks: trio.Nursery) -> None:
        buffer = self._memory.lend(p.BUFFER_BYTES)
        with self._reading:
            while True:
                for _ in range(BATCH):
                    while len(self._waiting) >= MAX_WAITING:
                        self._room = trio.Event()
                        await self._room.wait()
                    try:
                        length = os.readv(self._fd, [buffer])
                    except BlockingIOError:
                        await trio.lowlevel.wait_readable(self._fd)
                        continue
                    except OSError as error:
                        if error.errno in _OVER:  # of an aborted connection the mount point is still there
                            self._is_gone = error.errno == errno.ENODEV
                            return
                        if error.errno in _WITHDRAWN:  # whoever asked has gone before we read it
                            continue
                        raise
                    if length > COPIED_BYTES:
                        message: Buffer = buffer[:length]
                        buffer = self._memory.lend(p.BUFFER_BYTES)
                    else:
                        message = bytes(buffer[:length])
                    self._take(message, tasks)
                    del message
                    while self._unbegun:  # requests begin in the order in which they came: RELEASE before SETATTR
                        await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()

    def _take(self, message: Buffer, tasks: trio.Nursery) -> None:
        """Answer one request, or begin a task that will. Never raises."""
        try:
            header, request = p.decode(message)
        except p.UnknownRequestError:
            self._refuse(p.decode_header(message).unique, errno.ENOSYS)
            return
        except p.MalformedError as error:
            log.error("the kernel sent what is no request: %s", error)
            with contextlib.suppress(p.MalformedError):
                header = p.decode_header(message)
                if header.opcode not in p.UNANSWERED:
                    self._refuse(header.unique, errno.EIO)
            return
        opcode = header.opcode
        if opcode in p.UNANSWERED or opcode in (Opcode.INIT, Opcode.DESTROY):
            self._take_from_kernel(header, request, tasks)
            return
        try:
            answer = self._verbs.now(header, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an errno
            self._refuse(header.unique, self._errno(error, opcode))
            return
        if answer is not None:
            self._answer(header.unique, answer)
            return
        scope = trio.CancelScope()
        self._waiting[header.unique] = header, scope
        self._unbegun += 1
        tasks.start_soon(self._serve_one, header, request, scope)

    async def _serve_one(self, header: Header, request: p.Request, scope: trio.CancelScope) -> None:
        """Answer a request that has to wait. Never raises, whatever the verb does."""
        self._unbegun -= 1
        try:
            with scope:
                self._answer(header.unique, await self._verbs.later(header, request))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an errno
            self._refuse(header.unique, self._errno(error, header.opcode))
        except BaseException:  # the session gives up: the caller is not left to wait for the process to end
            self._refuse(header.unique, errno.ENOTCONN)
            raise
        finally:
            del self._waiting[header.unique]
            self._room.set()
        if scope.cancelled_caught:
            self._refuse(header.unique, errno.EINTR)

    def _errno(self, error: Exception, opcode: int) -> int:
        return error.errno if isinstance(error, RefusedError) else errno_of(error, Opcode(opcode).name.lower())

    # -- what the kernel says for itself ----------------------------------------------------------------------------

    def _take_from_kernel(self, header: Header, request: p.Request, tasks: trio.Nursery) -> None:
        if isinstance(request, p.Forget):
            self._verbs.forget(request)
        elif isinstance(request, p.Init):
            self._agree(header.unique, request)
        elif isinstance(request, p.Interrupt):
            self._interrupt(header.unique, request.unique, tasks)
        elif header.opcode == Opcode.DESTROY:
            self._answer(header.unique, b"")

    def _agree(self, unique: int, offered: p.Init) -> None:
        if (offered.major, offered.minor) < (p.MAJOR, p.MINOR):
            self._refused = (
                f"this kernel speaks FUSE {offered.major}.{offered.minor}, and lazyfs 7.31 (Linux 5.4) or later"
            )
            self._refuse(unique, errno.EPROTO)
            return
        self._verbs.may_refuse_open = bool(offered.flags & InitFlag.NO_OPEN_SUPPORT)
        answer = answers.init(
            max_readahead=offered.max_readahead,
            flags=WANTED & offered.flags,
            max_background=MAX_BACKGROUND,
            congestion_threshold=CONGESTION_THRESHOLD,
        )
        self._answer(unique, answer)
        self._agreed.set()

    def _interrupt(self, unique: int, of: int, tasks: trio.Nursery) -> None:
        """Give up request `of` if its process was told to end; if it was another signal, look again a little later: the
        kernel speaks only once, and whoever is killed after that must not wait for a server that is silent."""
        waiting = self._waiting.get(of)
        if waiting is None or waiting[0].opcode not in INTERRUPTIBLE:
            return
        header, scope = waiting
        if asked_to_end(header.pid):
            scope.cancel()
        else:
            tasks.start_soon(self._ask_again, unique)

    async def _ask_again(self, unique: int) -> None:
        await trio.sleep(AGAIN_S)
        self._refuse(unique, errno.EAGAIN)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, unique: int, body: Buffer) -> None:
        self._write([answers.answer(unique, len(body)), body])

    def _refuse(self, unique: int, number: int) -> None:
        self._write([answers.answer(unique, 0, number)])

    def _write(self, pieces: list[Buffer]) -> None:
        try:
            os.writev(self._fd, pieces)
        except OSError as error:
            if error.errno not in _WITHDRAWN:  # nobody waits for it any more
                log.error("the kernel did not take an answer of %d bytes: %s", sum(map(len, pieces)), error)
