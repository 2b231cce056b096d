"""Progress display: one changing line on a terminal, one line per change in a log."""

import shutil
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Status:
    """A status line such as `starting: loading the model [00:08]`; elsewhere, a line whenever the text changes."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = ""
        self._bar = tqdm(desc=title, bar_format="{desc} [{elapsed}]", **_terminal()) if sys.stderr.isatty() else None

    def __enter__(self) -> "Status":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, text: str) -> None:
        line = f"{self._title}: {text}"
        if self._bar is not None:
            self._bar.set_description_str(line)  # even if the text is the same: the elapsed time has changed
        elif text != self._last:
            print(line, file=sys.stderr, flush=True)
        self._last = text


def progress_bar(title: str, total: int, unit: str) -> "tqdm[None]":
    """A progress bar; without a terminal, one line with the total."""
    if not sys.stderr.isatty():
        print(f"{title}: {total} {unit}s", file=sys.stderr, flush=True)
    return tqdm(total=total, desc=title, unit=unit, disable=None, **_terminal())


def _terminal() -> dict[str, Any]:
    """The terminal's size, given explicitly: tqdm draws nothing where a container's terminal reports 0 by 0."""
    columns, lines = shutil.get_terminal_size()
    return {"file": sys.stderr, "ncols": columns, "nrows": lines}
