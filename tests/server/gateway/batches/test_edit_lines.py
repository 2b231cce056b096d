"""Batches of edits: images by file id and data URL give what the synchronous route gives; bad ones fail alone."""

import base64
import json

import httpx
import openai

from server.batch_format import EDITS_URL
from tests.server.gateway.batches.test_runner import results, wait_until_over
from tests.server.gateway.routes.test_edits import gradient, mask, png
from tests.server.harness import Service


def test_a_batch_of_edits_through_the_official_client(service: Service) -> None:
    image, hole = png(gradient()), png(mask())
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        stored = client.files.create(file=("a.png", image), purpose="vision").id
        url = {"image_url": "data:image/png;base64," + base64.b64encode(hole).decode()}
        base = {"prompt": "a cat", "seed": 4}
        bodies = [
            base | {"images": [{"file_id": stored}], "mask": url},
            base | {"image": "file-of-another", "mask": url},
            base | {"image": "https://example.com/a.png"},
            base,
            base | {"image": "%%%"},
        ]
        lines = [{"custom_id": str(i), "method": "POST", "url": EDITS_URL, "body": b} for i, b in enumerate(bodies)]
        data = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint=EDITS_URL, completion_window="24h")  # type: ignore[arg-type]
        batch = wait_until_over(client, made.id)
        assert (batch.endpoint, batch.request_counts.completed, batch.request_counts.failed) == (EDITS_URL, 1, 4)
        good, bad = results(client, batch.output_file_id), results(client, batch.error_file_id)
        alone = client.images.edit(image=image, mask=hole, prompt="a cat", extra_body={"seed": 4})
    assert alone.data is not None and good["0"]["body"]["data"][0]["b64_json"] == alone.data[0].b64_json
    assert [bad[i]["status_code"] for i in "1234"] == [404, 400, 400, 400]


def test_edit_lines_carry_the_warnings_that_a_request_gets(service: Service) -> None:
    """They were checked as requests without an image, which refuse the image, and the refusal was taken for no
    warning: a transparent background that became opaque was not told."""
    asked = {"prompt": "a catt", "background": "transparent", "input_fidelity": "high", "num_inference_steps": 12}
    files = {"image": png(gradient()), "mask": png(mask())}
    url = f"{service.settings.base_url}{EDITS_URL}"
    alone = httpx.post(url, data={name: str(value) for name, value in asked.items()}, files=files).json()["warnings"]
    images = {name: base64.b64encode(data).decode() for name, data in files.items()}
    line = {"custom_id": "a", "method": "POST", "url": EDITS_URL, "body": asked | images}
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint=EDITS_URL, completion_window="24h")  # type: ignore[arg-type]
        [answer] = results(client, wait_until_over(client, made.id).output_file_id).values()
    named = {text.split()[0].strip("'") for text in alone}
    assert named == {"background", "input_fidelity", "num_inference_steps", "prompt"}
    assert answer["body"]["warnings"] == alone
