"""Figures of the workers, through Redis, as Prometheus' text format."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import httpx
import redis
from prometheus_client.parser import text_string_to_metric_families

import server
from server.gateway.app import requests_counted
from server.gateway.metrics import GatewayMetrics, render
from server.jobs import JobState
from server.metrics import SECONDS, WORKER_SPECS, WORKER_TASKS, Tally
from server.model_info import ModelInfo
from server.queue.keys import Keys
from server.queue.statistics import QueueCounts
from server.worker.engine.fake import FakeEngine
from server.worker.heartbeat import Heartbeat
from tests.server.harness import Service

INFO = ModelInfo.from_mapping(FakeEngine(1, 0).info())


def scrape(stats: dict[str, float]) -> dict[str, float]:
    counts = QueueCounts(submitted={"sync": 2}, states={s.value: 0 for s in JobState})
    gateway = GatewayMetrics()
    gateway.expect_requests(requests_counted())
    gateway.expect_tasks(["batches", "watcher"])
    return parsed(render(gateway, counts, [], {INFO.id: INFO}, stats, 0.0).decode())


def parsed(text: str) -> dict[str, float]:
    return {
        f"{s.name}{sorted(s.labels.items())}": s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_a_histogram_is_cumulative_and_ends_at_infinity() -> None:
    """Redis stores single buckets; Prometheus needs running totals, or quantiles are wrong."""
    tally = Tally()
    for value in (0.0005, 0.001, 0.0011, 1e9):
        tally.observe("fluid_queue_wait_seconds", value, "fake")
    samples = scrape(tally.drain())
    bucket = "fluid_queue_wait_seconds_bucket[('le', '{}'), ('model', 'fake')]"
    assert samples[bucket.format(SECONDS[0])] == 2
    assert samples[bucket.format(SECONDS[1])] == 3
    assert samples[bucket.format("+Inf")] == samples["fluid_queue_wait_seconds_count[('model', 'fake')]"] == 4


def test_labels_and_counters() -> None:
    """One family per metric, one series per label."""
    tally = Tally()
    tally.count("fluid_images_total", "fake", 3)
    tally.observe("fluid_stage_duration_seconds", 0.5, "encode")
    samples = scrape(tally.drain())
    assert samples["fluid_images_total[('model', 'fake')]"] == 3
    assert samples["fluid_stage_duration_seconds_sum[('stage', 'encode')]"] == 0.5
    assert samples["fluid_jobs_submitted_total[('kind', 'sync')]"] == 2


def test_queue_depth_by_model_and_priority() -> None:
    """One figure for all models and classes used to hide a queue without a worker behind one that moved."""
    counts = QueueCounts({}, {s.value: 0 for s in JobState}, waiting={("a", "high"): 2, ("b", "low"): 3})
    text = render(GatewayMetrics(), counts, [], {}, {}, 0.0).decode()
    assert 'fluid_queue_depth{model="a",priority="high"} 2.0' in text
    assert 'fluid_queue_depth{model="b",priority="low"} 3.0' in text


def test_a_failed_heartbeat_loses_no_figures() -> None:
    """Figures that were drained but not delivered are restored, and added to those counted in the meantime."""
    tally = Tally()
    tally.count("fluid_images_total", "m")
    lost = tally.drain()
    assert tally.drain() == {}
    tally.count("fluid_images_total", "m")
    tally.restore(lost, {})
    assert tally.drain() == {"fluid_images_total|m|total": 2}


def test_a_failed_heartbeat_loses_no_exemplar() -> None:
    """They are restored as figures are, but do not replace those of the meantime."""
    tally, wait = Tally(), "fluid_queue_wait_seconds"
    tally.observe(wait, 0.001, "normal", trace_id="a" * 32)
    tally.observe(wait, 7.0, "normal", trace_id="b" * 32)
    lost = tally.drain(), tally.drain_exemplars()
    tally.observe(wait, 7.0, "normal", trace_id="c" * 32)
    tally.restore(*lost)
    found = tally.drain_exemplars()
    assert sorted(text.split()[0][0] for text in found.values()) == ["a", "c"] and tally.drain_exemplars() == {}


def test_what_is_observed_during_a_heartbeat_is_reported_by_the_next() -> None:
    """The exemplars of that time were dropped: they were cleared when the heartbeat's answer came."""
    tally, wait, sent = Tally(), "fluid_queue_wait_seconds", []

    class SlowRegistry:
        async def heartbeat(self, worker: object, stats: Mapping[str, float], exemplars: Mapping[str, str]) -> None:
            sent.append((stats, exemplars))
            if len(sent) == 1:
                tally.observe(wait, 0.001, "normal", trace_id="a" * 32)

    engine, scheduler = SimpleNamespace(installed=False), SimpleNamespace(max_rows=1, rows=(), work_left=0)
    heartbeat = Heartbeat("w", SlowRegistry(), engine, scheduler, tally)  # type: ignore[arg-type]
    asyncio.run(heartbeat.beat())
    asyncio.run(heartbeat.beat())
    (first, first_exemplars), (second, second_exemplars) = sent
    assert not first and not first_exemplars
    assert second and [text.split()[0] for text in second_exemplars.values()] == ["a" * 32]


def test_known_label_sets_begin_at_zero() -> None:
    """Counters were born with their first value, so increase() was 0 for the first burst and FluidQueueFull silent."""
    samples = scrape({})
    for name in (
        "fluid_jobs_rejected_total[('reason', 'queue_full')]",
        "fluid_webhooks_total[('outcome', 'given_up')]",
        "fluid_background_failures_total[('task', 'batches')]",
        "fluid_background_failures_total[('task', 'watcher')]",
        "fluid_http_requests_total[('code', '500'), ('method', 'POST'), ('route', '/v1/images/generations')]",
        "fluid_http_requests_total[('code', '202'), ('method', 'PUT'), ('route', '/v1/jobs/{job_id}')]",
        "fluid_jobs_submitted_total[('kind', 'batch')]",
        "fluid_images_total[('model', 'fake')]",
        "fluid_worker_starts_total[]",
        "fluid_engine_failures_total[('stage', 'canary')]",
        "fluid_worker_task_crashes_total[('task', 'lease renewal')]",
        "fluid_job_latency_seconds_bucket[('le', '+Inf'), ('model', 'fake')]",
        "fluid_stage_duration_seconds_count[('stage', 'encode')]",
    ):
        assert samples[name] == 0, name


def test_each_service_begins_the_counters_of_its_tasks_and_routes(service: Service) -> None:
    text = httpx.get(f"{service.settings.base_url}/metrics").text
    for task in ("watcher", "sweeper", "webhooks", "batches", "redis"):
        assert f'fluid_background_failures_total{{task="{task}"}} 0.0' in text
    assert 'fluid_http_requests_total{code="504",method="POST",route="/v1/images/edits"} 0.0' in text


def test_tasks_and_stages_that_workers_count_are_known() -> None:
    """A name that is counted but not declared would be born with its first value again."""
    source = "".join(path.read_text() for path in (Path(server.__file__).parent / "worker").rglob("*.py"))
    stages = set(re.findall(r'isolate_failure\(\s*"(\w+)"', source)) | {"load", "canary"}
    assert stages == set(WORKER_SPECS["fluid_engine_failures_total"].values)
    timed = set(re.findall(r'"fluid_stage_duration_seconds", [^"]*"(\w+)"', source))
    assert timed == set(WORKER_SPECS["fluid_stage_duration_seconds"].values)
    loop = (Path(server.__file__).parent / "worker" / "loop.py").read_text()
    assert all(f'"{task}": self.' in loop for task in WORKER_TASKS)
    assert len(re.findall(r'"[\w ]+": self\.\w+\.run', loop)) == len(WORKER_TASKS)


def test_a_lost_worker_stays_visible(service: Service) -> None:
    """Its entry vanished after 5 s, so FluidWorkerSilent, which asks for 10 s of age, could never fire."""
    name = "fluid_worker_last_heartbeat_age_seconds[('worker', 'gone')]"
    counts = QueueCounts({}, {s.value: 0 for s in JobState})
    text = render(GatewayMetrics(), counts, [], {}, {}, 100.0, {"gone": 40.0, "ahead": 101.0}).decode()
    samples = parsed(text)
    assert samples[name] == 60 and samples[name.replace("gone", "ahead")] == 0
    keys = Keys(service.settings.namespace)
    with redis.Redis.from_url(service.settings.redis_url) as client:
        now = client.time()[0]
        client.zadd(keys.last_seen_zset, {"gone": now - 30, "long gone": now - 700})
        client.set(keys.worker_model("gone"), "fake")
        samples = parsed(httpx.get(f"{service.settings.base_url}/metrics").text)
        client.zrem(keys.last_seen_zset, "gone", "long gone")
    assert 30 <= samples[name] < 60
    up = {series: value for series, value in samples.items() if series.startswith("fluid_worker_up[")}
    assert sorted(up.values()) == [0, 1]
    assert [series for series, value in up.items() if "'gone'" in series and "'fake'" in series and value == 0]
    assert name.replace("gone", "long gone") not in samples
