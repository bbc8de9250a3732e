"""Content types by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.content import UNKNOWN, content_type


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("a/index.json", "application/json"),
        ("a/photo.JPG", "image/jpeg"),
        ("t.parquet", "application/vnd.apache.parquet"),
        ("notes.txt", "text/plain"),
        ("x.tar.gz", "application/gzip"),
        ("model.safetensors", UNKNOWN),
        ("dir.json/", UNKNOWN),
        ("http://x/a.png", "image/png"),
        ("data:text/html,x", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_the_ending_decides(key: str, wanted: str) -> None:
    assert content_type(key) == wanted


@given(st.text())
def test_any_name_has_a_type_that_a_header_can_hold(key: str) -> None:
    found = content_type(key)
    assert found.isascii()
    assert found.isprintable()
    assert "/" in found
