"""README.md: its Python and curl examples run; on every page, links to files have targets."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def _blocks(language: str, containing: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    return [block for block in found if containing in block]


def test_there_are_examples_to_run() -> None:
    assert len(_blocks("python", ADDRESS)) >= 1 and len(_blocks("sh", "curl")) >= 1


@pytest.mark.parametrize("block", _blocks("python", ADDRESS))
def test_python_examples(block: str, live: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace(ADDRESS, live), "README.md", "exec"), {"__name__": "readme"})
    assert any(path.stat().st_size > 500 for path in tmp_path.iterdir()), "the example saved no image"


@pytest.mark.parametrize("block", _blocks("sh", "curl"))
def test_curl_examples(block: str, live: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace(ADDRESS, live).replace("curl ", "curl -sSf ")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"-o (\S+\.png)", block):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_first_image_comes_from_the_command_below_it(tmp_path: Path) -> None:
    """It must be the same image up to another processor's rounding, not merely a similar one."""
    command = next(block for block in _blocks("sh", "fluid generate") if "a rocket above a castle" in block)
    words = shlex.split(command.replace("out/rocket.png", str(tmp_path / "rocket.png")))[1:]
    subprocess.run([sys.executable, "-m", "server.cli", *words], cwd=ROOT, check=True, timeout=300)
    with Image.open(ROOT / "docs/images/scenes.webp") as strip, Image.open(tmp_path / "rocket.png") as image:
        shown = np.asarray(strip.convert("RGB").crop((6, 6, 134, 134)), np.float64)
        error = np.square(shown - np.asarray(image.convert("RGB"), np.float64)).mean()
    assert error < 255**2 / 10**3, "less than 30 dB: a different image"


def test_the_readme_stays_short() -> None:
    """It once had 492 lines, half of them a list of files, too many to read to the end."""
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("package", ["server", "model"])
def test_every_folder_is_listed(package: str) -> None:
    folders = [path.parent.name for path in (ROOT / package).glob("*/__init__.py")]
    missing = [name for name in folders if f"{name}/]" not in README]
    assert folders and not missing, f"not in the README's table of folders: {missing}"


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=str
)
def test_links_to_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert (ROOT / page.parent / target).exists(), f"{page} links to {target}"
