"""LIST, parsed by ourselves: a URL that boto3 signed, fetched by urllib3, read by lxml.

Many times cheaper than the SDK's parser, and it takes every key that S3 allows: obstore's listing fails whole on
one key with `//` or a control character.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from lxml import etree

from lazyfs.core.errors import TransientStoreError
from lazyfs.core.types import ListPage, ObjectInfo
from lazyfs.store.answers import nanoseconds
from lazyfs.store.s3 import ControlPlane
from lazyfs.store.threads import Threads
from lazyfs.store.wire import Wire, local_name, parse_error, parser

MAX_SIZE = 2**63 - 1
"""Of an object, as far as the index and the kernel can count."""
_MAX_PAGE = 1000


class Lister:
    """Lists pages. Needs a ControlPlane only for its signature."""

    def __init__(self, control: ControlPlane, wire: Wire, threads: Threads) -> None:
        self._control = control
        self._wire = wire
        self._threads = threads

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str = "",
        start_after: str = "",
        token: str | None = None,
        limit: int = _MAX_PAGE,
    ) -> ListPage:
        """See Store.list_page. Modification times are whole seconds, as HEAD tells them."""
        params: dict[str, Any] = {"EncodingType": "url", "MaxKeys": min(limit, _MAX_PAGE)}
        if prefix:
            params["Prefix"] = prefix
        if delimiter:
            params["Delimiter"] = delimiter
        if token is not None:
            params["ContinuationToken"] = token
        elif start_after:
            params["StartAfter"] = start_after
        what = f"LIST {prefix!r}"
        return await self._threads.run(what, functools.partial(self._fetch, params, what))

    def _fetch(self, params: dict[str, Any], what: str) -> ListPage:
        url = self._control.presigned_list_url(params)
        return parse_page(self._wire.send("GET", url, headers=self._control.signed_headers, what=what).data, what)


def parse_page(body: bytes, what: str) -> ListPage:
    """The page in a ListBucketResult. TransientStoreError if it is none: a proxy's page, or half of an answer."""
    try:
        root = etree.fromstring(body, parser())
        if local_name(root) == "Error":  # S3 may begin with 200 and fail later
            raise parse_error(500, body, what)
        if local_name(root) == "ListBucketResult":
            return _read_page(root)
    except (etree.XMLSyntaxError, ValueError, KeyError):
        pass
    raise TransientStoreError(f"{what}: the answer is not a listing")


def _read_page(root: Any) -> ListPage:
    namespace = root.tag[1 : root.tag.rfind("}")] if root.tag.startswith("{") else ""
    paths = _paths(namespace)
    encoded = root.findtext(f"{{{namespace}}}EncodingType" if namespace else "EncodingType") == "url"
    objects = tuple(
        ObjectInfo(
            key=_decode(key, encoded=encoded),
            etag=etag.strip('"'),
            size=_size(size),
            mtime_ns=nanoseconds(datetime.datetime.fromisoformat(modified)),
            storage_class=storage_class,
        )
        for key, etag, size, modified, storage_class in _rows(root, paths)
    )
    if len({info.key for info in objects}) < len(objects):  # not S3: a key is told twice
        objects = tuple({info.key: info for info in objects}.values())
    prefixes = tuple(dict.fromkeys(_decode(prefix, encoded=encoded) for prefix in paths.prefixes(root)))
    token = paths.token(root) if paths.truncated(root) == "true" else ""
    return ListPage(objects, prefixes, token or None)


_FIELDS = ("Key", "ETag", "Size", "LastModified", "StorageClass")


class _Paths(NamedTuple):
    """Compiled XPaths for one namespace; whole columns in C cost half of a walk over the elements."""

    columns: tuple[Any, ...]
    count: Any
    contents: Any
    prefixes: Any
    truncated: Any
    token: Any


@functools.lru_cache(maxsize=4)
def _paths(namespace: str) -> _Paths:
    def path(text: str) -> Any:
        named = {"s": namespace} if namespace else None
        return etree.XPath(text if namespace else text.replace("s:", ""), namespaces=named, smart_strings=False)

    return _Paths(
        columns=tuple(path(f"s:Contents/s:{name}/text()") for name in _FIELDS),
        count=path("count(s:Contents)"),
        contents=path("s:Contents"),
        prefixes=path("s:CommonPrefixes/s:Prefix/text()"),
        truncated=path("string(s:IsTruncated)"),
        token=path("string(s:NextContinuationToken)"),
    )


def _rows(root: Any, paths: _Paths) -> Iterator[tuple[str, ...]]:
    """The `_FIELDS` of each object. KeyError if one has no key, size or time; ETag and class may be missing."""
    columns = [column(root) for column in paths.columns]
    if all(len(column) == paths.count(root) for column in columns):
        yield from zip(*columns, strict=True)
        return
    for element in paths.contents(root):
        fields = {local_name(child): child.text or "" for child in element.iterchildren(tag=etree.Element)}
        yield (
            fields["Key"],
            fields.get("ETag", ""),
            fields["Size"],
            fields["LastModified"],
            fields.get("StorageClass", ""),
        )


def _decode(text: str, *, encoded: bool) -> str:
    """A key as the application wrote it. Bytes that are not UTF-8 survive as surrogates."""
    if not encoded or ("%" not in text and "+" not in text):
        return text
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "surrogateescape")


def _size(text: str) -> int:
    size = int(text)
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(text)
    return size
