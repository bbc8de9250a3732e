"""Extended attributes as user metadata: what fits comes back, what does not is told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.posix import KEYS
from lazyfs.core.xattrs import MAX_METADATA_BYTES, attributes_of, fits, key_of, text_of, value_of


@given(st.binary(max_size=200))
def test_a_value_comes_back_through_a_header(value: bytes) -> None:
    text = text_of(value)
    assert value_of(text) == value
    assert text
    assert text == " ".join(text.split())
    assert text.isascii()
    assert text.isprintable()


@given(st.text())
def test_whatever_others_wrote_is_a_value(text: str) -> None:
    value_of(text)
    attributes_of({text: text})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"plain text, as it is", "plain text, as it is"),
        (b"", "base64:"),
        (b" space", "base64:IHNwYWNl"),
        (b"two  spaces", "base64:dHdvICBzcGFjZXM="),
        (b"line\nbreak", "base64:bGluZQpicmVhaw=="),
        (b"base64:", "base64:YmFzZTY0Og=="),
        ("é".encode(), "base64:w6k="),
    ],
)
def test_a_value_that_a_header_would_change_is_kept_in_base64(value: bytes, text: str) -> None:
    assert text_of(value) == text
    assert value_of(text) == value


@pytest.mark.parametrize("text", ["base64:!", "base64:a", "base64:é"])
def test_what_only_looks_like_base64_is_told_as_it_is(text: str) -> None:
    assert value_of(text) == text.encode()


@pytest.mark.parametrize("name", ["user.a", "user.mime_type", "user.xdg.origin.url", "user.a-1"])
def test_names_that_a_header_keeps(name: str) -> None:
    key = key_of(name.encode())
    assert key == name.removeprefix("user.")
    assert attributes_of({key: "1"}) == attributes_of({key.upper(): "1"}) == {name.encode(): b"1"}


@pytest.mark.parametrize(
    "name",
    [b"user.", b"user.A", b"user.-a", b"user.a.", b"user.a b", b"user.\xff", b"user.a:b", b"user.lazyfs.state", b"a"]
    + [b"security.capability", b"trusted.a", b"system.posix_acl_access", b"user.mode", b"user.xattr"]
    + [b"user." + key.encode() for key in KEYS],
)
def test_names_that_have_no_key(name: bytes) -> None:
    assert key_of(name) is None
    assert attributes_of({name.decode("latin-1").removeprefix("user."): "1", "": "1"}).get(name) is None


def test_what_s3_takes() -> None:
    assert fits({"a": "x" * (MAX_METADATA_BYTES - 1)})
    assert not fits({"a": "x" * MAX_METADATA_BYTES})
    assert not fits({"a": "é" * (MAX_METADATA_BYTES // 2)})
    assert fits({})
