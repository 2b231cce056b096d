"""Creating batches: the same Idempotency-Key is the same batch."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from server.gateway.lifespan import open_services
from server.queue.job_queue import JobQueue
from server.queue.redis_client import redis_time
from server.settings import Settings
from tests.server.harness import Service, until_async

LINE = b'{"custom_id": "a", "body": {"prompt": "a cat", "num_inference_steps": 2}}'
URL = "/v1/images/generations"


def upload(http: httpx.Client, **fields: str) -> httpx.Response:
    return http.post("/v1/files", files={"file": ("in.jsonl", LINE)}, data={"purpose": "batch"} | fields)


def batch_of(file_id: str, **more: Any) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"} | more


def test_the_same_key_returns_the_same_batch(service: Service) -> None:
    """Another body with the same key used to return the first batch, and a retry after the file was deleted, a 404."""
    with httpx.Client(base_url=service.settings.base_url, headers={"Idempotency-Key": "once-7"}) as http:
        file_id = upload(http).json()["id"]
        first = http.post("/v1/batches", json=batch_of(file_id, metadata={"a": "1", "b": "2"}))
        assert first.status_code == 200
        other = http.post("/v1/batches", json=batch_of(file_id, metadata={"a": "2"}))
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert http.delete(f"/v1/files/{file_id}").status_code == 200
        again = http.post("/v1/batches", json=batch_of(file_id, metadata={"b": "2", "a": "1"}))
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert http.post("/v1/batches", json=batch_of("file-none")).status_code == 422


@pytest.mark.anyio
async def test_concurrent_batches_with_one_key(service: Service) -> None:
    """Both used to get a 200, and one of the two files was never processed."""
    async with httpx.AsyncClient(base_url=service.settings.base_url) as http:
        for i in range(10):
            files = [
                (await http.post("/v1/files", files={"file": ("x", LINE)}, data={"purpose": "batch"})).json()["id"]
                for _ in range(2)
            ]
            key = {"Idempotency-Key": f"race-{i}"}
            answers = await asyncio.gather(
                *(http.post("/v1/batches", json=batch_of(file_id), headers=key) for file_id in files)
            )
            assert sorted(answer.status_code for answer in answers) == [200, 422]


@pytest.mark.anyio
async def test_a_gateway_whose_clock_is_ahead_delays_no_batch(
    settings: Settings, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gateway times were compared with Redis': with 40 s ahead, a batch of 20 lines took 52 s instead of 1.6."""
    own = time.time
    monkeypatch.setattr(time, "time", lambda: own() + 40)
    async with open_services(settings) as services:
        stored = await services.files.add("", "in.jsonl", "batch", LINE, None)
        assert abs(stored.created_at - await redis_time(queue.redis)) < 5
        batch = await services.batches.create("", stored.id, {}, "")

        async def started() -> bool:
            return (await services.batches.get("", batch.id)).status == "in_progress"

        await until_async(started)
        due = await queue.redis.zscore(queue.keys.batches_zset, batch.id)
        assert due - await redis_time(queue.redis) < 20, "the next step waits for the gateway's clock"
