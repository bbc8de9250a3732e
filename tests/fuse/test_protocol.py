"""The kernel's messages as bytes: against what a C compiler makes of linux/fuse.h, and against anything else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.types import Attributes, Kind
from lazyfs.fuse import answers
from lazyfs.fuse import protocol as p
from tests.fuse.golden import ANSWERS, REQUESTS

UNIQUE = 0x1122334455667788
FILE = Attributes(7, Kind.FILE, 1000, 1_700_000_000 * 10**9 + 5, 0o100644, 1000, 1001, 60.5)
MESSAGES = {name: bytes.fromhex(text) for name, text in REQUESTS.items()}
MEANT: dict[str, p.Request] = {
    "LOOKUP": p.Name(b"name"),
    "FORGET": p.Forget(((42, 3),)),
    "GETATTR": p.OnHandle(9),
    "SETATTR": p.Setattr(p.Valid.SIZE | p.Valid.MTIME, 9, 77, 3 * 10**9 + 6, 0o600, 11, 12),
    "READLINK": p.Empty(),
    "SYMLINK": p.Symlink(b"name", b"target"),
    "MKNOD": p.Make(0o10644, 0, b"name"),
    "MKDIR": p.Make(0o755, 0, b"name"),
    "UNLINK": p.Name(b"name"),
    "RMDIR": p.Name(b"name"),
    "RENAME": p.Rename(43, 0, b"old", b"new"),
    "RENAME2": p.Rename(43, p.RENAME_NOREPLACE, b"old", b"new"),
    "LINK": p.Link(44, b"name"),
    "OPEN": p.Open(0o100001),
    "READ": p.Read(9, 1 << 40, 131072),
    "WRITE": p.Write(9, 1 << 40, b"d\0ta"),
    "STATFS": p.Empty(),
    "RELEASE": p.OnHandle(9),
    "FSYNC": p.OnHandle(9),
    "SETXATTR": p.Setxattr(p.XATTR_CREATE, b"user.a", b"v\0lu"),
    "GETXATTR": p.Getxattr(255, b"user.a"),
    "LISTXATTR": p.Getxattr(255, b""),
    "REMOVEXATTR": p.Name(b"user.a"),
    "FLUSH": p.OnHandle(9),
    "INIT": p.Init(7, 38, 131072, 0x73FFFFFB),
    "OPENDIR": p.Open(0o200000),
    "READDIR": p.Read(9, 5, 4096),
    "RELEASEDIR": p.OnHandle(9),
    "FSYNCDIR": p.OnHandle(9),
    "CREATE": p.Make(0o100640, 0o101, b"name"),
    "INTERRUPT": p.Interrupt(0x99),
    "DESTROY": p.Empty(),
    "BATCH_FORGET": p.Forget(((5, 1), (6, 2))),
    "READDIRPLUS": p.Read(9, 5, 4096),
}
WRITTEN: dict[str, Callable[[], bytes]] = {
    "header": lambda: answers.answer(0x99, 4, 2),
    "entry": lambda: answers.entry(FILE),
    "absence": lambda: answers.absence(60.5),
    "attributes": lambda: answers.attributes(FILE),
    "opened": lambda: answers.opened(9, p.KEEP_CACHE | p.NOFLUSH),
    "written": lambda: answers.written(4096),
    "xattr_size": lambda: answers.xattr_size(17),
    "statfs": lambda: answers.statfs(blocks=1, free=2, files=3, files_free=4, block_size=4096, name_bytes=255),
    "init": lambda: answers.init(
        max_readahead=131072,
        flags=p.InitFlag.MAX_PAGES | p.InitFlag.ASYNC_READ,
        max_background=256,
        congestion_threshold=192,
    ),
    "direntplus": lambda: answers.directory([("name5", FILE, 8)], 4096, plus=True),
    "dirent": lambda: answers.directory([("name5", FILE, 8)], 4096, plus=False),
    "forget_inode": lambda: answers.forget_inode(7, -1, 4096),
    "forget_entry": lambda: answers.forget_entry(1, b"name"),
    "delete_entry": lambda: answers.delete_entry(1, 7, b"name"),
    "store": lambda: answers.store(7, 8, b"data"),
}


def resized(message: bytes) -> bytes:
    """The message, with a header that knows how long it is."""
    return struct.pack("=I", len(message)) + message[4:]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_request_means_what_the_kernel_wrote(name: str) -> None:
    header, request = p.decode(MESSAGES[name])
    assert header == (len(MESSAGES[name]), p.Opcode[name], UNIQUE, 42, 1000, 1001, 4711)
    assert request == MEANT[name]
    assert type(request) is type(MEANT[name])


def test_every_request_has_its_bytes() -> None:
    assert set(MESSAGES) == {opcode.name for opcode in p.Opcode} == set(MEANT)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_the_kernel_reads(name: str) -> None:
    assert WRITTEN[name]().hex() == ANSWERS[name]


def test_every_answer_has_its_bytes() -> None:
    assert set(ANSWERS) == set(WRITTEN)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_request_that_is_cut_off_is_malformed(name: str) -> None:
    """Wherever it is cut, even if its header says that this is all; but for fields that nobody reads."""
    whole = MESSAGES[name]
    for length in range(len(whole)):
        with pytest.raises(p.MalformedError):
            p.decode(whole[:length])
        try:
            _, request = p.decode(resized(whole[: max(length, p.HEADER.size)]))
        except p.MalformedError:
            continue
        assert request == MEANT[name]


def test_an_unknown_opcode_is_known_as_such() -> None:
    header = p.HEADER.pack(p.HEADER.size, 4711, UNIQUE, 1, 0, 0, 0, 0, 0)
    with pytest.raises(p.UnknownRequestError):
        p.decode(header)
    assert p.decode_header(header).unique == UNIQUE


@given(
    base=st.sampled_from(sorted(MESSAGES)),
    body=st.binary(max_size=200),
    opcode=st.one_of(st.none(), st.integers(0, 60)),
    keep=st.integers(0, 200),
)
def test_any_bytes_are_a_request_or_refused(base: str, body: bytes, opcode: int | None, keep: int) -> None:
    message = bytearray(resized(MESSAGES[base][:keep] + body) if keep + len(body) > 4 else body)
    if opcode is not None and len(message) >= 8:
        message[4:8] = struct.pack("=I", opcode)
    try:
        header, request = p.decode(bytes(message))
    except (p.MalformedError, p.UnknownRequestError):
        return
    assert header.length == len(message)
    assert isinstance(request, tuple)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    try:
        p.decode(noise)
    except (p.MalformedError, p.UnknownRequestError):
        return
    assert p.decode_header(noise).length == len(noise)


NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60)
FOUND = st.builds(
    Attributes,
    ino=st.integers(1, 2**63),
    kind=st.just(Kind.FILE),
    size=st.integers(0, 2**62),
    mtime_ns=st.integers(-(2**62), 2**62),
    mode=st.integers(0, 0o177777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    timeout_s=st.floats(0, 4e8),
    links=st.integers(0, 2),
)


def entries(data: bytes, *, plus: bool) -> list[tuple[Any, ...]]:
    """A directory's answer, read as the kernel does."""
    found, at = [], 0
    while at < len(data):
        nodeid = struct.unpack_from("=Q", data, at)[0] if plus else None
        at += 128 if plus else 0
        ino, offset, length, kind = struct.unpack_from("=QQII", data, at)
        found.append((nodeid, ino, offset, kind, data[at + 24 : at + 24 + length]))
        at += -(-(24 + length) // 8) * 8
    assert at == len(data)
    return found


@given(st.lists(st.tuples(NAMES, FOUND, st.integers(1, 2**63)), max_size=20), st.integers(0, 4000), st.booleans())
def test_a_directory_is_told_as_far_as_there_is_room(
    listed: list[tuple[str, Attributes, int]], size: int, plus: bool
) -> None:
    data = answers.directory(iter(listed), size, plus=plus)
    assert len(data) <= size
    told = entries(data, plus=plus)
    assert told == [
        (one.ino if plus else None, one.ino, offset, one.mode >> 12, name.encode())
        for name, one, offset in listed[: len(told)]
    ]
    if len(told) < len(listed):
        more = answers.directory(listed[: len(told) + 1], 10**6, plus=plus)
        assert len(more) > size, "the next one would have had room"


@given(FOUND)
def test_attributes_come_back(found: Attributes) -> None:
    said = struct.unpack("=QIIQQQqqqIIIIIIIIII", answers.attributes(found))
    assert (said[3], said[4]) == (found.ino, found.size)
    assert said[7] * 10**9 + said[10] == found.mtime_ns
    assert said[12:16] == (found.mode, found.links, found.uid, found.gid)
    assert abs(said[0] + said[1] / 1e9 - found.timeout_s) < 1e-6
    assert said[1] < 10**9
