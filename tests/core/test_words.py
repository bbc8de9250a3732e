"""Errors and counters: the words that the rest of the house uses."""

from __future__ import annotations

import errno
import pickle

import pytest

from lazyfs.core import errors
from lazyfs.core.errors import LazyfsError, StoreError, TransientStoreError, first_error
from lazyfs.core.stats import Stats

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, LazyfsError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_has_an_errno_a_promise_and_one_line(cls: type[LazyfsError]) -> None:
    assert cls.errno in errno.errorcode
    assert cls.__doc__
    assert cls.__name__.endswith("Error")
    error = cls("one line")
    assert str(error) == "one line"
    assert type(error)(*error.args).args == error.args  # how a flight copies it for each waiter
    assert pickle.loads(pickle.dumps(error)).args == error.args
    assert error.errno == cls.errno


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_only_what_asking_again_may_cure_is_transient(cls: type[LazyfsError]) -> None:
    assert cls.transient == issubclass(cls, TransientStoreError)
    assert not cls.transient or issubclass(cls, StoreError)


def test_what_a_program_is_told() -> None:
    told = {cls.__name__: errno.errorcode[cls.errno] for cls in CLASSES}
    assert told["NotFoundError"] == told["NoEntryError"] == "ENOENT"
    assert told["StaleError"] == told["PreconditionFailedError"] == "ESTALE"
    assert told["AccessDeniedError"] == "EACCES"
    assert told["TruncatedError"] == told["ThrottledError"] == told["StoreError"] == "EIO"
    assert told["OutOfOrderError"] == "EINVAL"
    assert told["TooBigError"] == "EFBIG"
    assert told["NoSuchBucketError"] != "ENOENT"  # a bucket that is gone never looks like an empty directory


def test_counters() -> None:
    stats = Stats()
    assert stats.get("a.b") == 0
    stats.add("b")
    stats.add("a.b", 5)
    stats.add("b", 2)
    assert stats.get("b") == 3
    assert stats.snapshot() == {"a.b": 5, "b": 3}
    assert list(stats.snapshot()) == ["a.b", "b"]


def test_asking_for_a_counter_does_not_make_one() -> None:
    stats = Stats()
    stats.get("never")
    assert stats.snapshot() == {}


def test_of_a_group_a_person_reads_the_first_error_of_ours_or_ctrl_c() -> None:
    ours, bug = StoreError("ours"), ValueError("a bug")
    nested = BaseExceptionGroup("outer", [bug, BaseExceptionGroup("inner", [bug, ours])])
    assert first_error(nested) is ours
    interrupted = KeyboardInterrupt()
    assert first_error(BaseExceptionGroup("outer", [bug, interrupted, ours])) is interrupted
    strange = BaseExceptionGroup("outer", [bug])
    assert first_error(strange) is strange
