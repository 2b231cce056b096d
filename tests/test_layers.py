"""Imports point one way, between packages and between folders, and the gateway never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"server": ROOT / "server", "model": ROOT / "model", "fluid_kernels": ROOT / "kernels" / "fluid_kernels"}
HEAVY = {"torch", "transformers", "triton", "numpy"}
FORBIDDEN = {
    "fluid_kernels": {"model", "server", "transformers", "fastapi", "redis"},
    "model": {"server", "fastapi", "redis", "uvicorn", "prometheus_client"},
    "server": {"fluid_kernels", "torch", "transformers", "triton"},
}
#: The files of server/ that import the model: one for everything that serves, and `fluid import`, which converts
#: weights and uses nothing of the service.
JOINTS = {"server/worker/engine/loader.py", "server/cli/import_weights.py"}
#: The order of the folders, from the top down: a file imports from its own folder, and from folders on lines below it.
#: Folders on one line do not import each other. "." stands for the files directly in the package's folder.
ORDER = {
    "server": [
        "cli",
        "gateway, worker, launcher",
        "queue, client",
        "images, telemetry, storage",
        ".",
        "errors",
    ],
    "model": [
        "evaluation",
        "training, conversion",
        "inference",
        "checkpoint",
        "networks",
        "data",
        ".",
    ],
    "fluid_kernels": [
        "tools, heads",
        "loops",
        "ops",
        ".",
    ],
}
MOST_FILES = 12
MOST_LINES = 300


def _modules(package: str) -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    base = SOURCES[package].parent
    return {".".join(f.relative_to(base).with_suffix("").parts): f for f in sorted(SOURCES[package].rglob("*.py"))}


def _imported(file: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in it, `if TYPE_CHECKING` included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _edges(package: str) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports."""
    modules = _modules(package)
    found: dict[str, set[str]] = {}
    for name, file in modules.items():
        targets = set()
        for full in _imported(file):
            for candidate in (full, full.rpartition(".")[0], f"{full}.__init__"):
                if candidate in modules:
                    targets.add(candidate)
                    break
        found[name] = targets - {name}
    return found


def _level(package: str, module: str) -> tuple[int, str]:
    """(line of ORDER, name on that line) of a module: that of its file if it is named there, else of its folder."""
    first = module.split(".")[1] if "." in module else "__init__"
    folder = first if (SOURCES[package] / first).is_dir() else "."
    lines = [line.split(", ") for line in ORDER[package]]
    for name in (first, folder):
        for number, names in enumerate(lines):
            if name in names:
                return number, name
    raise AssertionError(f"{module}: the folder {folder!r} has no place in ORDER[{package!r}]")


@pytest.mark.parametrize("package", SOURCES)
def test_no_package_imports_against_the_direction(package: str) -> None:
    for name, file in _modules(package).items():
        wrong = {full.split(".")[0] for full in _imported(file)} & FORBIDDEN[package]
        assert not wrong, f"{name} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", SOURCES)
def test_folders_import_downwards_only(package: str) -> None:
    wrong = []
    for module, targets in _edges(package).items():
        above = _level(package, module)
        for target in targets:
            below = _level(package, target)
            if below != above and below[0] <= above[0]:
                wrong.append(f"{module} imports {target}")
    assert not wrong, f"against the order {ORDER[package]}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", SOURCES)
def test_no_circular_imports(package: str) -> None:
    edges, done = _edges(package), set[str]()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "circular imports: " + " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("package", SOURCES)
def test_a_folder_fits_on_a_screen(package: str) -> None:
    """Only its authors could find their way in a folder of 78 files."""
    for folder in [SOURCES[package], *(f for f in SOURCES[package].rglob("*") if f.is_dir())]:
        files = [f for f in folder.glob("*.py") if f.name not in ("__init__.py", "__main__.py")]
        assert len(files) <= MOST_FILES, f"{folder.relative_to(ROOT)} has {len(files)} files, {MOST_FILES} at most"
        if files:
            text = (folder / "__init__.py").read_text()
            assert ast.get_docstring(ast.parse(text)), f"{folder}/__init__.py does not say what is here"


@pytest.mark.parametrize("package", SOURCES)
def test_no_file_is_too_long_to_read(package: str) -> None:
    long = {name: n for name, f in _modules(package).items() if (n := len(f.read_text().splitlines())) > MOST_LINES}
    assert not long, f"over {MOST_LINES} lines: {long}"


def test_benchmarks_import_no_tests_and_fit_on_a_screen() -> None:
    """The benchmark of storage took its S3 server from the tests; the folder had 15 files."""
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert not [str(file) for file in files if "tests" in {full.split(".")[0] for full in _imported(file)}]
    counts = Counter(file.parent for file in files if file.name not in ("__init__.py", "__main__.py"))
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_FILES}


def test_only_two_server_files_import_the_model() -> None:
    joining = {
        str(file.relative_to(ROOT))
        for file in _modules("server").values()
        if "model" in {full.split(".")[0] for full in _imported(file)}
    }
    assert joining == JOINTS


def test_the_gateway_loads_nothing_heavy() -> None:
    """It runs in a separate process, because this one has torch already, and covers the modules of all commands."""
    code = (
        "import sys, server.gateway.app, server.client; from server.cli import main; main._parser(); "
        f"print(sorted(sys.modules.keys() & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_there_is_no_package_called_kernels() -> None:
    """transformers looks for a package of that name and would import ours in its place."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
