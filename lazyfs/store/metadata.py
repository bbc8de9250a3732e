"""Changing the user metadata of an object: what a copy onto itself must be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEPT = (
    "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Expires",
    "StorageClass", "WebsiteRedirectLocation",
)  # fmt: skip
"""What a copy that replaces metadata forgets unless it is told again, by the names of HEAD's answer."""


def changed(before: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """User metadata `before` after `changes`, of which None takes a key away."""
    return {key: value for key, value in {**before, **changes}.items() if value is not None}


def replacing(answer: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of a copy that gives the object of HEAD's `answer` other metadata and changes nothing else."""
    kept = {name: answer[name] for name in _KEPT if answer.get(name)}
    return {**kept, "MetadataDirective": "REPLACE", "Metadata": dict(metadata)}
