"""locks/, what the images install: the versions that are tested, each with hashes, and nothing of a machine in them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "locks"
REMEDY = "run `make lock`"
Pins = dict[str, tuple[str, list[str]]]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: Path) -> Pins:
    """{package: (version, hashes)} of a requirements file."""
    found: Pins = {}
    for entry in file.read_text().replace("\\\n", " ").splitlines():
        if entry.strip() and not entry.startswith("#"):
            name, version = re.match(r"([\w.-]+)==([^\s;]+)", entry).groups()  # type: ignore[union-attr]
            found[canonical(name)] = version, re.findall(r"--hash=(sha256:[0-9a-f]{64})", entry)
    return found


def required(*extras: str) -> set[str]:
    """The packages that pyproject.toml requires for these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonical(re.split(r"[^\w.-]", line)[0]) for line in lines}


@pytest.mark.parametrize("name", ["gateway", "worker", "build"])
def test_every_pin_has_hashes(name: str) -> None:
    locked = pins(LOCKS / f"{name}.txt")
    assert locked and all(hashes for _, hashes in locked.values()), REMEDY


def test_locks_agree_with_the_constraints() -> None:
    """One version for tests, another for images would leave the images untested."""
    tested = {name: version for name, (version, _) in pins(ROOT / "constraints.txt").items()}
    for file in ("gateway", "worker"):
        locked = {name: version for name, (version, _) in pins(LOCKS / f"{file}.txt").items()}
        differing = {
            name: (version, tested[name]) for name, version in locked.items() if tested.get(name, version) != version
        }
        assert not differing, f"{REMEDY}: {differing}"


def test_locks_hold_what_is_required() -> None:
    gateway, worker = pins(LOCKS / "gateway.txt"), pins(LOCKS / "worker.txt")
    assert required("otel", "storage") <= set(gateway), REMEDY
    assert required("otel", "storage", "worker", "mar") <= set(gateway) | set(worker), REMEDY
    assert not set(gateway) & set(worker), "a package is in both"
    assert not {"torch", "numpy", "transformers"} & set(gateway)
    system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert {canonical(re.split(r"[^\w.-]", line)[0]) for line in system["requires"]} <= set(pins(LOCKS / "build.txt"))
    assert (LOCKS / "build.in").read_text().splitlines()[1:] == system["requires"]


def test_pages_and_errors_install_extras_from_a_clone() -> None:
    """`pip install 'fluid-serve[mar]'` finds nothing: no index has this package, or has another one by that name."""
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("server/**/*.py"), *ROOT.glob("model/**/*.py")]
    named = set()
    for file in files:
        text = file.read_text()
        assert "install 'fluid-serve" not in text, file
        named.update(name for found in re.findall(r"install '\.\[([\w,]+)\]'", text) for name in found.split(","))
    assert {"worker", "mar", "ray", "storage", "otel", "eval"} <= named <= extras


def test_workers_elsewhere_can_serve_what_the_image_can() -> None:
    """Ray's nodes lacked diffusers, obstore and OpenTelemetry, and the image diffusers: workers ended with status 2."""
    (recipe,) = re.findall(r"LOCK\) pyproject.toml (.*) -o locks/worker.txt", (ROOT / "Makefile").read_text())
    in_image = set(re.findall(r"--extra (\w+)", recipe))
    assert {"worker", "mar"} <= in_image
    on_ray = (ROOT / "docs/deploy.md").read_text().partition("## On a Ray cluster")[2]
    (extras,) = re.findall(r"pip install '\.\[([\w,]+)\]'", on_ray)
    assert set(extras.split(",")) == in_image | {"ray"}


def test_the_text_encoder_has_hashes() -> None:
    """It is installed by a command of its own, since it declares packages that nothing here uses."""
    ((_, hashes),) = pins(ROOT / "requirements-text-encoder.txt").values()
    assert hashes


def test_locks_name_no_index_and_no_machine() -> None:
    for file in LOCKS.iterdir():
        for line in file.read_text().splitlines():
            assert not re.match(r"\s*(--(?!hash)|-[a-z]\s)|.*(://|file:|/work|/opt)", line), f"{file.name}: {line}"
