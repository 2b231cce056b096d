"""Every alert of docker/alerts.yml fires once on a real service with Debian's Prometheus, and none on a healthy one.

The rules are those that ship, with `for:` shortened. Times that no test can wait for are moved back in Redis.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
import redis
import yaml

from server.cli.demo import free_port
from server.launcher import subprocesses
from server.queue.keys import Keys
from server.settings import Settings
from tests.server.harness import MODEL, Service, child_env, http_server, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on PATH: apt-get install prometheus"),
]
RULES = Path(__file__).parents[2] / "docker" / "alerts.yml"
SECRET = "whsec_" + "A" * 40
#: A gateway with a bug in one of its background tasks.
BUGGY_GATEWAY = """
from server.gateway import queue_trouble, lifespan
from server.cli import main
async def watch_redis(queue):
    raise ZeroDivisionError
lifespan.watch_redis = watch_redis
main.main(["gateway"])
"""


class Prometheus:
    """Debian's Prometheus, which scrapes gateways every half second."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        rules = yaml.safe_load(RULES.read_text())
        self.alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule["for"] = "1s" if "for" in rule else "0s"
        targets = {"targets": [f"127.0.0.1:{port}" for port in ports]}
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "fluid", "static_configs": [targets]}],
        }
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ]
        )

    def query(self, text: str) -> list[dict[str, dict[str, str]]]:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/query", params={"query": text})
        except httpx.TransportError:
            return []
        return list(answer.json()["data"]["result"]) if answer.is_success else []

    def firing(self) -> set[str]:
        """The alerts that fire now."""
        return {each["metric"]["alertname"] for each in self.query('ALERTS{alertstate="firing"}')}

    def fired(self) -> set[str]:
        """Every alert that has fired so far."""
        text = 'count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))'
        return {each["metric"]["alertname"] for each in self.query(text)}

    def wait_for(self, *alerts: str) -> None:
        until(lambda: set(alerts) <= self.fired(), what=f"alerts {set(alerts)}")


@contextmanager
def prometheus(folder: Path, ports: list[int]) -> Iterator[Prometheus]:
    running = Prometheus(folder, ports)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.wait(timeout=60)


@contextmanager
def receiver_that_is_gone() -> Iterator[str]:
    """A webhook's receiver that wants no further attempts."""

    class Gone(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(410)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http_server(Gone) as server:
        yield f"http://127.0.0.1:{server.server_port}/"


@contextmanager
def buggy_gateway(settings: Settings) -> Iterator[None]:
    process = subprocesses.spawn([sys.executable, "-c", BUGGY_GATEWAY], env=child_env(settings))
    try:
        yield
    finally:
        subprocesses.stop(process, grace_s=10)


def test_every_alert_fires_on_a_real_service(new_service: Callable[..., Service], tmp_path: Path) -> None:
    service = new_service(
        workers=2, max_queue=20, max_attempts=5, webhook_secret=SECRET, webhook_private="allow", fake_step_ms=20.0
    )
    client, settings = service.client, service.settings
    second = replace(settings, port=free_port())
    with prometheus(tmp_path, [settings.port, second.port]) as prom, receiver_that_is_gone() as url:
        with buggy_gateway(second):
            prom.wait_for("FluidBackgroundFailures")
            until(lambda: len(prom.query("up == 1")) == 2, what="both gateways")
            settled = 'min(count_over_time(fluid_worker_up{instance=~".*:PORT"}[1m])) >= 20'
            until(lambda: prom.query(settled.replace("PORT", str(settings.port))), what="scrapes")
            until(lambda: prom.firing() == {"FluidBackgroundFailures"}, what="all else as in a healthy service")
        prom.wait_for("FluidGatewayDown")

        for _ in range(5):
            assert (
                httpx.post(f"{settings.base_url}/v1/images/generations", json={"prompt": "[raise]"}).status_code == 500
            )
        prom.wait_for("FluidErrors", "FluidEngineFailures", "FluidDeadLetters")
        client.wait(client.submit("a cat", webhook=url)["id"], timeout_s=60)
        prom.wait_for("FluidWebhooksGivenUp")

        for _ in range(5):
            service.add_worker()
        until(lambda: len(prom.query("fluid_worker_up == 1")) == 7, what="seven workers")
        held = [client.submit("a cat", num_inference_steps=20000)["id"] for _ in range(14)]
        until(lambda: all(client.job(job)["status"] == "processing" for job in held))
        for worker in service.workers:
            worker.kill()
        prom.wait_for("FluidWorkersRestart", "FluidNoWorker", "FluidWorkerSilent")

        keys = Keys(settings.namespace)
        old = client.submit("a cat", quality="low")["id"]
        with redis.Redis.from_url(settings.redis_url, decode_responses=True) as raw:
            raw.hincrbyfloat(keys.job_hash(old), "created_at", -100)
            raw.zincrby(keys.waiting_since_zset(MODEL, "normal"), -400, old)
        prom.wait_for("FluidQueueOld")
        statuses = {
            httpx.post(f"{settings.base_url}/v1/jobs", json={"prompt": "x"}).status_code
            for _ in range(settings.max_queue)
        }
        assert 429 in statuses
        prom.wait_for("FluidQueueFull")
        service.add_worker()
        prom.wait_for("FluidRedeliveries", "FluidSlow")
        assert prom.fired() == prom.alerts
        for job in held:
            client.cancel(job)
