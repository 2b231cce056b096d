"""Every alert rule fires on figures that should fire it, and stays silent otherwise, by Prometheus' own promtool.

promtool comes with Debian's package `prometheus`; without it the rule tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
RULES = DOCKER / "alerts.yml"
STEP = 15  # seconds between two samples of a series
Series = dict[str, str]  # name{labels} -> values in promtool's notation

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool on PATH: apt-get install prometheus"
)


@dataclass(frozen=True)
class Fires:
    """Figures on which an alert fires at `at`, with these labels and this summary."""

    series: Series
    at: str
    summary: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    fires: list[Fires]
    silent: list[Series]  #: figures on which it does not fire, at any time of the first half hour


def buckets(name: str, per_step: dict[str, int], model: str = "a") -> Series:
    """A model's histogram whose cumulative buckets grow by these counts in every step."""
    return {f'{name}{{model="{model}",le="{le}"}}': f"0+{count}x120" for le, count in per_step.items()}


CASES: dict[str, Case] = {
    "FluidGatewayDown": Case(
        [
            Fires(
                {'up{job="fluid", instance="a"}': "0x40"},
                "2m",
                "A gateway does not respond to /metrics.",
                {"job": "fluid", "instance": "a"},
            ),
            Fires({}, "2m", "A gateway does not respond to /metrics.", {"job": "fluid"}),
        ],
        [{'up{job="fluid", instance="a"}': "1 0 1x118"}],
    ),
    "FluidNoWorker": Case(
        [
            Fires({'fluid_worker_up{worker="w", model="m"}': "0x40"}, "2m", "No worker is ready."),
            Fires({}, "2m", "No worker is ready."),
        ],
        [
            {
                'fluid_worker_up{worker="w", model="m"}': "0x120",
                'fluid_worker_up{worker="v", model="m"}': "1x120",
            }
        ],
    ),
    "FluidWorkerSilent": Case(
        [
            Fires(
                {
                    'fluid_worker_last_heartbeat_age_seconds{worker="w", instance="a"}': "0+15x40",
                    'fluid_worker_last_heartbeat_age_seconds{worker="w", instance="b"}': "0+15x40",
                    'fluid_worker_last_heartbeat_age_seconds{worker="v", instance="a"}': "0x40",
                },
                "3m",
                "Worker w has sent no heartbeat for 3m 0s.",
                {"worker": "w"},
            )
        ],
        # Once a second as usual; a pause of one scrape; and a worker that stopped and signed off.
        [{'fluid_worker_last_heartbeat_age_seconds{worker="w"}': "0.9 0.1 12 0.5x20 _x97"}],
    ),
    "FluidWorkersRestart": Case(
        [Fires({"fluid_worker_starts_total": "0x20 6x100"}, "10m", "Workers started 6 times in 15 minutes.")],
        [{"fluid_worker_starts_total": "0x20 4x100"}],
    ),
    "FluidQueueOld": Case(
        [
            Fires(
                {"fluid_queue_oldest_age_seconds": "0+15x120"},
                "12m",
                "The oldest job in the queue has waited for 12m 0s.",
            )
        ],
        [{"fluid_queue_oldest_age_seconds": "0+15x30 0x90"}],
    ),
    "FluidQueueFull": Case(
        # The whole burst lies between two scrapes, and the counter was at 0 before it.
        [
            Fires(
                {'fluid_jobs_rejected_total{reason="queue_full"}': "0x4 7x40"},
                "2m",
                "Requests are rejected because the queue is full.",
            )
        ],
        [
            {
                'fluid_jobs_rejected_total{reason="queue_full"}': "7x120",
                'fluid_jobs_rejected_total{reason="rate_limited"}': "0+1x120",
            }
        ],
    ),
    "FluidSlow": Case(
        [
            Fires(
                buckets("fluid_job_latency_seconds_bucket", {"1": 1, "70": 1, "120": 2, "+Inf": 2})
                # The many fast jobs of another model hide none.
                | buckets("fluid_job_latency_seconds_bucket", {"1": 9000, "70": 9000, "120": 9000, "+Inf": 9000}, "b"),
                "12m",
                "One job of a in a hundred takes more than 1m 59s.",
                {"model": "a"},
            )
        ],
        [
            buckets("fluid_job_latency_seconds_bucket", {"1": 1, "40": 2, "70": 2, "+Inf": 2}),
            buckets("fluid_job_latency_seconds_bucket", {"1": 0, "40": 0, "70": 0, "+Inf": 0}),
        ],
    ),
    "FluidRedeliveries": Case(
        [
            Fires(
                {"fluid_redeliveries_total": "0x10 20x100"},
                "5m",
                "20 jobs were requeued from silent workers in 10 minutes.",
            )
        ],
        [{"fluid_redeliveries_total": "0x10 8x100"}],
    ),
    "FluidDeadLetters": Case(
        [Fires({"fluid_dead_letter_depth": "0x4 3x40"}, "2m", "3 jobs are in the dead-letter stream.")],
        [{"fluid_dead_letter_depth": "0x120"}],
    ),
    "FluidEngineFailures": Case(
        [
            Fires(
                {
                    'fluid_engine_failures_total{stage="ar_step"}': "0x4 1x40",
                    'fluid_engine_failures_total{stage="load"}': "0x44",
                },
                "2m",
                "The engine failed in ar_step.",
                {"stage": "ar_step"},
            )
        ],
        [{'fluid_engine_failures_total{stage="ar_step"}': "5x120"}],
    ),
    "FluidErrors": Case(
        [
            Fires(
                {
                    'fluid_http_requests_total{route="/v1/jobs", method="POST", code="202"}': "0+95x60",
                    'fluid_http_requests_total{route="/v1/jobs", method="POST", code="503"}': "0+5x60",
                },
                "10m",
                "5% of the responses are server errors.",
            )
        ],
        [
            {
                'fluid_http_requests_total{route="/v1/jobs", method="POST", code="202"}': "0+100x120",
                'fluid_http_requests_total{route="/v1/jobs", method="POST", code="404"}': "0+100x120",
                'fluid_http_requests_total{route="/v1/jobs", method="POST", code="503"}': "0+1x120",
            },
            {'fluid_http_requests_total{route="/v1/jobs", method="POST", code="503"}': "0x120"},
        ],
    ),
    "FluidBackgroundFailures": Case(
        [
            Fires(
                {'fluid_background_failures_total{task="batches"}': "0x4 1x40"},
                "2m",
                "Unexpected errors in the background task batches.",
                {"task": "batches"},
            ),
            Fires(
                {
                    'fluid_worker_task_crashes_total{task="watchdog", instance="a"}': "0x4 1x40",
                    'fluid_worker_task_crashes_total{task="watchdog", instance="b"}': "0x4 1x40",
                    'fluid_background_failures_total{task="batches"}': "0x44",
                },
                "2m",
                "Unexpected errors in the background task watchdog.",
                {"task": "watchdog"},
            ),
        ],
        [
            {
                'fluid_background_failures_total{task="batches"}': "3x120",
                'fluid_worker_task_crashes_total{task="watchdog"}': "0x120",
            }
        ],
    ),
    "FluidWebhooksGivenUp": Case(
        [
            Fires(
                {'fluid_webhooks_total{outcome="given_up"}': "0x4 1x40"},
                "2m",
                "Webhooks were given up after all their attempts.",
            )
        ],
        [
            {
                'fluid_webhooks_total{outcome="given_up"}': "0x120",
                'fluid_webhooks_total{outcome="failed"}': "0+1x120",
            }
        ],
    ),
}


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_every_alert_has_a_case_that_fires_it_and_one_that_does_not() -> None:
    named = {name for file in DOCKER.rglob("*.y*ml") for name in re.findall(r"alert: (\w+)", file.read_text())}
    assert named == set(rules()) == set(CASES)
    for name, case in CASES.items():
        assert case.fires and case.silent, name


def expectation(name: str, fires: Fires) -> dict[str, Any]:
    rule = rules()[name]
    annotations = {"summary": fires.summary, "action": rule["annotations"]["action"]}
    return {
        "eval_time": fires.at,
        "alertname": name,
        "exp_alerts": [{"exp_labels": rule["labels"] | fires.labels, "exp_annotations": annotations}],
    }


def unit_tests(name: str) -> list[dict[str, Any]]:
    """The alert's tests, in promtool's format."""

    def test(series: Series, expected: list[dict[str, Any]]) -> dict[str, Any]:
        given = [{"series": each, "values": values} for each, values in series.items()]
        return {"interval": f"{STEP}s", "input_series": given, "alert_rule_test": expected}

    silence = [{"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []} for minute in range(1, 30)]
    return [
        *(test(fires.series, [expectation(name, fires)]) for fires in CASES[name].fires),
        *(test(series, silence) for series in CASES[name].silent),
    ]


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_only_then(name: str, tmp_path: Path) -> None:
    """FluidWorkerSilent could never fire: it asked for 10 s of age, and entries vanished after 5."""
    file = tmp_path / "test.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": unit_tests(name)})
    )
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_rules_and_configuration(tmp_path: Path) -> None:
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text()) | {"rule_files": [str(RULES)]}
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
