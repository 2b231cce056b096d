"""Prometheus and Grafana files: every metric, label, service and command in them must exist in this project."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from server.cli import main
from server.errors import RequestError
from server.gateway.metrics import GatewayMetrics, _skipped, render
from server.gateway.responses.result_cache import ResultCache
from server.jobs import JobState
from server.metrics import WORKER_SPECS, Tally
from server.queue.registry import WorkerInfo
from server.queue.statistics import QueueCounts
from server.settings import Settings
from tests.docker.test_docker import DOCKER, ROOT, compose, routes


def exposed() -> dict[str, set[str]]:
    """Return {sample: its labels} for every metric that /metrics can show."""
    gateway = GatewayMetrics()
    gateway.requests.labels("/", "GET", "200").inc()
    gateway.duration.labels("/", "GET").observe(1)
    gateway.webhooks.labels("delivered").inc()
    gateway.rejected.labels("queue_full").inc()
    gateway.bugs.labels("batches").inc()
    tally = Tally()
    for name, spec in WORKER_SPECS.items():
        (tally.observe(name, 1.0, "x") if spec.buckets else tally.count(name, "x")) if spec.label else (
            tally.observe(name, 1.0) if spec.buckets else tally.count(name)
        )
    counts = QueueCounts(
        submitted={"job": 1}, states={state.value: 1 for state in JobState}, waiting={("m", "normal"): 1},
        oldest_age_s=1, oldest_age_by_model={"m": 1}, waiting_work={"m": 1}, dead_letter_depth=1,
        expired=1, redeliveries=1, fenced=1, dead_lettered=1,
    )  # fmt: skip
    worker = WorkerInfo(id="w", state="ready", model="m", max_rows=1, rows=1, started_at=0.0)
    text = render(gateway, counts, [worker], {}, tally.drain(), 0.0).decode()
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for name, labels in re.findall(r"^(fluid_\w+)(?:\{(.*)\})? ", text, flags=re.M):
        found.setdefault(name, {"instance", "job"}).update(re.findall(r'(\w+)="', labels))
    return found


def expressions() -> list[str]:
    """Return every PromQL expression of the alerts and the dashboard."""
    alerts = yaml.safe_load((DOCKER / "alerts.yml").read_text())
    dashboard = json.loads((DOCKER / "grafana/dashboards/fluid-serve.json").read_text())
    return [rule["expr"] for group in alerts["groups"] for rule in group["rules"]] + [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]


def test_every_metric_and_label_in_an_expression_exists() -> None:
    known = exposed()
    assert len(expressions()) > 30
    for expression in expressions():
        assert expression.count("(") == expression.count(")"), expression
        names = set(re.findall(r"\bfluid_\w+|\bup\b", expression))
        assert names, expression
        labels = {each for name in names if name in known for each in known[name]}
        for name in names:
            assert name in known, f"{name} is not exposed: {expression}"
        used = {word.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for word in group.split(",")}
        used |= set(re.findall(r"[{,]\s*(\w+)=~?\"", expression))
        assert used <= labels, f"{used - labels}: {expression}"


def test_label_values_in_expressions_exist(request_errors: set[type[RequestError]]) -> None:
    codes = {each.code for each in request_errors}
    for expression in expressions():
        for reason in re.findall(r'reason="(\w+)"', expression):
            assert reason in codes
        for outcome in re.findall(r'outcome="(\w+)"', expression):
            assert f'"{outcome}"' in (ROOT / "server/gateway/webhooks.py").read_text()
        for job in re.findall(r'job="(\w+)"', expression):
            assert job in {config["job_name"] for config in prometheus()["scrape_configs"]}


def prometheus() -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / "prometheus.yml").read_text()))


def test_what_is_each_gateways_own_is_named() -> None:
    """max() of a gateway's own counter hides all others; background failures were missing from the list to sum."""
    gateway = GatewayMetrics()
    ResultCache(60, gateway.registry)
    families = [*gateway.registry.collect(), *_skipped()]
    own = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    own = {"fluid_http_*" if name.startswith("fluid_http_") else name for name in own}
    assert len(own) == 7
    page = (ROOT / "docs/deploy.md").read_text().partition("`max()` them.")[2].partition("`sum()` them")[0]
    comment = (DOCKER / "prometheus.yml").read_text().partition("sum() only of")[2].partition("dns_sd_configs")[0]
    for text in (page, comment):
        assert set(re.findall(r"fluid_[a-z_]+\*?", text)) == own


def test_prometheus_scrapes_a_compose_service_and_reads_mounted_rules() -> None:
    (config,) = prometheus()["scrape_configs"]
    (found,) = config["dns_sd_configs"]
    assert set(found["names"]) <= set(compose()["services"]) and found["port"] == Settings().port
    assert config["metrics_path"] in routes()
    mounted = {volume.split(":")[1] for volume in compose()["services"]["prometheus"]["volumes"]}
    assert set(prometheus()["rule_files"]) <= mounted


def test_every_alert_has_a_summary_and_an_action() -> None:
    for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"]:
        names = [rule["alert"] for rule in group["rules"]]
        assert len(set(names)) == len(names)
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert set(rule["annotations"]) == {"summary", "action"}
            for command in re.findall(r"`fluid ([^`]+)`", rule["annotations"]["action"]):
                main._parser().parse_args(command.split())
            for name in re.findall(r"FLUID_\w+", json.dumps(rule)):
                assert name in Settings().to_env()


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    host, port = re.findall(r"http://(\w+):(\d+)", source["url"])[0]
    assert any(p.endswith(f":{port}") for p in compose()["services"][host]["ports"])
    dashboard = json.loads((DOCKER / "grafana/dashboards/fluid-serve.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/fluid.yml").read_text())["providers"][0]
    mounted = {v.split(":")[1]: v.split(":")[0] for v in compose()["services"]["grafana"]["volumes"]}
    assert (DOCKER / mounted[provider["options"]["path"]] / "fluid-serve.json").exists()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
