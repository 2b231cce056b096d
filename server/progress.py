"""What a person who waits sees: one changing line on a terminal, a line per change anywhere else."""

import sys
from types import TracebackType

from tqdm import tqdm


class Status:
    """A line like `starting: loading the model [00:08]`; in a log file only what is new."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = ""
        self._line = tqdm(bar_format="{desc} [{elapsed}]", file=sys.stderr) if sys.stderr.isatty() else None

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
    return tqdm(total=total, desc=title, unit="step", file=sys.stderr, disable=None)
