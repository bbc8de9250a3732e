"""Shared work: done once, heard by all, ended by nobody's leaving."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from lazyfs.core.errors import NotFoundError, StaleError
from lazyfs.vfs.flight import AbandonedError, Flight, InternalError, SingleFlight


class Work:
    """Shared work that ends when it is told to."""

    def __init__(self, answer: object = "value") -> None:
        self.calls = 0
        self.go = trio.Event()
        self._answer = answer

    async def __call__(self) -> object:
        self.calls += 1
        await self.go.wait()
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


async def ask(flights: SingleFlight[str, object], key: str, work: Work, heard: list[object]) -> None:
    try:
        heard.append(await flights.run(key, work))
    except Exception as error:
        heard.append(error)


async def test_many_that_ask_share_one_flight() -> None:
    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, object] = SingleFlight(nursery)
        work, heard = Work(), []
        for _ in range(10):
            nursery.start_soon(ask, flights, "k", work, heard)
        await trio.testing.wait_all_tasks_blocked()
        assert len(flights) == 1
        work.go.set()
    assert work.calls == 1
    assert heard == ["value"] * 10
    assert len(flights) == 0


async def test_other_keys_fly_alone_and_a_later_call_flies_anew() -> None:
    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, object] = SingleFlight(nursery)
        work = Work()
        work.go.set()
        assert await flights.run("a", work) == "value"
        assert await flights.run("b", work) == "value"
        assert await flights.run("a", work) == "value"
        assert work.calls == 3


async def test_who_leaves_lets_the_others_have_it() -> None:
    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, object] = SingleFlight(nursery)
        work, heard = Work(), []
        async with trio.open_nursery() as first:
            first.start_soon(ask, flights, "k", work, heard)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, flights, "k", work, heard)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        assert len(flights) == 1
        work.go.set()
    assert heard == ["value"]


async def test_an_error_reaches_all_each_with_its_own() -> None:
    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, object] = SingleFlight(nursery)
        work, heard = Work(NotFoundError("no such key", 7)), []
        for _ in range(3):
            nursery.start_soon(ask, flights, "k", work, heard)
        await trio.testing.wait_all_tasks_blocked()
        work.go.set()
    assert [type(error) for error in heard] == [NotFoundError] * 3
    assert all(error.args == ("no such key", 7) for error in heard)  # type: ignore[attr-defined]
    assert len(set(map(id, heard))) == 3


@pytest.mark.expect_warnings
async def test_a_bug_is_logged_with_its_traceback_and_ends_no_nursery(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, object] = SingleFlight(nursery)
        work = Work(ZeroDivisionError("oops"))
        work.go.set()
        with pytest.raises(InternalError, match="see the log"):
            await flights.run("k", work)
        assert "oops" in caplog.text
        assert "Traceback" in caplog.text


async def test_when_the_owner_goes_away_nobody_waits_for_ever() -> None:
    heard: list[object] = []
    async with trio.open_nursery() as waiters, trio.open_nursery() as owner:
        flights: SingleFlight[str, object] = SingleFlight(owner)
        waiters.start_soon(ask, flights, "k", Work(), heard)
        await trio.testing.wait_all_tasks_blocked()
        owner.cancel_scope.cancel()
    assert [type(error) for error in heard] == [AbandonedError]
    assert len(flights) == 0


async def test_asked_too_late_there_is_no_flight_that_nobody_flies() -> None:
    async with trio.open_nursery() as owner:
        flights: SingleFlight[str, object] = SingleFlight(owner)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await flights.run("k", Work())
    assert len(flights) == 0


async def test_a_flight_may_bring_nothing() -> None:
    flight: Flight[None] = Flight()
    await flight.run(trio.lowlevel.checkpoint)
    assert await flight.wait() is None
    assert await flight.wait() is None


def test_its_errors_are_errors_like_any_other() -> None:
    assert AbandonedError.errno == InternalError.errno
    assert not StaleError.transient
