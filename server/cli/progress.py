"""What a person who waits sees: one changing line on a terminal, a line per change anywhere else."""

import shutil
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Status:
    """A line like `starting: loading the model [00:08]`; in a log file only what is new."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = ""
        self._line = tqdm(desc=title, bar_format="{desc} [{elapsed}]", **_place()) if sys.stderr.isatty() else None

    def __enter__(self) -> "Status":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.close()

    def say(self, text: str) -> None:
        shown = f"{self._title}: {text}"
        if self._line is not None:
            self._line.set_description_str(shown)  # also when nothing changed: the clock goes on
        elif text != self._last:
            print(shown, file=sys.stderr, flush=True)
        self._last = text


def steps(title: str, total: int) -> "tqdm[None]":
    """A bar on a terminal; elsewhere one line that says what is being done."""
    if not sys.stderr.isatty():
        print(f"{title}: {total} steps", file=sys.stderr, flush=True)
    return tqdm(total=total, desc=title, unit="step", disable=None, **_place())


def _place() -> dict[str, Any]:
    """The size is given: tqdm shows nothing at all on a terminal that says 0 by 0, as some containers' do."""
    columns, lines = shutil.get_terminal_size()
    return {"file": sys.stderr, "ncols": columns, "nrows": lines}
