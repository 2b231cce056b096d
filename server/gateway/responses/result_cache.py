"""The result cache: a request with a seed gets the images of an equal one of the same API key, without a worker."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter

from server import __version__
from server.jobs import JobInput
from server.model_info import ModelInfo
from server.queue.job_queue import Accepted, Outcome, Submission

#: What neither changes the images nor belongs to one request alone. `user` stays: it is a caller's own caller.
_WITHOUT_EFFECT = ("owner", "priority", "deadline_ms", "partial_images", "result_ttl_s", "webhook", "batch", "edit")


class ResultCache:
    """Decides which requests take part, and counts those that found images."""

    def __init__(self, keep_s: int, registry: CollectorRegistry) -> None:
        """`keep_s` is FLUID_RESULT_CACHE_S, 0 for no cache."""
        self._keep_s = keep_s
        self._requests = Counter(
            "fluid_result_cache_requests",
            "Requests that could be answered from the result cache: hit or miss.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("hit", "miss"):
            self._requests.labels(outcome)

    def mark(
        self, submission: Submission, request: Request, models: Mapping[str, ModelInfo], *, seeded: bool
    ) -> Submission:
        """Return the submission with its key in the cache if it has one.

        It has none if the caller gave no seed or wants a new job (`Cache-Control: no-cache`, a webhook), or if the
        model's weights have no hash.
        """
        job = submission.job
        checkpoint = models[job.model].checkpoint_sha256 if job.model in models else ""
        wants_new = any(word in request.headers.get("cache-control", "").lower() for word in ("no-cache", "no-store"))
        if not (self._keep_s and seeded and checkpoint) or wants_new or job.webhook:
            return submission
        return replace(submission, cache_key=request_hash(job), checkpoint=checkpoint)

    def headers(self, submission: Submission, accepted: Accepted) -> dict[str, str]:
        """Count the outcome and return the header that names it; neither for a repetition, which finds its own job."""
        if not submission.cache_key or accepted.outcome is Outcome.KNOWN:
            return {}
        outcome = "hit" if accepted.outcome is Outcome.CACHED else "miss"
        self._requests.labels(outcome).inc()
        return {"x-cache": outcome}


def request_hash(job: JobInput) -> str:
    """Hash what decides the images and their files: every resolved parameter, the source image, this version."""
    given: dict[str, Any] = {name: value for name, value in job.parameters().items() if name not in _WITHOUT_EFFECT}
    given |= {"edit": job.edit.recipe() if job.edit else None, "version": __version__}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
