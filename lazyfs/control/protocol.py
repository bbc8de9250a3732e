"""What goes over the control socket: one JSON object a line, a reply for each request, in order.

Request: `{"verb": "status", "args": {…}}`. Reply: `{"ok": true, "result": {…}}` or `{"ok": false, "error": "…"}`.
Pure: no socket, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lazyfs.core.errors import ControlError

MAX_LINE = 1024**2
"""Bytes of a line with its end: more than any status, and little enough to hold for every client."""


@dataclass(frozen=True, slots=True)
class Request:
    """One thing asked of a daemon."""

    verb: str
    args: Mapping[str, Any] = field(default_factory=dict)


def encode_request(request: Request) -> bytes:
    """The line that asks. Raises ControlError if it is too long."""
    return _line({"verb": request.verb, "args": dict(request.args)})


def decode_request(line: bytes) -> Request:
    """The request in a line. Raises ControlError, with a message for the one who sent it, if there is none."""
    document = _document(line)
    verb, args = document.get("verb"), document.get("args", {})
    if not isinstance(verb, str) or not isinstance(args, dict):
        raise ControlError("malformed request: it needs a verb, and args that are an object")
    return Request(verb, args)


def encode_result(result: Mapping[str, Any]) -> bytes:
    """The line that answers. Raises ControlError if it is too long."""
    return _line({"ok": True, "result": dict(result)})


def encode_error(message: str) -> bytes:
    """The line that refuses; a very long message is cut."""
    return _line({"ok": False, "error": message[:4096]})


def decode_reply(line: bytes) -> dict[str, Any]:
    """The result in a line. Raises ControlError with the daemon's reason if it refused."""
    document = _document(line)
    if document.get("ok") is True and isinstance(document.get("result"), dict):
        result: dict[str, Any] = document["result"]
        return result
    if document.get("ok") is False and isinstance(document.get("error"), str):
        raise ControlError(document["error"])
    raise ControlError("malformed reply")


def _line(document: dict[str, Any]) -> bytes:
    line = json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > MAX_LINE:
        raise ControlError(f"a message of {len(line)} bytes is too long for the control socket")
    return line


def _document(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ControlError("malformed: not JSON") from error
    if not isinstance(document, dict):
        raise ControlError("malformed: not an object")
    return document
