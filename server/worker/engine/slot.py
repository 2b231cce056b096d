"""The engine in use, shared by every part of the worker; a reload replaces it in one place."""

from collections.abc import Callable

from server.errors import EngineBroken
from server.model_info import ModelInfo
from server.worker.engine.thread import EngineThread


class EngineSlot:
    """Holds the current engine's thread and its model's description, which is missing until the first install."""

    def __init__(self, thread: EngineThread, on_news: Callable[[], None]) -> None:
        """`on_news` is called when the current engine has news of its rows."""
        self.thread = thread
        self._on_news = on_news
        self._info: ModelInfo | None = None

    @property
    def installed(self) -> bool:
        return self._info is not None

    @property
    def info(self) -> ModelInfo:
        """Raises EngineBroken before the first engine is installed."""
        if self._info is None:
            raise EngineBroken("The model was used before it was loaded.")
        return self._info

    def install(self, thread: EngineThread, info: ModelInfo) -> None:
        """Replace the engine; the old one's thread is closed."""
        if thread is not self.thread:
            self.thread.close()
        self.thread, self._info = thread, info
        thread.on_news = self._on_news
