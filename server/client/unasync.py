"""Generate sync.py from aio.py, the only one to edit: `python -m server.client.unasync`, part of `make format`."""

import re
import subprocess
import sys
from pathlib import Path

SOURCE, TARGET = (Path(__file__).with_name(name) for name in ("aio.py", "sync.py"))
NOTICE = "# Generated from aio.py by `make format`: edit that file.\n"
RENAMES = {
    "asynchronous": "synchronous",
    "AsyncFluidClient": "FluidClient",
    "AsyncClient": "Client",
    "AsyncGenerator": "Generator",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "asyncio": "time",  # for sleep; sorting the imports removes the second `import time`
}


def synchronous(source: str) -> str:
    """Drop `async` and `await`, rename, then let ruff sort the imports and reformat the shorter lines."""
    code = re.sub(r"\b(async|await) ", "", source)
    code = re.sub(r"\w+", lambda word: RENAMES.get(word[0], word[0]), code)
    for command in (["check", "--quiet", "--fix", "--unsafe-fixes", "--select=I,UP028"], ["format"]):
        words = [sys.executable, "-m", "ruff", *command, f"--stdin-filename={TARGET}", "-"]
        code = subprocess.run(words, input=code, capture_output=True, text=True, check=True).stdout
    return NOTICE + code


if __name__ == "__main__":
    TARGET.write_text(synchronous(SOURCE.read_text()))
