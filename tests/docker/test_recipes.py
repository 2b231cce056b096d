"""The recipes of docs/deploy.md: every path, command, limit and time in them agrees with the code."""

from __future__ import annotations

import re
from typing import Any

import yaml

from server.cli import main
from server.gateway.middleware.body_limit import UPLOAD_LIMITS
from server.settings import Settings
from tests.docker.test_docker import ROOT, routes

PAGE = (ROOT / "docs/deploy.md").read_text()


def blocks(language: str, containing: str) -> list[str]:
    return [text for text in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S) if containing in text]


def test_a_gateway_on_kserve_is_not_cut_off() -> None:
    """KServe ends requests after 60 s unless told otherwise, and Kubernetes a pod 30 s after SIGTERM."""
    (text,) = blocks("yaml", "InferenceService")
    predictor: dict[str, Any] = yaml.safe_load(text)["spec"]["predictor"]
    assert predictor["timeout"] > Settings().request_timeout_s
    assert predictor["terminationGracePeriodSeconds"] >= Settings().drain_s + 10
    (container,) = predictor["containers"]
    assert main._parser().parse_args(container["args"][1:]).command == "gateway"
    assert container["ports"] == [{"containerPort": Settings().port}]
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health/live", "port": Settings().port}
    assert "/health/live" in routes()
    given = {each["name"]: each.get("value", "redis://queue") for each in container["env"]}
    assert Settings.from_env(given).wants_keys


def test_proxies_let_through_what_the_gateway_takes() -> None:
    """Uploads to /v1/responses were not named, and $host without its port made links that lead nowhere."""
    before = PAGE.partition("## The proxy in front")[2].partition("```")[0]
    named = {path: int(mib) << 20 for mib, path in re.findall(r"(\d+) MiB (?:through )?to\s`(/[\w/]+)`", before)}
    assert set(named) == {"/v1/files", "/v1/responses", "/v1/images/edits"}
    assert all(UPLOAD_LIMITS[path] <= limit < UPLOAD_LIMITS[path] + (1 << 20) for path, limit in named.items())
    (nginx,) = blocks("nginx", "proxy_pass")
    (text,) = blocks("yaml", "nginx.ingress")
    ingress = {name.split("/")[1]: value for name, value in yaml.safe_load(text)["metadata"]["annotations"].items()}
    (size,) = re.findall(r"client_max_body_size (\w+);", nginx)
    assert int(size.removesuffix("m")) << 20 >= max(UPLOAD_LIMITS.values()) and ingress["proxy-body-size"] == size
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", nginx)
    assert int(seconds) > Settings().request_timeout_s and ingress["proxy-read-timeout"] == seconds
    assert "proxy_buffering off;" in nginx and ingress["proxy-buffering"] == "off"
    assert "Host $http_host;" in nginx
    (closed,) = re.findall(r"location = (\S+) { return 403; }", nginx)
    assert closed == "/metrics" and closed in routes()


def test_workers_on_ray_use_the_cpus_that_they_reserve() -> None:
    """FLUID_THREADS=0 reserves one CPU and uses all of the node."""
    (text,) = blocks("sh", "--on ray")
    given = dict(re.findall(r"(FLUID_\w+)=(\S+)", text))
    assert Settings.from_env(given).threads > 0
    (words,) = re.findall(r"fluid (serve [^#]+)", text)
    assert main._parser().parse_args(words.split()).command == "serve"
