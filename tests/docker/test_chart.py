"""The Helm chart's files: every setting, path, metric and name in them exists in this project. No tool is needed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import server
from server.settings import Settings, describe
from tests.docker.chart_tools import CHART
from tests.docker.test_docker import routes
from tests.docker.test_monitoring import exposed

TEMPLATES = sorted((CHART / "templates").rglob("*.yaml"))
EXAMPLES = sorted(file.name for file in (CHART / "ci").glob("*.yaml"))
TEXT = "\n".join(file.read_text() for file in [*TEMPLATES, CHART / "templates" / "_helpers.tpl"])
SETTINGS = {name for name, _, _ in describe()}


def values(name: str = "") -> dict[str, Any]:
    """A file of ci/, or the chart's own values."""
    return dict(yaml.safe_load((CHART / "ci" / name if name else CHART / "values.yaml").read_text()))


def schema() -> dict[str, Any]:
    return dict(json.loads((CHART / "values.schema.json").read_text()))


def test_the_chart_serves_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == server.__version__


def test_the_schema_names_every_setting() -> None:
    """`make format` writes them, so that a misspelt setting is refused before a pod exits with 2."""
    file = CHART.parent / "write_settings.py"
    spec = importlib.util.spec_from_file_location("write_settings", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert schema()["$defs"]["settings"]["propertyNames"]["enum"] == module.names(), "run `make format`"
    assert module.OWN <= SETTINGS
    secrets = {name for name in SETTINGS if Settings.__dataclass_fields__[name[6:].lower()].metadata["secret"]}
    assert secrets <= module.OWN, "a secret would lie in the values"


def test_settings_that_templates_name_exist() -> None:
    named = set(re.findall(r"FLUID_[A-Z_]*[A-Z]", TEXT))
    assert named >= {"FLUID_REDIS_URL", "FLUID_CHECKPOINT", "FLUID_DRAIN_S", "FLUID_API_KEYS_FILE"}
    assert named - {"FLUID"} <= SETTINGS
    for file in (CHART / "values.yaml", *(CHART / "ci").iterdir()):
        assert set(re.findall(r"FLUID_[A-Z_]*[A-Z]", file.read_text())) <= SETTINGS, file.name


@pytest.mark.parametrize("name", EXAMPLES)
def test_settings_of_the_examples_are_valid(name: str) -> None:
    given = values(name)
    models = given["models"].values()
    for each in (given, given.get("gateway", {}), given.get("modelDefaults", {}), *(m or {} for m in models)):
        Settings.from_env(each.get("settings", {}))


def test_models_of_the_examples_are_shipped_or_lie_in_a_volume() -> None:
    shipped = {folder.name for folder in (Path(__file__).parents[2] / "model" / "checkpoints").iterdir()}
    for name in EXAMPLES:
        for model, given in values(name)["models"].items():
            checkpoint = (given or {}).get("checkpoint", model)
            mounts = [mount["mountPath"] for mount in (given or {}).get("volumeMounts", [])]
            assert checkpoint in shipped or any(checkpoint.startswith(f"{mount}/") for mount in mounts)


def test_paths_and_ports_exist() -> None:
    paths = set(re.findall(r"path: (/[a-z]+(?:/[a-z]+)*)|:\d+(/health/\w+)", TEXT))
    found = {path for pair in paths for path in pair if path} | set(
        schema()["properties"]["gateway"]["properties"]["readinessPath"]["enum"]
    )
    assert found - {"/"} == {"/health/live", "/health/ready", "/metrics"} <= routes()
    assert re.findall(r"containerPort: (\d+)", (CHART / "templates/gateway.yaml").read_text()) == [str(Settings().port)]
    assert "/health/ready" in (CHART / "templates/tests/health.yaml").read_text()


def test_metrics_and_labels_of_the_triggers_exist() -> None:
    known = exposed()
    queries = re.findall(r"query: (.+)", TEXT)
    assert len(queries) == 3
    for query in queries:
        names = set(re.findall(r"fluid_\w+", query))
        labels = set(re.findall(r"{(\w+)=", query)) | set(re.findall(r"(?:by|on) \((\w+)\)", query))
        assert names and names <= set(known), query
        assert labels <= {label for name in names for label in known[name]}, query


def test_the_rules_are_those_of_compose() -> None:
    """A link, which helm follows: two copies would drift apart."""
    assert (CHART / "files/alerts.yml").resolve() == CHART.parents[1] / "alerts.yml"
    names = {rule["alert"] for rule in yaml.safe_load((CHART / "files/alerts.yml").read_text())["groups"][0]["rules"]}
    for name in EXAMPLES:
        assert set(values(name).get("prometheusRule", {}).get("omit", [])) <= names


def test_the_bundled_redis_is_that_of_compose() -> None:
    compose = yaml.safe_load((CHART.parents[1] / "compose.yaml").read_text())["services"]["redis"]
    assert values()["redis"]["bundled"]["image"] == compose["image"]
    *words, option, _ = compose["command"]
    text = (CHART / "templates/redis.yaml").read_text()
    assert ", ".join(word if word not in ("yes", "") else f'"{word}"' for word in words) in text
    assert option == "--maxmemory" and f"{option}, {{{{ .maxmemory }}}}" in text


def test_defaults_of_the_values_are_those_of_the_code() -> None:
    given = values()
    assert given["drainSeconds"] == Settings().drain_s
    assert f'"FLUID_MAX_ROWS" "{Settings().max_rows}"' in TEXT
    user = re.findall(r"useradd --uid (\d+)", (CHART.parents[2] / "Dockerfile").read_text())
    assert re.findall(r"runAsUser: (\d+)", TEXT) == user


def test_every_value_is_in_the_schema() -> None:
    def check(given: Any, rules: dict[str, Any], at: str) -> None:
        if "$ref" in rules:
            rules = schema()["$defs"][rules["$ref"].rpartition("/")[2]]
        for name, value in given.items() if isinstance(given, dict) and "properties" in rules else ():
            assert name in rules["properties"], f"{at}.{name}"
            check(value, rules["properties"][name], f"{at}.{name}")

    check(values(), schema(), "values")
    assert set(values()) == set(schema()["properties"]) - {"global"}
