"""Figures of the workers, through Redis, as Prometheus' text format."""

from prometheus_client.parser import text_string_to_metric_families

from server.gateway.metrics import GatewayMetrics, render
from server.jobs import JobState
from server.metrics import SECONDS, Tally
from server.queue.statistics import QueueCounts


def scrape(stats: dict[str, float]) -> dict[str, float]:
    counts = QueueCounts(submitted={"sync": 2}, states={s.value: 0 for s in JobState})
    text = render(GatewayMetrics(), counts, [], {}, stats, 0.0).decode()
    return {
        f"{s.name}{sorted(s.labels.items())}": s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_a_histogram_is_cumulative_and_ends_at_infinity() -> None:
    """Redis stores single buckets; Prometheus needs running totals, or quantiles are wrong."""
    tally = Tally()
    for value in (0.0005, 0.001, 0.0011, 1e9):
        tally.observe("fluid_queue_wait_seconds", value)
    samples = scrape(tally.drain())
    bucket = "fluid_queue_wait_seconds_bucket[('le', '{}')]"
    assert samples[bucket.format(SECONDS[0])] == 2
    assert samples[bucket.format(SECONDS[1])] == 3
    assert samples[bucket.format("+Inf")] == samples["fluid_queue_wait_seconds_count[]"] == 4


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
    tally.restore(lost)
    assert tally.drain() == {"fluid_images_total|m|total": 2}
