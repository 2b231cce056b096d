"""Where the states of a sharded run are.

OUT/state/00000120/.metadata       written last: without it the state is not complete
OUT/state/00000120/*.distcp        the ranks' parts
OUT/state/00000120/progress.json   step, seconds, history
"""

from __future__ import annotations

from pathlib import Path


def state_folder(state_file: Path) -> Path:
    """The folder of sharded states that takes the place of a single process's state file."""
    return state_file.with_suffix("")


def newest(state_file: Path) -> Path | None:
    """The newest complete sharded state, or None."""
    complete = sorted(file.parent for file in state_folder(state_file).glob("*/.metadata"))
    return complete[-1] if complete else None
