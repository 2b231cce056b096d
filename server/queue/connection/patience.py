"""Time limits for Redis' answers that a busy event loop does not run out by itself.

When the loop comes round late, because hundreds of requests arrived at once or the machine is overloaded, an answer may
have been waiting in the socket for long, and a plain timeout cancels the command before it is read.
"""

import asyncio
from types import TracebackType
from typing import Any

from redis.exceptions import TimeoutError as RedisTimeoutError

LATE_S = 0.02  # a timer that fires later than this tells of a busy loop: the time begins again
LONGEST_S = 5.0


class Patience:
    """A time limit that begins again while the event loop itself is late, up to LONGEST_S in all."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._longest_s = max(LONGEST_S, timeout_s)
        self.restart()

    def restart(self) -> None:
        """Forget that the time has begun again before."""
        self.began = self._first = self._loop.time()

    def begin_again(self, due: float) -> bool:
        """Begin again if a timer that was due at `due` has just fired late; return whether it did."""
        now = self._loop.time()
        late = now - due > LATE_S and now < self._first + self._longest_s
        if late:
            self.began = now
        return late


class AnswerWithin:
    """Like asyncio.timeout, but patient."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._loop, self._patience = asyncio.get_running_loop(), Patience(self._timeout_s)
        await self._timeout.__aenter__()
        self._wait(self._timeout_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _wait(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds  # the timer has no time of its own if it is due at once (uvloop)
        self._timer = self._loop.call_later(seconds, self._check)

    def _check(self) -> None:
        if self._patience.begin_again(self._due):
            self._wait(self._timeout_s)
        else:
            self._timeout.reschedule(self._loop.time())


class PatientConnection:
    """Part of a connection class of redis-py: `answer_timeout_s` limits connecting and each answer."""

    def __init__(self, *, answer_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._answer_timeout_s = answer_timeout_s

    async def _connect(self) -> None:
        async with AnswerWithin(self._answer_timeout_s):
            await super()._connect()  # type: ignore[misc]

    async def read_response(self, disable_decoding: bool = False, timeout: float | None = None, **options: Any) -> Any:
        """Read an answer; `timeout` is the caller's own limit, for messages that nobody owes.

        Raises:
            RedisTimeoutError: there was none in time.
        """
        if timeout is not None:
            return await super().read_response(disable_decoding, timeout, **options)  # type: ignore[misc]
        try:
            async with AnswerWithin(self._answer_timeout_s):
                return await super().read_response(disable_decoding, **options)  # type: ignore[misc]
        except TimeoutError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RedisTimeoutError("Timeout reading from Redis") from error


def patient(connection_class: type[Any]) -> type[Any]:
    """Return this class of redis-py with the time limits of this module."""
    return type(f"Patient{connection_class.__name__}", (PatientConnection, connection_class), {})
