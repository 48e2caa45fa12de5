"""Downloads by other libraries: Ctrl-C stops them, and so does a server that falls silent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from pipeline.system.interrupts import at_once

SILENCE_S = 30.0
FAULTS = (OSError, RuntimeError, HTTPException)
"""What torchvision and torch.hub raise where a file cannot be fetched, or is another."""


@contextmanager
def downloading() -> Iterator[None]:
    """Fetch files inside; a connection without an answer for `SILENCE_S` seconds is a fault."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        with at_once():
            yield
    finally:
        socket.setdefaulttimeout(before)
