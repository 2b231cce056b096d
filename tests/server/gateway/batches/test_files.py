"""Uploaded files: expiry, pagination, and downloads in chunks."""

import httpx
import openai
import pytest

from server.gateway.batches.files import CHUNK_BYTES, FileStore
from server.queue.job_queue import JobQueue
from tests.server.harness import Service

LINE = b'{"custom_id": "a", "body": {"prompt": "a cat", "num_inference_steps": 2}}'


def upload(http: httpx.Client, **fields: str) -> httpx.Response:
    return http.post("/v1/files", files={"file": ("in.jsonl", LINE)}, data={"purpose": "batch"} | fields)


def status_and_param(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["param"]


def test_expires_after_shortens_the_lifetime_of_a_file(service: Service) -> None:
    """The SDK's `expires_after` used to be ignored: a file meant for 3600 s stayed for a day. So was every unknown form
    field."""
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        file = client.files.create(
            file=("in.jsonl", LINE), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert file.expires_at is not None and file.expires_at - file.created_at == 3600
    with httpx.Client(base_url=service.settings.base_url) as http:
        anchor, seconds = "expires_after[anchor]", "expires_after[seconds]"
        assert status_and_param(upload(http, **{seconds: "3600"})) == (400, anchor)
        assert status_and_param(upload(http, **{anchor: "created_at"})) == (400, seconds)
        assert status_and_param(upload(http, **{anchor: "created_at", seconds: "99999999"})) == (400, seconds)
        assert status_and_param(upload(http, **{anchor: "created_at", seconds: "soon"})) == (400, seconds)
        assert status_and_param(upload(http, porpoise="batch")) == (400, "porpoise")


def test_listing_files_is_paginated(service: Service) -> None:
    """`limit=1` used to return all files."""
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
async def test_content_is_read_in_chunks(queue: JobQueue) -> None:
    """Ten stalled readers of 30 MB used to hold 270 MiB of the gateway's memory."""
    files = FileStore(queue, 3600)
    data = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"end"
    file = await files.add("", "in.jsonl", "batch", data)
    chunks = [chunk async for chunk in files.chunks(file)]
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, CHUNK_BYTES, 3] and b"".join(chunks) == data
