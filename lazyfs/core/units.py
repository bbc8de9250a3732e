"""Sizes and durations as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from lazyfs.core.errors import UsageError

_NUMBER = r"(\d{1,20}(?:\.\d{1,20})?)"
_SIZE = re.compile(_NUMBER + r"\s*([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(_NUMBER + r"\s*(ms|s|m|h|d|)", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MAX_SIZE = 2**63 - 1
"""What SQLite and the kernel can count."""
MAX_DURATION_S = 100 * 365.25 * 86400
"""So that its nanoseconds can be counted too."""


def parse_size(text: str) -> int:
    """Bytes for `8MiB`, `20G`, `1.5 TiB`, `4096`. K, M, G, T mean powers of 1024 with or without the `i`.

    Raises UsageError for anything else, and for more than MAX_SIZE.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise UsageError(f"not a size: {text!r} (write it like 512MiB or 20GiB)")
    size = int(Fraction(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))
    if size > MAX_SIZE:
        raise UsageError(f"{text} is more than there is: at most 8388607TiB")
    return size


def parse_duration(text: str) -> float:
    """Seconds for `60`, `60s`, `500ms`, `5m`, `12h`, `7d`; infinity for `indefinite`. Raises UsageError."""
    stripped = text.strip().lower()
    if stripped in ("indefinite", "infinite"):
        return float("inf")
    match = _DURATION.fullmatch(stripped)
    if match is None:
        raise UsageError(f"not a duration: {text!r} (write it like 60s, 5m, 7d or indefinite)")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_DURATION_S:
        raise UsageError(f"{text} is more than a century: write indefinite")
    return seconds


def format_size(size: float) -> str:
    """`size` bytes for a person: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_duration(seconds: float) -> str:
    """`seconds` for a person: `1.4 s`, `3 min 20 s`, `indefinite`."""
    if seconds == float("inf"):
        return "indefinite"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
