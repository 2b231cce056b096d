"""Which pages of other origins may call the API, and which headers they may read."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_SHOWN_TO_OTHERS = (
    "x-request-id", "x-job-id", "seed", "finish-reason", "location", "retry-after", "server-timing", "x-batch-size",
    "retry-after-ms", "x-queue-time-ms", "x-inference-time-ms", "x-encode-time-ms", "x-overhead-time-ms", "x-kernels",
    "x-warnings",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
)  # fmt: skip


def allow_origins(app: FastAPI, origins: str) -> None:
    """CORS for pages of these origins, by commas. Without credentials: keys travel in a header, never as cookies."""
    wanted = [origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip()]
    if wanted:
        app.add_middleware(
            CORSMiddleware, allow_origins=wanted, allow_methods=["*"], allow_headers=["*"],
            expose_headers=_SHOWN_TO_OTHERS, max_age=3600,
        )  # fmt: skip
