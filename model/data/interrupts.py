"""Ctrl-C in a command that runs for minutes or hours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # the exit status of a command that SIGINT ended, as shells give it


@contextmanager
def interruptible(remedy: str) -> Iterator[None]:
    """End with one line and the exit status INTERRUPTED on Ctrl-C; `remedy` says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted: {remedy}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
