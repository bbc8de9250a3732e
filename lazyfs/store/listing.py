"""LIST, parsed by ourselves: a URL that boto3 signed, fetched by urllib3, read by lxml.

Many times cheaper than the SDK's parser, and it takes every key that S3 allows: obstore's listing fails whole on
one key with `//` or a control character. The parser is closed: no entities, no DTD, no network, no huge trees.
"""

from __future__ import annotations

import datetime
import functools
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

import urllib3
from lxml import etree

from lazyfs.core.errors import StoreError, TransientStoreError, TruncatedError
from lazyfs.core.types import ListPage, ObjectInfo
from lazyfs.store.answers import store_error, timed_out, unreachable
from lazyfs.store.s3 import ControlPlane
from lazyfs.store.settings import S3Settings
from lazyfs.store.threads import Threads

_NS = 1_000_000_000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SECOND = datetime.timedelta(seconds=1)
_MAX_PAGE = 1000


class Lister:
    """Lists pages. Needs a ControlPlane only for its signature."""

    def __init__(self, settings: S3Settings, control: ControlPlane) -> None:
        self._control = control
        self._threads = Threads(settings.max_connections, deadline_s=settings.request_timeout_s)
        self._timeout = urllib3.Timeout(connect=settings.connect_timeout_s, read=settings.read_timeout_s)
        self._pool = _make_pool(control, settings.max_connections)

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

    def close(self) -> None:
        """Let go of connections."""
        self._pool.clear()

    def _fetch(self, params: dict[str, Any], what: str) -> ListPage:
        url = self._control.presigned_list_url(params)
        headers = self._control.signed_headers
        try:
            answer = self._pool.request(
                "GET", url, headers=headers, timeout=self._timeout, retries=False, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise translate(error, what) from None
        if answer.status != 200:
            raise parse_error(answer.status, answer.data, what, answer.headers.get("x-amz-bucket-region", ""))
        return parse_page(answer.data, what)


def _make_pool(control: ControlPlane, max_connections: int) -> urllib3.PoolManager:
    """A pool that goes through the proxy and trusts the certificates that the environment names, as boto3 does."""
    parts = urlsplit(control.endpoint_url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    options: dict[str, Any] = {"maxsize": max_connections, "block": False}
    if control.ca_bundle:
        options["ca_certs"] = control.ca_bundle
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def translate(error: Exception, what: str) -> StoreError:
    """Our error for one of urllib3's, whose own texts hold the signed URL and are never repeated."""
    match error:
        case urllib3.exceptions.NewConnectionError():
            return unreachable(what, f"no connection ({str(error).rpartition(': ')[2]})")
        case urllib3.exceptions.TimeoutError():
            return timed_out(what)
        case urllib3.exceptions.IncompleteRead():
            return TruncatedError(f"{what}: the connection broke while the answer was read")
    return unreachable(what, f"no connection ({type(error).__name__})")


def parse_error(status: int, body: bytes, what: str, region: str = "") -> StoreError:
    """The error that an XML error body means; bodies that are something else count by their status alone."""
    fields: dict[str, str] = {}
    try:
        root = etree.fromstring(body, _parser())
        fields = {_local(child): child.text or "" for child in root.iterchildren(tag=etree.Element)}
    except (etree.XMLSyntaxError, ValueError):
        pass
    region = region or fields.get("Region", "")
    return store_error(status, fields.get("Code", ""), fields.get("Message", ""), what, region=region)


def parse_page(body: bytes, what: str) -> ListPage:
    """The page in a ListBucketResult. TransientStoreError if it is none: a proxy's page, or half of an answer."""
    try:
        root = etree.fromstring(body, _parser())
        if _local(root) == "Error":  # S3 may begin with 200 and fail later
            raise parse_error(500, body, what)
        if _local(root) == "ListBucketResult":
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
            size=int(size),
            mtime_ns=_parse_time(modified),
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
        fields = {_local(child): child.text or "" for child in element.iterchildren(tag=etree.Element)}
        yield (
            fields["Key"],
            fields.get("ETag", ""),
            fields["Size"],
            fields["LastModified"],
            fields.get("StorageClass", ""),
        )


def _parser() -> Any:
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)


def _local(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _decode(text: str, *, encoded: bool) -> str:
    """A key as the application wrote it. Bytes that are not UTF-8 survive as surrogates."""
    if not encoded or ("%" not in text and "+" not in text):
        return text
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "surrogateescape")


def _parse_time(text: str) -> int:
    return (datetime.datetime.fromisoformat(text) - _EPOCH) // _SECOND * _NS
