"""Work in progress that several callers wait for.

The work runs in its owner's nursery, so a waiter that is cancelled leaves it flying for the others. A flight has
three endings: a value, an error, or abandoned (its owner went away); it is born abandoned, so that whatever ends the
task without saying more ends the waiting too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from lazyfs.core.errors import LazyfsError

log = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class AbandonedError(LazyfsError):
    """The mount is going away."""


class InternalError(LazyfsError):
    """A bug in lazyfs; the log has the traceback."""


class Flight(Generic[T]):
    """One piece of shared work."""

    __slots__ = ("_done", "_error", "_value")

    def __init__(self) -> None:
        self._done = trio.Event()
        self._value: list[T] = []
        self._error: LazyfsError = AbandonedError("the mount is shutting down")

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do the work and tell the waiters. Raises nothing but cancellation: a bug must not end the mount."""
        try:
            self._value.append(await work())
        except LazyfsError as error:
            self._error = error
        except Exception:
            log.exception("unexpected error in shared work")
            self._error = InternalError("unexpected error, see the log")
        finally:
            self._done.set()

    async def wait(self) -> T:
        """The value, when it is there. Raises a fresh copy of the error, as each waiter adds its own traceback."""
        await self._done.wait()
        if self._value:
            return self._value[0]
        raise type(self._error)(*self._error.args) from self._error


class SingleFlight(Generic[K, T]):
    """At most one flight per key; whoever asks for a key in flight shares it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[K, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """The value of `work`, or of the flight for `key` that is already on its way."""
        flight = self._flights.get(key)
        if flight is None:
            flight = Flight()
            self._nursery.start_soon(self._fly, key, flight, work)
            self._flights[key] = flight  # not before: a nursery that is closed takes nobody
        return await flight.wait()

    async def _fly(self, key: K, flight: Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            await flight.run(work)
        finally:
            del self._flights[key]
