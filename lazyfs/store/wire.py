"""HTTP without the SDK: one request a call over connections that are kept, signed by botocore, sent by urllib3.

Promises that what goes wrong is one of `core.errors`, that a time limit is one of silence, not of the whole request,
and that a signed URL or header is in no message. For what the SDK does at a price: LIST, and bodies that go up.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3
from lxml import etree

from lazyfs.core.errors import StoreError, TruncatedError
from lazyfs.core.types import Buffer
from lazyfs.store.answers import UNTRUSTED, store_error, timed_out, unreachable
from lazyfs.store.s3 import ControlPlane
from lazyfs.store.sdk import pieces
from lazyfs.store.settings import S3Settings


class Wire:
    """Connections to the endpoint of `control`."""

    def __init__(self, settings: S3Settings, control: ControlPlane) -> None:
        self._timeout = urllib3.Timeout(connect=settings.connect_timeout_s, read=settings.read_timeout_s)
        self._pool = _make_pool(control, 2 * settings.max_connections)  # LIST and bodies each have so many

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], what: str, body: Buffer | None = None
    ) -> urllib3.BaseHTTPResponse:
        """The answer, read to its end, if its status is 200. Blocks."""
        sent = dict(headers)
        if body is not None:
            sent["Content-Length"] = str(len(body))
        try:
            answer = self._pool.request(
                method, url, headers=sent, body=None if body is None else pieces(memoryview(body)),
                timeout=self._timeout, retries=False, redirect=False,
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise translate(error, what) from None
        if answer.status != 200:
            raise parse_error(answer.status, answer.data, what, answer.headers.get("x-amz-bucket-region", ""))
        return answer

    def close(self) -> None:
        """Let go of connections."""
        self._pool.clear()


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
        case urllib3.exceptions.SSLError() if "certificate verify failed" in str(error):
            return unreachable(what, f"no connection ({UNTRUSTED})")
        case urllib3.exceptions.IncompleteRead():
            return TruncatedError(f"{what}: the connection broke while the answer was read")
    return unreachable(what, f"no connection ({type(error).__name__})")


def parse_error(status: int, body: bytes, what: str, region: str = "") -> StoreError:
    """The error that an XML error body means; bodies that are something else count by their status alone."""
    fields: dict[str, str] = {}
    try:
        root = etree.fromstring(body, parser())
        fields = {local_name(child): child.text or "" for child in root.iterchildren(tag=etree.Element)}
    except (etree.XMLSyntaxError, ValueError):
        pass
    region = region or fields.get("Region", "")
    return store_error(status, fields.get("Code", ""), fields.get("Message", ""), what, region=region)


def parser() -> Any:
    """A parser that is closed: no entities, no DTD, no network, no huge trees."""
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)


def local_name(element: Any) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]
