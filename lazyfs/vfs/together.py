"""Doing the same to many things at once, with one error and no group."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from lazyfs.core.errors import LazyfsError

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Do `work` for all items, `at_once` of them at a time. After the first LazyfsError no more are begun; it is raised
    when those under way have ended."""
    turns = trio.Semaphore(at_once)
    errors: list[LazyfsError] = []

    async def one(item: T) -> None:
        try:
            await work(item)
        except LazyfsError as error:
            errors.append(error)
        finally:
            turns.release()

    async with trio.open_nursery() as nursery:
        for item in items:
            await turns.acquire()
            if errors:
                break
            nursery.start_soon(one, item)
    if errors:
        raise errors[0]
