"""Telling systemd how a unit of Type=notify is; without systemd, nothing happens.

Source: sd_notify(3); a datagram of lines to the socket that NOTIFY_SOCKET names, `@` for an abstract one.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send `lines` like `READY=1`. Never raises: a mount is no worse for nobody hearing of it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto("\n".join(lines).encode("utf-8", "surrogateescape"), address)
