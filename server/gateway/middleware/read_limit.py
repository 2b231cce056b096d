"""A limit of reads: a key that polls without pause would take a gateway's processor from all others.

Counted in this process alone: a read costs a gateway less than a counter in Redis would.
"""

import math
import time

from server.errors import RateLimited

WINDOW_S = 60.0
MAX_NAMES = 10_000  # beyond it, those whose allowance is full are forgotten


class ReadLimit:
    """Reads per minute of each name; the generic cell rate algorithm, as in rate_limit.lua."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._full_at: dict[str, float] = {}  #: by name, when its allowance is full again

    def take(self, name: str, whose: str) -> None:
        """Count a read.

        Raises:
            RateLimited: none is left in this minute. `whose` is for its text.
        """
        if not self._per_minute:
            return
        each, now = WINDOW_S / self._per_minute, time.monotonic()
        full_at = max(self._full_at.get(name, 0.0), now) + each
        if (wait_s := full_at - now - WINDOW_S) > 1e-6:
            raise RateLimited(
                f"{whose} is limited to {self._per_minute} reads a minute (FLUID_READ_RATE_LIMIT). Try later, and wait "
                "with 'Prefer: wait' or an event stream instead of polling.",
                retry_after_s=max(1, math.ceil(wait_s)),
            )
        if len(self._full_at) >= MAX_NAMES and name not in self._full_at:
            self._full_at = {other: at for other, at in self._full_at.items() if at > now}
        self._full_at[name] = full_at
