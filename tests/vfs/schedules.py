"""One schedule for a whole mount, which a seed decides: the same run is then the same run each time.

Hypothesis finds nothing and shrinks nothing where the order of requests changes from one run to the next; it says
"Flaky". Two things change it: trio picks the next task by lot, and threads end when they like. Here the lots come from
the seed, and work for threads is done in the loop, a few turns of it after it was asked for; how many is drawn too.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest
import trio
from trio._core import _run as scheduler

from lazyfs.cache import disk

T = TypeVar("T")

SLOWEST = 3
"""Turns of the loop that work for a thread waits before it is done, at the most, and again before that is noticed."""


def follow(seed: int, number: int) -> None:
    """Let what is random from now on, in whatever loop runs, be what `seed` says for call `number`."""
    scheduler._r.seed(f"{seed} {number}")


@contextlib.contextmanager
def without_threads() -> Iterator[None]:
    """For the body of the ``with``, what is given to threads is done by the loop that gives it."""
    with pytest.MonkeyPatch.context() as patch:
        # What can run in a turn is put in the order of its birth before it is shuffled.
        patch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(trio.to_thread, "run_sync", _run_sync)
        patch.setattr(disk, "ThreadPoolExecutor", _Executor)
        patch.setattr(disk, "THREADS", 1)  # who ends them waits until that many are there at once
        yield


async def _run_sync(work: Callable[..., T], *args: Any, limiter: trio.CapacityLimiter | None = None) -> T:
    """As trio.to_thread.run_sync: until it begins it can be cancelled, then not."""
    async with limiter or trio.to_thread.current_default_thread_limiter():
        with trio.CancelScope(shield=True):
            await _turns(at_least=1)
            try:
                return work(*args)
            finally:
                await _turns()
    raise AssertionError("nothing cancels what is shielded")


async def _turns(*, at_least: int = 0) -> None:
    for _ in range(scheduler._r.randint(at_least, SLOWEST)):
        await trio.lowlevel.checkpoint()


class _Executor:
    """As ThreadPoolExecutor with one thread."""

    def __init__(self, workers: int, **_: object) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()
        self._waiting.append((future, work, args))
        trio.lowlevel.spawn_system_task(self._work)
        return future

    def shutdown(self, *, wait: bool) -> None:
        while self._waiting:
            self._do_next()

    async def _work(self) -> None:
        await _turns(at_least=1)
        if self._waiting:  # or the executor was shut down before
            self._do_next()

    def _do_next(self) -> None:
        future, work, args = self._waiting.popleft()
        try:
            future.set_result(work(*args))
        except Exception as error:  # whoever asks for the result gets it
            future.set_exception(error)
