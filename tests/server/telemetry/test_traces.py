"""Traces of a running service, received by a collector: one trace over gateway and worker, and nothing secret in it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from server.launcher.embedded_valkey import EmbeddedValkey
from server.settings import Settings
from tests.server.conftest import fake_settings
from tests.server.harness import Hold, Service, fluid, running_service, until
from tests.server.telemetry.collector import Collector, ReceivedSpan, collecting

pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
pytestmark = pytest.mark.service

PROMPT = "an apple nobody may read about"
NEGATIVE = "a pear to be kept secret"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
WORKER_SPANS = ("queue", "generate_content fake", "admit", "decode", "encode", "finish")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(valkey: EmbeddedValkey, collector: Collector) -> Iterator[Service]:
    with running_service(replace(fake_settings(valkey), traces_url=collector.url, traces_ratio=0.0)) as service:
        yield service


def post(service: Service, path: str, traceparent: str = "", **body: object) -> httpx.Response:
    headers = {"traceparent": traceparent} if traceparent else {}
    body = {"prompt": PROMPT, **body}
    return httpx.post(service.settings.base_url + path, json=body, headers=headers)


def test_one_trace_leads_from_the_caller_to_the_last_byte(traced: Service, collector: Collector) -> None:
    response = post(
        traced, "/v1/images/generations", f"00-{TRACE}-{PARENT}-01", n=2, seed=7, num_inference_steps=8,
        negative_prompt=NEGATIVE,
    )  # fmt: skip
    assert response.status_code == 200
    request_name = "POST /v1/images/generations"
    spans = collector.trace(TRACE, request_name, "enqueue", *WORKER_SPANS, "store")
    request, attempt = spans[request_name], spans["generate_content fake"]
    assert (request.parent_id, request.kind, request.service) == (PARENT, 2, "fluid-serve-gateway")
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["fluid.request_id"] == response.headers["x-request-id"]
    assert spans["enqueue"].parent_id == spans["queue"].parent_id == attempt.parent_id == request.span_id
    assert (attempt.kind, attempt.service) == (5, "fluid-serve-worker")
    assert {name: spans[name].parent_id for name in ("admit", "decode", "encode", "store", "finish")} == dict.fromkeys(
        ("admit", "decode", "encode", "store", "finish"), attempt.span_id
    )
    expected = {
        "gen_ai.operation.name": "generate_content", "gen_ai.output.type": "image", "gen_ai.request.model": "fake",
        "gen_ai.request.seed": 7, "gen_ai.request.choice.count": 2, "fluid.job.outcome": "succeeded",
        "fluid.job.attempt": 1, "gen_ai.response.id": response.headers["x-job-id"],
    }  # fmt: skip
    assert expected.items() <= attempt.attributes.items()
    assert len([span for span in collector.spans(TRACE) if span.name == "decode"]) == 2
    assert spans["queue"].ended <= attempt.began <= spans["admit"].began <= spans["encode"].began <= attempt.ended
    for span in collector.spans(TRACE):
        assert span.began <= span.ended and not span.failed
        assert all(span.began <= at <= span.ended for at, _, _ in span.events)


def test_steps_are_events_of_the_image(traced: Service, collector: Collector) -> None:
    trace = "a" * 32
    assert post(traced, "/v1/images/generations", f"00-{trace}-{PARENT}-01", num_inference_steps=64).status_code == 200
    decode = collector.trace(trace, "decode")["decode"]
    steps = [details["fluid.step"] for _, name, details in decode.events if name == "step"]
    assert steps == sorted(set(steps)) and 1 <= len(steps) <= 16


def test_an_asynchronous_job_belongs_to_the_request_that_made_it(traced: Service, collector: Collector) -> None:
    trace = "b" * 32
    assert post(traced, "/v1/jobs", f"00-{trace}-{PARENT}-01").status_code == 202
    spans = collector.trace(trace, "POST /v1/jobs", *WORKER_SPANS)
    assert spans["generate_content fake"].parent_id == spans["POST /v1/jobs"].span_id


def test_what_is_not_sampled_sends_nothing(traced: Service, collector: Collector) -> None:
    """FLUID_TRACES_RATIO is 0: only a sampled traceparent makes a trace. Malformed ones fail no request."""
    before = len(collector.spans())
    for sent in ("", f"00-{'c' * 32}-{PARENT}-00", "00-zz", f"00-{'0' * 32}-{PARENT}-01", "x" * 5000):
        assert post(traced, "/v1/images/generations", sent).status_code == 200
    marker = "d" * 32
    assert post(traced, "/v1/images/generations", f"00-{marker}-{PARENT}-01").status_code == 200
    collector.trace(marker, "POST /v1/images/generations", *WORKER_SPANS)
    assert {span.trace_id for span in collector.spans()[before:]} - {TRACE, "a" * 32, "b" * 32} == {marker}


def test_no_prompt_is_in_any_span(traced: Service, collector: Collector) -> None:
    trace = "e" * 32
    post(traced, "/v1/images/generations", f"00-{trace}-{PARENT}-01", negative_prompt=NEGATIVE, user="ann@example.org")
    collector.trace(trace, *WORKER_SPANS)
    sent = b"".join(collector.bodies)
    assert sent and not [word for word in (PROMPT, NEGATIVE, "ann@example.org") if word.encode() in sent]


def test_latencies_name_traces_as_exemplars(traced: Service) -> None:
    trace = "f" * 31 + "1"
    assert post(traced, "/v1/images/generations", f"00-{trace}-{PARENT}-01").status_code == 200
    url = f"{traced.settings.base_url}/metrics"
    openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0, */*;q=0.1"}
    page = httpx.get(url, headers=openmetrics)
    assert page.headers["content-type"].startswith("application/openmetrics-text")

    def exemplars(name: str) -> set[str]:
        page = httpx.get(url, headers=openmetrics).text
        (family,) = [each for each in text_string_to_metric_families(page) if each.name == name]
        return {sample.exemplar.labels["trace_id"] for sample in family.samples if sample.exemplar}

    assert trace in exemplars("fluid_http_request_duration_seconds")
    for name in ("fluid_job_latency_seconds", "fluid_queue_wait_seconds"):
        until(lambda name=name: trace in exemplars(name), what=f"an exemplar of {name}")
    plain = httpx.get(url)
    assert plain.headers["content-type"].startswith("text/plain") and "trace_id" not in plain.text


def test_a_job_that_fails_over_has_a_span_of_each_attempt(
    valkey: EmbeddedValkey, collector: Collector, new_service: Callable[..., Service], hold: Hold
) -> None:
    """A worker that drains hands its job back; the trace follows the job to the next one."""
    trace = "9" * 32
    service = new_service(traces_url=collector.url, drain_s=0.0)
    assert post(service, "/v1/jobs", f"00-{trace}-{PARENT}-01", prompt=hold.prompt()).status_code == 202
    until(lambda: "fluid_jobs_inflight 1.0" in httpx.get(f"{service.settings.base_url}/metrics").text, what="the lease")
    service.workers[0].terminate()
    assert service.workers[0].wait(timeout=60) == 0
    hold.release()
    service.add_worker()

    def outcomes() -> list[str]:
        attempts = [span for span in collector.spans(trace) if span.name.startswith("generate_content")]
        return sorted(span.attributes["fluid.job.outcome"] for span in attempts)

    # The draining worker may take the job once more before it ends.
    until(lambda: set(outcomes()) == {"requeued", "succeeded"}, what="both attempts")


def test_each_line_of_a_batch_is_a_trace_linked_to_the_request(
    valkey: EmbeddedValkey, collector: Collector, new_service: Callable[..., Service]
) -> None:
    """Lines of batches used to have no trace at all."""
    trace = "7" * 32
    service = new_service(traces_url=collector.url, traces_ratio=1.0)
    lines = [
        {"custom_id": f"{i}", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": PROMPT, "seed": i}}
        for i in range(3)
    ]
    url = f"{service.settings.base_url}/v1"
    upload = {"file": ("in.jsonl", "\n".join(map(json.dumps, lines)))}
    file = httpx.post(f"{url}/files", files=upload, data={"purpose": "batch"}).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/images/generations", "completion_window": "24h"}
    batch = httpx.post(f"{url}/batches", json=body, headers={"traceparent": f"00-{trace}-{PARENT}-01"}).json()

    def of_lines() -> list[ReceivedSpan]:
        found = [span for span in collector.spans() if span.attributes.get("fluid.batch") == batch["id"]]
        return sorted(found, key=lambda span: span.attributes["fluid.batch.line"])

    until(lambda: len(of_lines()) == 3, what="a span of each line")
    assert [span.attributes["fluid.batch.line"] for span in of_lines()] == [1, 2, 3]
    for span in of_lines():
        assert (span.name, span.parent_id, span.links) == ("batch line", "", [trace])
        worker = collector.trace(span.trace_id, *WORKER_SPANS)
        assert worker["generate_content fake"].parent_id == span.span_id
        assert worker["generate_content fake"].attributes["gen_ai.response.id"] == span.attributes["gen_ai.response.id"]


def test_a_collector_that_fails_costs_no_request(valkey: EmbeddedValkey, new_service: Callable[..., Service]) -> None:
    with collecting() as broken:
        broken.status = 503
        service = new_service(traces_url=broken.url, traces_ratio=1.0)
        assert all(post(service, "/v1/images/generations").status_code == 200 for _ in range(5))
        until(lambda: broken.requests > 0, what="an attempt to export")
        assert post(service, "/v1/images/generations").status_code == 200


def test_log_lines_are_json_with_trace_and_job(valkey: EmbeddedValkey, collector: Collector) -> None:
    trace = "8" * 32
    settings = replace(fake_settings(valkey), traces_url=collector.url, log_format="json", log_prompts="no")
    lines = _logged(settings, trace)
    assert {line["component"] for line in lines} == {"gateway", "worker"}
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    ended = [line for line in lines if "succeeded" in line["message"]]
    assert [line["trace_id"] for line in ended] == [trace] and ended[0]["job_id"] in ended[0]["message"]
    assert PROMPT not in json.dumps(lines)


def _logged(settings: Settings, trace: str) -> list[dict[str, str]]:
    """Run a gateway and a worker for one image, and return what they logged."""
    import sys

    from tests.server.harness import child_env

    started = [
        subprocess.Popen(
            [sys.executable, "-m", "server.cli", role], env=child_env(settings), stderr=subprocess.PIPE, text=True
        )
        for role in ("gateway", "worker")
    ]
    try:
        url = settings.base_url

        def ready() -> bool:
            try:
                return httpx.get(f"{url}/health/ready").status_code == 200
            except httpx.TransportError:
                return False

        until(ready, what="the service")
        body = {"prompt": PROMPT}
        httpx.post(f"{url}/v1/images/generations", json=body, headers={"traceparent": f"00-{trace}-{PARENT}-01"})
    finally:
        for process in started:
            process.terminate()
        texts = [process.communicate(timeout=60)[1] for process in started]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_without_the_extra_the_start_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """An endpoint that nothing is sent to would be noticed too late."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry.sdk'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for role in ("gateway", "worker"):
        done = fluid(replace(settings, traces_url="http://127.0.0.1:9/v1/traces"), role)
        assert done.returncode == 2 and re.search(r"pip install '\.\[otel\]' in a clone", done.stderr), done.stderr
