"""An engine whose model is shared among devices: once they no longer agree on a step, only a new group can help."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from server.errors import EngineBroken
from server.worker.engine.protocol import Engine, RowRequest

T = TypeVar("T")


class ShardedEngine:
    """Passes every call on; a group that has broken is EngineBroken, so that the worker requeues its jobs and ends."""

    def __init__(self, engine: Engine, broken: type[Exception]) -> None:
        """`broken` is what the engine raises when its group has broken."""
        self._engine = engine
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def warm_up(self, report: Callable[[int, int], None]) -> None:
        self._guard(lambda: self._engine.warm_up(report))

    def admit(self, requests: Sequence[RowRequest]) -> list[int]:
        return self._guard(lambda: self._engine.admit(requests))

    def step(self) -> list[int]:
        return self._guard(self._engine.step)

    def restore(self, request: RowRequest, state: bytes) -> int:
        return self._guard(lambda: self._engine.restore(request, state))

    def _guard(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except self._broken as error:
            raise EngineBroken(f"The devices no longer share the model: {error}.") from error
