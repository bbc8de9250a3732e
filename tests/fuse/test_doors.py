"""No error reaches pyfuse3 as anything but an errno: it would end its main loop, and the caller would hang."""

from __future__ import annotations

import errno
import inspect
import logging
from typing import Any

import pyfuse3
import pytest

from lazyfs.core.errors import LazyfsError, StaleError
from lazyfs.fuse.adapter import Adapter

HANDLERS = sorted(
    name
    for name, member in vars(Adapter).items()
    if not name.startswith("_") and inspect.iscoroutinefunction(inspect.unwrap(member))
)
UNSAID = {
    "init",
    "stacktrace",
    "access",
    "poll",
}
"""Operations that are pyfuse3's own: not offered (ENOSYS), or not a request."""


class Broken:
    """A file system, and all that hangs on it, of which every use raises."""

    def __init__(self, error: BaseException) -> None:
        self.__dict__["error"] = error

    def __getattr__(self, name: str) -> Any:
        raise self.__dict__["error"]


def arguments(name: str) -> list[Any]:
    """Something for every parameter of a handler."""
    sample = {
        "name": b"name",
        "name_old": b"old",
        "name_new": b"new",
        "new_name": b"new",
        "target": b"target",
        "buf": b"data",
        "flags": 0,
        "inode_list": [(2, 1)],
        "attr": pyfuse3.EntryAttributes(),
    }
    parameters = list(inspect.signature(getattr(Adapter, name)).parameters)[1:]
    return [sample.get(one, Anything() if one in {"ctx", "fields", "token"} else 1) for one in parameters]


class Anything:
    """A request's context or fields: everything is asked for, pid included."""

    def __getattr__(self, name: str) -> Any:
        return 1


def broken(error: BaseException) -> Adapter:
    adapter = Adapter(Broken(error))  # type: ignore[arg-type]
    adapter._ino_of = {1: 1}
    return adapter


def test_every_coroutine_of_the_adapter_is_a_door() -> None:
    assert [name for name in HANDLERS if not getattr(getattr(Adapter, name), "is_door", False)] == []
    assert "read" in HANDLERS
    assert len(HANDLERS) > 20


def test_every_operation_of_pyfuse3_is_a_door_or_known() -> None:
    operations = {name for name, _ in inspect.getmembers(pyfuse3.Operations, callable) if not name.startswith("_")}
    assert operations - set(HANDLERS) == UNSAID
    assert set(HANDLERS) - operations == set(), "a name that pyfuse3 never calls"


NEVER_FAILS = {"forget", "fsyncdir"}
REFUSES = {"link": errno.EOPNOTSUPP, "mknod": errno.EPERM}


@pytest.mark.expect_warnings
@pytest.mark.parametrize("name", HANDLERS)
async def test_what_nobody_expected_becomes_eio_and_is_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    handler = getattr(broken(ZeroDivisionError("a bug")), name)
    if name in NEVER_FAILS:
        await handler(*arguments(name))
        return
    with caplog.at_level(logging.ERROR, "lazyfs"), pytest.raises(pyfuse3.FUSEError) as raised:
        await handler(*arguments(name))
    if name in REFUSES:
        assert raised.value.errno == REFUSES[name]
        return
    assert raised.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.getMessage() == f"unexpected error in {name}"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("name", sorted(set(HANDLERS) - NEVER_FAILS - REFUSES.keys()))
async def test_our_errors_become_their_errno_silently(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await getattr(broken(StaleError("replaced")), name)(*arguments(name))
    assert raised.value.errno == errno.ESTALE
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


@pytest.mark.expect_warnings
@pytest.mark.parametrize("error", [ExceptionGroup("two", [OSError(), ValueError()]), KeyError(1), LazyfsError("x")])
async def test_groups_and_plain_errors_are_eio(error: Exception) -> None:
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await broken(error).getattr(*arguments("getattr"))
    assert raised.value.errno == errno.EIO


async def test_a_name_that_is_not_utf8_does_not_exist() -> None:
    adapter = broken(AssertionError("not asked"))
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await adapter.lookup(1, b"\xff", Anything())  # type: ignore[arg-type]
    assert raised.value.errno == errno.ENOENT
