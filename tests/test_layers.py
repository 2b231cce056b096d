"""Dependencies point one way: server -> model -> fluid_kernels, and the gateway never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "triton", "numpy"}
FORBIDDEN = {
    "fluid_kernels": {"model", "server", "transformers", "fastapi", "redis"},
    "model": {"server", "fastapi", "redis", "uvicorn", "prometheus_client"},
    "server": {"fluid_kernels", "torch", "transformers", "triton"},
}
FOLDERS = {"fluid_kernels": "kernels/fluid_kernels", "model": "model", "server": "server"}


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FOLDERS)
def test_no_module_imports_against_the_direction(package: str) -> None:
    for file in (ROOT / FOLDERS[package]).rglob("*.py"):
        wrong = _imports(file) & FORBIDDEN[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_service_imports_the_model_in_two_places() -> None:
    """The worker's loader for everything that serves, and `fluid import mar`, which uses nothing of the service."""
    joining = {str(file.relative_to(ROOT)) for file in (ROOT / "server").rglob("*.py") if "model" in _imports(file)}
    assert joining == {"server/worker/engine/loader.py", "server/cli/import_mar.py"}


def test_the_gateway_loads_nothing_heavy() -> None:
    """In a process of its own, because this one has torch already; with every command's module."""
    code = (
        "import sys, server.gateway.app, server.client; from server.cli import main; main._parser(); "
        f"print(sorted(sys.modules.keys() & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_there_is_no_package_called_kernels() -> None:
    """transformers looks for a package of that name and would import ours in its place."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
