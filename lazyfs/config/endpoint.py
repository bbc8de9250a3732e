"""From what the user said of a bucket to what the store takes."""

from __future__ import annotations

from dataclasses import replace

from lazyfs.cache.engine import BucketAddress
from lazyfs.config.options import BucketConfig
from lazyfs.store.settings import S3Settings

CONNECT_TIMEOUT_S = 5.0
WHOLE_REQUEST_FACTOR = 10
"""A request may last this many times the longest silence in it: a large extent on a slow line is no fault."""


def s3_settings(bucket: BucketConfig, *, max_connections: int, bulk_connections: int | None = None) -> S3Settings:
    """The settings of the store for this bucket; `bulk_connections` are as many as the others unless told."""
    return S3Settings(
        bucket=bucket.name,
        endpoint_url=bucket.endpoint_url,
        region=bucket.region,
        profile=bucket.profile,
        no_sign_request=bucket.no_sign_request,
        force_path_style=bucket.force_path_style,
        requester_pays=bucket.requester_pays,
        expected_bucket_owner=bucket.expected_bucket_owner,
        connect_timeout_s=min(CONNECT_TIMEOUT_S, bucket.read_timeout_s),
        read_timeout_s=bucket.read_timeout_s,
        request_timeout_s=bucket.read_timeout_s * WHOLE_REQUEST_FACTOR,
        max_connections=max_connections,
        bulk_connections=max_connections if bulk_connections is None else bulk_connections,
    )


def shared_settings(bucket: BucketConfig, shared: BucketAddress, *, max_connections: int) -> S3Settings:
    """The settings of the store for the shared cache of a mount of `bucket`: the same user, always signed."""
    settings = s3_settings(bucket, max_connections=max_connections)
    return replace(
        settings,
        bucket=shared.bucket,
        endpoint_url=shared.endpoint_url or settings.endpoint_url,
        no_sign_request=False,  # a public origin is no reason to write anonymously
        requester_pays=False,
        expected_bucket_owner=None,
    )
