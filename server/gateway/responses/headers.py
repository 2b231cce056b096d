"""Response headers of a job: its id, warnings and timing."""

import json

from server.jobs import JobRecord


def warning_headers(job_id: str, warnings: list[str]) -> dict[str, str]:
    """Return the job id, and the warnings as an ASCII JSON list.

    Long warnings are truncated, because some proxies buffer only a few KiB of headers.
    """
    headers = {"x-job-id": job_id}
    if warnings:
        headers["x-warnings"] = json.dumps([w if len(w) <= 200 else w[:199] + "…" for w in warnings])
    return headers


def timing_headers(record: JobRecord) -> dict[str, str]:
    """Return the time of each stage, the batch size and the kernels; empty until the job has metrics."""
    if record.metrics is None:
        return {}
    m = record.metrics
    rest = max(0.0, m.total_time - m.queue_time - m.predict_time - m.encode_time)
    stages = {"queue": m.queue_time, "inference": m.predict_time, "encode": m.encode_time, "overhead": rest}
    headers = {f"x-{name}-time-ms": f"{seconds * 1000:.1f}" for name, seconds in stages.items()}
    headers["x-batch-size"] = str(m.batch_size)
    headers |= {"x-kernels": m.kernels} if m.kernels else {}
    headers["Server-Timing"] = ", ".join(f"{k};dur={v * 1000:.1f}" for k, v in stages.items())
    return headers
