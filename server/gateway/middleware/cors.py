"""CORS: which web pages of other origins may call the API, and which response headers they may read."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_EXPOSED_HEADERS = (
    "x-request-id", "x-job-id", "seed", "finish-reason", "location", "retry-after", "server-timing", "x-batch-size",
    "retry-after-ms", "x-queue-time-ms", "x-inference-time-ms", "x-encode-time-ms", "x-overhead-time-ms", "x-kernels",
    "x-warnings", "x-cache",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
)  # fmt: skip


def split_origins(origins: str) -> list[str]:
    """Split FLUID_CORS_ORIGINS into origins without a final slash."""
    return [origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip()]


def allow_origins(app: FastAPI, origins: str) -> None:
    """Allow pages of these comma-separated origins. Without credentials: keys travel in a header, never in a cookie."""
    allowed = split_origins(origins)
    if allowed:
        app.add_middleware(
            CORSMiddleware, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS, max_age=3600,
        )  # fmt: skip
