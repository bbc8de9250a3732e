"""Write-back's backlog in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lazyfs.core.units import format_duration, format_size


def backlog_of(waiting: Mapping[str, Any]) -> str:
    """What is still to be brought to the bucket, as a daemon's status has it."""
    size, age = format_size(waiting["bytes"]), format_duration(waiting["oldest_s"])
    return f"{waiting['changes']:,} changes, {size}, the oldest for {age}"
