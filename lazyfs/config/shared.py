"""Reading the URL of a shared cache. No message repeats it: it may hold a password."""

from __future__ import annotations

from typing import TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from lazyfs.cache.engine import BucketAddress, RedisAddress
from lazyfs.config.values import parse_endpoint
from lazyfs.core.errors import UsageError

SharedCache: TypeAlias = BucketAddress | RedisAddress

_REDIS = ("redis", "rediss", "redis+cluster", "rediss+cluster")
_FORMS = "s3://BUCKET/PREFIX, redis://HOST:PORT/DB, rediss:// for TLS, redis+cluster:// for a cluster"
_FILES = {"ca_file": "ssl_ca_certs", "cert_file": "ssl_certfile", "key_file": "ssl_keyfile"}
"""By the names that redis-py has for them in its own URLs."""


def parse_shared_cache(text: str) -> SharedCache | None:
    """Where the shared tier is, or None for `none`."""
    if text.strip().lower() == "none":
        return None
    try:
        url = urlsplit(text.strip())
        port = url.port
        query = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
    except ValueError:  # whose text may quote a piece of the password
        raise UsageError(f"not the URL of a shared cache (write {_FORMS})") from None
    if "#" in text:
        raise UsageError("a # in the password of a URL is written %23, a / is %2F, a ? is %3F, an @ is %40")
    if url.scheme == "s3":
        return _bucket(url, query)
    if url.scheme in _REDIS and url.hostname:
        return _redis(url, port, query)
    raise UsageError(f"not the URL of a shared cache (write {_FORMS})")


def _bucket(url: SplitResult, query: dict[str, str]) -> BucketAddress:
    from lazyfs.config.sources import parse_bucket  # noqa: PLC0415 - which imports the options, which import this

    if "@" in url.netloc:
        raise UsageError("credentials do not belong in the URL: a shared bucket is reached with those of the mount")
    endpoint = query.pop("endpoint", None)
    _refuse(query, ["endpoint"])
    bucket, prefix = parse_bucket(url.netloc + url.path)
    return BucketAddress(bucket=bucket, prefix=prefix, endpoint_url=parse_endpoint(endpoint) if endpoint else None)


def _redis(url: SplitResult, port: int | None, query: dict[str, str]) -> RedisAddress:
    tls, cluster = url.scheme.startswith("rediss"), url.scheme.endswith("+cluster")
    number = url.path.strip("/") or "0"
    if not number.isascii() or not number.isdecimal() or len(number) > 5:
        raise UsageError("what follows the host of a Redis is the number of a database, like /0")
    if cluster and int(number):
        raise UsageError("a cluster of Redis has one database, 0")
    files = {name: query.pop(spelling) for name, spelling in _FILES.items() if tls and query.get(spelling)}
    _refuse(query, list(_FILES.values()) if tls else [])
    return RedisAddress(
        host=url.hostname or "",
        port=port or 6379,
        db=int(number),
        cluster=cluster,
        tls=tls,
        username=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
        **files,
    )


def _refuse(query: dict[str, str], known: list[str]) -> None:
    if query:
        words = f"understood are {', '.join(known)}" if known else "none is understood here"
        raise UsageError(f"the URL of the shared cache has a parameter that makes no sense there ({words})")
