"""The environment of the real clients: made once, outside the repository, and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REQUIREMENTS, PACKAGES = HERE / "requirements.txt", HERE / "package.json"
INSTALL_S = 600


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the Python clients and Node, and a folder with the JavaScript clients."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def command(self, language: str, call: str) -> list[str | Path]:
        """The command that makes one call of a client."""
        if language == "python":
            return [self.bin / "python", HERE / "python_clients.py", call]
        script = self.folder / "node" / "node_clients.mjs"  # imports look for packages beside the file
        shutil.copy(HERE / "node_clients.mjs", script)
        return [self.bin / "node", script, call]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    pins = REQUIREMENTS.read_bytes() + PACKAGES.read_bytes() + sys.version.encode()
    return Path(base) / "fluid-serve" / f"test-clients-{hashlib.sha256(pins).hexdigest()[:16]}"


def _install(folder: Path) -> None:
    venv, node = folder / "venv", folder / "node"
    node.mkdir()
    shutil.copy(PACKAGES, node)
    env = os.environ | {"PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    steps: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", venv],
        [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS],
        [venv / "bin" / "npm", "install", "--prefix", node, "--no-audit", "--no-fund", "--no-package-lock"],
    ]
    for step in steps:
        subprocess.run(step, env=env, check=True, capture_output=True, text=True, timeout=INSTALL_S)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the environment; skip the test, with the reason, where it cannot be installed."""
    folder = _cache()
    if not (folder / "complete").exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # A virtual environment cannot be moved, so an interrupted one is made again in its place.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _install(folder)
            (folder / "complete").touch()
        except (OSError, subprocess.SubprocessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            pytest.skip(f"the clients of tests/clients cannot be installed into {folder}: {' '.join(reason)}")
    return Environment(folder)
