"""Files of batches, and batches that are asked for twice."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from server.gateway.batches.files import PIECE_BYTES, Files
from server.queue.job_queue import JobQueue
from tests.server.harness import Service

LINE = b'{"custom_id": "a", "body": {"prompt": "a cat", "num_inference_steps": 2}}'
URL = "/v1/images/generations"


def upload(http: httpx.Client, **fields: str) -> httpx.Response:
    return http.post("/v1/files", files={"file": ("in.jsonl", LINE)}, data={"purpose": "batch"} | fields)


def batch_of(file_id: str, **more: Any) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"} | more


def told(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["param"]


def test_a_file_may_go_sooner(service: Service) -> None:
    """The SDK's `expires_after` was ignored: 3600 s were asked for, and the file stayed for a day. So was every field
    that nobody knows."""
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        file = client.files.create(
            file=("in.jsonl", LINE), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert file.expires_at is not None and file.expires_at - file.created_at == 3600
    with httpx.Client(base_url=service.settings.base_url) as http:
        anchor, seconds = "expires_after[anchor]", "expires_after[seconds]"
        assert told(upload(http, **{seconds: "3600"})) == (400, anchor)
        assert told(upload(http, **{anchor: "created_at"})) == (400, seconds)
        assert told(upload(http, **{anchor: "created_at", seconds: "99999999"})) == (400, seconds)
        assert told(upload(http, **{anchor: "created_at", seconds: "soon"})) == (400, seconds)
        assert told(upload(http, porpoise="batch")) == (400, "porpoise")


def test_lists_of_files_have_pages(service: Service) -> None:
    """`limit=1` gave all of them."""
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        made = [client.files.create(file=(f"{i}", LINE), purpose="batch").id for i in range(3)]
        page = client.files.list(limit=2)
        assert [each.id for each in page.data] == [made[2], made[1]] and page.has_more
        assert client.files.list(limit=1, after=made[1]).data[0].id == made[0]
        assert set(made) <= {each.id for each in client.files.list(limit=2)}
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(after="file-none")
        assert caught.value.param == "after"


@pytest.mark.anyio
async def test_contents_are_read_in_pieces(queue: JobQueue) -> None:
    """Ten readers of 30 MB who stalled held 270 MiB of the gateway."""
    files = Files(queue, 3600)
    data = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"end"
    file = await files.add("", "in.jsonl", "batch", data)
    pieces = [piece async for piece in files.pieces(file)]
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, PIECE_BYTES, 3] and b"".join(pieces) == data


def test_the_same_key_is_the_same_batch(service: Service) -> None:
    """Another body with the same key was answered with the first batch, and a repetition after the file was deleted
    with 404."""
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
async def test_two_batches_at_once_with_one_key(service: Service) -> None:
    """Both were answered with 200, and one of the two files was never drawn."""
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
