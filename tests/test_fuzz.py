"""Whatever is read from outside is understood or refused in the documented way: never another error, never for ever.

What is read: listings and error bodies, events, control messages and their arguments, journal records, what an index
remembers, option strings, fstab lines and TOML files, values of the shared tier. Snapshots have this in
`tests/index/test_snapshot.py`, metadata in `tests/core/test_posix.py` and `test_xattrs.py`, cache labels in
`tests/cache/test_disk.py`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lazyfs.cache.sharedvalue import decode, encode
from lazyfs.cli import fstab
from lazyfs.config import load, parse_mount_options, values
from lazyfs.config.shared import parse_shared_cache
from lazyfs.config.sources import parse_bucket
from lazyfs.control import protocol, registry
from lazyfs.core.changes import Change, Op, decode_change, encode_change
from lazyfs.core.errors import ControlError, StoreError, UsageError
from lazyfs.core.selection import Selection, parse_size_bounds, parse_states
from lazyfs.core.stats import Stats
from lazyfs.core.types import Condition, ObjectId
from lazyfs.store.events import _Parser
from lazyfs.store.listing import parse_page
from lazyfs.store.wire import parse_error
from lazyfs.vfs.renaming import renames_in
from lazyfs.vfs.uploads import uploads_in
from tests.campaign import SEED, times

pytestmark = [pytest.mark.campaign, pytest.mark.expect_warnings]

often = settings(
    max_examples=times(40, 5000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def fuzz(**given_: Any) -> Callable[[Any], Any]:
    """Try often, in the same way for the same LAZYFS_SEED."""
    return lambda test: seed(SEED)(often(given(**given_)(test)))


NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400, math.inf, -math.inf, math.nan]),
)
TEXTS = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["", "\0", "../x", "a\nb", "\udcff", "é" * 300]
)
JSONS = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=300)


@st.composite
def bent(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` with a few bytes cut out, put in, or changed."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 6))] = draw(st.binary(max_size=6))
    return bytes(data)


@st.composite
def bent_document(draw: st.DrawFn, good: Any) -> Any:
    """`good` with anything in the place of some of what is in it."""
    if draw(st.integers(0, 5)) == 0:
        return draw(JSONS)
    if isinstance(good, dict):
        return {name: draw(bent_document(value)) for name, value in good.items() if draw(st.integers(0, 9))}
    if isinstance(good, list):
        return [draw(bent_document(value)) for value in good]
    return good


# -- what a server says -------------------------------------------------------------------------------------------

SIZES = ["0", "5", "-1", "1.5", "", "9" * 30, "9" * 5000, " 7 ", "٣", str(2**63)]
DATES = [
    "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
    "2026-01-01", "20260101T000000Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "x", "",
]  # fmt: skip
PAGE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken><EncodingType>url</EncodingType>"
    "<Contents><Key>{key}</Key><ETag>&quot;e&quot;</ETag><Size>{size}</Size><LastModified>{date}</LastModified>"
    "<StorageClass>STANDARD</StorageClass></Contents><CommonPrefixes><Prefix>p%2F</Prefix></CommonPrefixes>"
    "</ListBucketResult>"
)
GOOD_PAGE = PAGE.format(key="a%2Bb", size="5", date=DATES[0]).encode()


def listed(body: bytes) -> None:
    try:
        page = parse_page(body, "LIST ''")
    except StoreError:
        return
    for info in page.objects:
        assert 0 <= info.size < 2**63, "what the index can keep"
        assert abs(info.mtime_ns) < 2**63


@fuzz(body=BYTES | bent(GOOD_PAGE))
def test_a_listing(body: bytes) -> None:
    listed(body)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("date", DATES)
def test_numbers_and_dates_of_a_listing(size: str, date: str) -> None:
    listed(PAGE.format(key="a", size=size, date=date).encode())


def test_a_listing_that_is_deep_or_full_of_entities() -> None:
    bombs = [
        b"<a>" * 100_000,
        b'<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY c "&b;&b;">]><ListBucketResult>&c;</ListBucketResult>',
    ]
    for body in [*bombs, GOOD_PAGE.replace(b"a%2Bb", b"%" * 100_000), b"<ListBucketResult/>" * 2]:
        listed(body)


@fuzz(status=st.integers(0, 999), body=BYTES | bent(b"<Error><Code>SlowDown</Code><Message>m\n</Message></Error>"))
def test_an_error_of_a_server(status: int, body: bytes) -> None:
    error = parse_error(status, body, "GET 'a'")
    assert isinstance(error, StoreError)
    assert len(str(error)) < 1000


EVENT = {"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": "a+b%2Fc"}}}], "Message": '{"Records": []}'}


@fuzz(message=bent_document(EVENT).map(json.dumps) | TEXTS | BYTES | bent(json.dumps(EVENT).encode()))
def test_an_event(message: str | bytes) -> None:
    found = _Parser("b", "", Stats()).keys(message)
    assert all(isinstance(key, str) for key in found)


def test_events_within_events_end() -> None:
    message = '{"Records": []}'
    for _ in range(12):  # each doubles the backslashes
        message = json.dumps({"Message": message})
    assert _Parser("b", "", Stats()).keys(message) == []
    assert _Parser("b", "", Stats()).keys("[" * 100_000) == []


# -- what others may have put into a cache ------------------------------------------------------------------------

VALUE = b"".join(map(bytes, encode(b"identity", [b"one", b"three"])))


@fuzz(value=BYTES | bent(VALUE))
def test_a_value_of_the_shared_tier(value: bytes) -> None:
    held = decode(b"identity", 7, value)
    assert held is None or value == VALUE
    assert decode(b"another!", 7, value) is None


# -- what an index and a journal remember -------------------------------------------------------------------------

CHANGE = json.loads(
    encode_change(
        Change(
            number=3,
            op=Op.COPY,
            key="k",
            source=ObjectId("a", "e"),
            size=5,
            mtime_ns=7,
            token="ab1",
            condition=Condition(etag="e"),
            metadata={"a": "b"},
        )
    ).partition("\t")[0]  # the checksum would refuse whatever is bent
)
RENAMES = {"old/": {"new": "new/", "etags": {"old/a": "e"}, "sizes": {"old/a": 5}, "markers": ["old/"]}}
UPLOADS = {"open": {"id": "key"}, "begun": ["key"]}


@fuzz(document=bent_document(CHANGE))
def test_a_record_of_the_journal(document: Any) -> None:
    try:
        change = decode_change(3, json.dumps(document))
    except ValueError:
        return
    assert decode_change(3, encode_change(change)) == change
    assert "/" not in change.token
    assert 0 <= change.size < 2**63
    assert change.condition.etag is None or isinstance(change.condition.etag, str)


@fuzz(document=bent_document(RENAMES))
def test_renames_that_were_under_way(document: Any) -> None:
    for old, rename in renames_in(json.dumps(document)).items():
        told = [old, rename["new"], *rename["markers"], *rename["etags"], *rename["etags"].values()]
        assert all(isinstance(text, str) for text in told)
        assert all(isinstance(size, int) for size in rename["sizes"].values())


@fuzz(document=bent_document(UPLOADS))
def test_uploads_that_were_under_way(document: Any) -> None:
    opened, begun = uploads_in(json.dumps(document))
    assert all(isinstance(text, str) for text in [*opened, *opened.values(), *begun])


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 100_000, "\0"])
def test_what_is_remembered_may_be_rubbish(text: str) -> None:
    assert renames_in(text) == {}
    assert uploads_in(text) == ({}, [])


def test_what_is_remembered_comes_back() -> None:
    assert renames_in(json.dumps(RENAMES)) == RENAMES
    assert uploads_in(json.dumps(UPLOADS)) == ({"id": "key"}, ["key"])


# -- what is said on the control socket ---------------------------------------------------------------------------


@fuzz(
    line=BYTES
    | bent(b'{"verb": "status", "args": {"path": "a"}}\n')
    | JSONS.map(lambda told: json.dumps(told).encode())
)
def test_a_request(line: bytes) -> None:
    try:
        request = protocol.decode_request(line)
    except ControlError:
        return
    assert isinstance(request.verb, str)


@fuzz(line=BYTES | bent(b'{"ok": true, "result": {"path": "a"}}\n') | JSONS.map(lambda told: json.dumps(told).encode()))
def test_a_reply(line: bytes) -> None:
    with contextlib.suppress(ControlError):
        assert isinstance(protocol.decode_reply(line), dict)


@fuzz(document=st.dictionaries(st.sampled_from(["states", "name", "smallest", "largest"]), JSONS))
def test_a_selection(document: Any) -> None:
    try:
        selection = Selection.load(document)
    except UsageError:
        return
    selection.fits_entry("name", 5, is_file=True)
    selection.fits_state("released")


REGISTRATION = {
    "mountpoint": "/m", "bucket": "b", "pid": 1, "process_start": 1, "started_at": 1.0, "version": "v",
}  # fmt: skip


@fuzz(text=TEXTS | bent_document(REGISTRATION).map(json.dumps))
def test_a_registration(text: str, tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = registry._read(path)
    if found is not None:
        assert isinstance(found.is_alive, bool)
        assert isinstance(found.mountpoint, str)
        assert found.socket


# -- what a user writes -------------------------------------------------------------------------------------------

PARSERS: dict[str, Callable[[str], object]] = {
    name: getattr(values, name)
    for name in sorted(vars(values))
    if name.startswith("parse_") and getattr(values, name).__code__.co_argcount == 1
} | {"parse_shared_cache": parse_shared_cache, "parse_bucket": parse_bucket}
PARSERS |= {
    "parse_states": parse_states,
    "parse_size_bounds": parse_size_bounds,
    "parse_mount_options": parse_mount_options,
}
WORDS = st.sampled_from(
    ["~", "~nobody-of-this-name/x", "http://[", "https://[::1", "redis://h:99999/0", "redis://u:p@h:x", "s3://b?endpoint=x",
     "9" * 40 + "TiB", "9" * 20, "9" * 20 + "d", "0", "1e5", "٣", "indefinite", "none", "s3://", "s3://b/k", "sqs:http://x/y",
     "a\0b", "5\x1f", "ro,allow_other,uid=5,x-a=b", "=,=", "uid=", "s3://b/" + "a" * 2000, "\udcff", "redis://h/٣", "rediss://h?ca_file=\0"]
)  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@fuzz(text=WORDS | TEXTS | st.text("0123456789.kMGTiB smhd-+~/:@?#[]%=,rediss3httpnone", max_size=20))
def test_an_option(name: str, text: str) -> None:
    try:
        found = PARSERS[name](text)
    except UsageError:
        return
    numbers = [found] if isinstance(found, int | float) else []
    assert all(number == math.inf or abs(number) < 2**63 for number in numbers), "what SQLite and the kernel can take"


@fuzz(arguments=st.lists(WORDS | st.sampled_from(["-o", "-sfnv", "-t", "--", "config=x", "a,b=c"]) | TEXTS, max_size=6))
def test_a_line_of_fstab(arguments: list[str]) -> None:
    with contextlib.suppress(UsageError):
        fstab.parse(arguments)


TOML = b'cache-size = "20GiB"\nread-only = true\nuid = 5\nmetadata-ttl = "60s"\ncache-dir = "/x"\n'


@fuzz(
    content=BYTES
    | bent(TOML)
    | st.sampled_from([b"uid = " + b"[" * 5000, b"uid = " + b"9" * 5000, b'cache-dir = "a\\u0000b"'])
)
def test_a_file_of_options(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with contextlib.suppress(UsageError):
        load("bucket", str(tmp_path), {}, file=file, environ={"HOME": str(tmp_path)})


@pytest.mark.parametrize("change", [{"token": None}, {"key": None}, {"size": math.inf}, {"etag": 5}, {"size": -1}])
def test_a_record_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_change(3, json.dumps({**CHANGE, **change}))
