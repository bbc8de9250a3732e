"""Parsers of option values: text to final units, or UsageError with the reason in one line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from lazyfs.core.errors import UsageError
from lazyfs.core.parts import MAX_PART_SIZE, MIN_PART_SIZE
from lazyfs.core.units import parse_duration, parse_size

MIN_MEMORY = 16 * 1024**2
"""Below this not even two parts of an upload fit into the budget."""


def parse_switch(text: str) -> bool:
    """True or False for the usual words."""
    word = text.strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise UsageError(f"neither true nor false: {text!r}")


def parse_text(text: str) -> str:
    """Any text but none."""
    if not text.strip():
        raise UsageError("empty")
    if "\0" in text:
        raise UsageError("it has a NUL in it")
    return text.strip()


def parse_path(text: str) -> Path:
    """An absolute path; `~` is the home directory."""
    try:
        return Path(os.path.abspath(Path(parse_text(text)).expanduser()))
    except RuntimeError as error:
        raise UsageError(f"no such user's home directory: {text!r}") from error


def parse_path_or_none(text: str) -> Path | None:
    """An absolute path, or None for `none`."""
    return None if text.strip().lower() == "none" else parse_path(text)


def parse_snapshot(text: str) -> str:
    """Where a snapshot of an index lies: s3://BUCKET/KEY, or an absolute path."""
    scheme, separator, rest = parse_text(text).partition("://")
    if not separator:
        return str(parse_path(text))
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key or key.endswith("/"):
        raise UsageError(f"neither a file nor an object: {text!r} (write PATH or s3://BUCKET/KEY)")
    return f"s3://{rest}"


def parse_events(text: str) -> str:
    """Where changes are told: minio, or sqs: and the URL of a queue."""
    word, separator, url = parse_text(text).partition(":")
    if word.lower() == "minio" and not separator:
        return "minio"
    if word.lower() == "sqs" and re.fullmatch(r"https?://[^/?#\s@]+/[^?#\s]+", url) is not None:
        return f"sqs:{url}"
    raise UsageError("neither minio nor a queue (write it like sqs:https://sqs.REGION.amazonaws.com/ACCOUNT/NAME)")


def parse_mode(text: str) -> int:
    """Permission bits for octal digits, as chmod has them."""
    if re.fullmatch(r"(0o)?[0-7]{1,4}", text.strip()) is None:
        raise UsageError(f"not a mode: {text!r} (write it in octal, like 0644)")
    return int(text.strip(), 8)


def parse_id(text: str) -> int:
    """A user or group number."""
    number = int(text) if re.fullmatch(r"[0-9]{1,10}", text.strip()) else 2**32
    if number >= 2**32 - 1:  # the last one means "no id" to the kernel
        raise UsageError(f"not a numeric id: {text!r}")
    return number


def parse_memory(text: str) -> int:
    """Bytes of memory, enough to work with."""
    size = parse_size(text)
    if size < MIN_MEMORY:
        raise UsageError(f"{text} is too little: at least 16MiB")
    return size


def parse_part_size(text: str) -> int:
    """Bytes of a part of a multipart upload, within the limits of S3."""
    size = parse_size(text)
    if not MIN_PART_SIZE <= size <= MAX_PART_SIZE:
        raise UsageError(f"{text} is not possible: S3 takes parts of 5MiB to 5GiB")
    return size


def parse_ttl(text: str) -> float:
    """Seconds until something expires, at least one; infinity for `indefinite`."""
    seconds = parse_duration(text)
    if seconds < 1:
        raise UsageError(f"{text} is too short: at least 1s")
    return seconds


def parse_time_limit(text: str) -> float:
    """Seconds that something may last: some, and not for ever."""
    seconds = parse_duration(text)
    if not 0 < seconds < math.inf:
        raise UsageError(f"{text} is no time to wait: more than nothing, and not for ever")
    return seconds


def parse_port(text: str) -> int:
    """A TCP port; 0 for whichever is free."""
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text.strip()) else 2**16
    if number >= 2**16:
        raise UsageError(f"not a port: {text!r} (0 to 65535)")
    return number


def parse_endpoint(text: str) -> str:
    """An http or https URL of a server, without credentials. Never repeats the URL: it may hold a password."""
    match = re.fullmatch(r"https?://([^/?#\s]+)/?([^?#\s]*)", text.strip())
    if match is None:
        raise UsageError("not the URL of a server (write it like https://s3.example.com or http://127.0.0.1:9000)")
    if "@" in match[1]:
        raise UsageError("credentials do not belong in the URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return text.strip().rstrip("/")


def parse_account(text: str) -> str:
    """The twelve digits of an AWS account."""
    if re.fullmatch(r"[0-9]{12}", text.strip()) is None:
        raise UsageError(f"not an AWS account: {text!r} (twelve digits)")
    return text.strip()


def parse_storage_class(text: str) -> str:
    """A storage class as S3 spells it."""
    word = text.strip().upper().replace("-", "_")
    if re.fullmatch(r"[A-Z0-9_]+", word) is None:
        raise UsageError(f"not a storage class: {text!r} (like STANDARD_IA)")
    return word


def parse_encryption(text: str) -> str:
    """Server-side encryption as S3 spells it."""
    words = {word.lower(): word for word in ("AES256", "aws:kms", "aws:kms:dsse")}
    try:
        return words[text.strip().lower()]
    except KeyError:
        raise UsageError(f"not one of {', '.join(words.values())}: {text!r}") from None


def one_of(*words: str) -> Callable[[str], str]:
    """A parser that takes these words and no others."""

    def parse_word(text: str) -> str:
        if text.strip().lower() not in words:
            raise UsageError(f"not one of {', '.join(words)}: {text!r}")
        return text.strip().lower()

    return parse_word


BARE_NUMBERS = (parse_size, parse_memory, parse_part_size, parse_duration, parse_ttl, parse_id, parse_port)
"""Parsers whose TOML value may be a bare number. A mode may not: 644 would be read in decimal."""
