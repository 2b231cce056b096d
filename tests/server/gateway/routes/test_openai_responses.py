"""POST /v1/responses with the official openai client: generate, stream, edit, and what is refused."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from openai.types.responses.response_output_item import ImageGenerationCall
from PIL import Image

from tests.server.harness import Hold, Service

TOOL: dict[str, Any] = {"type": "image_generation", "seed": 4, "num_inference_steps": 6}


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def call_of(response: Response) -> ImageGenerationCall:
    [item] = response.output
    assert isinstance(item, ImageGenerationCall) and item.result
    return item


def pixels(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or ""))).convert("RGB")


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_generate(client: openai.OpenAI) -> None:
    """The same image as from the image route; code for OpenAI names a text model, which takes no part."""
    response = client.responses.create(
        model="gpt-5", input="a cat", tools=[TOOL | {"output_format": "webp"}], temperature=0.3, metadata={"a": "b"}
    )  # type: ignore[call-overload]
    call = call_of(response)
    assert (response.status, response.object, response.model, response.store) == (
        "completed",
        "response",
        "fake",
        False,
    )
    assert (call.status, call.action, call.output_format, call.size) == ("completed", "generate", "webp", "32x32")
    assert response.id.startswith("resp_") and response.metadata == {"a": "b"} and response.output_text == ""
    assert "gpt-5" in (response.model_extra or {})["warnings"][0]
    assert response.usage and response.usage.output_tokens == 16
    again = client.images.generate(
        prompt="a cat", output_format="webp", extra_body={"seed": 4, "num_inference_steps": 6}
    )
    assert again.data and again.data[0].b64_json == call.result


def test_stream(client: openai.OpenAI, hold: Hold) -> None:
    """Every event has OpenAI's type and the next number; the last holds the image."""
    message = [{"role": "user", "content": [{"type": "input_text", "text": hold.prompt(step=5)}]}]
    stream = client.responses.create(
        model="fake",
        input=message,
        tools=[TOOL | {"partial_images": 2}],
        stream=True,
        tool_choice={"type": TOOL["type"]},
    )  # type: ignore[call-overload]
    events = []
    for event in stream:
        events.append(event)
        if len(events) == 7:  # with both previews, of steps 2 and 4
            hold.release()
    kinds = [event.type.removeprefix("response.").replace("image_generation_call", "call") for event in events]
    assert kinds == [
        "created", "in_progress", "output_item.added", "call.in_progress", "call.generating", "call.partial_image",
        "call.partial_image", "call.completed", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(10))
    assert [event.partial_image_index for event in events[5:7]] == [0, 1]
    call = call_of(events[-1].response)
    assert pixels(events[5].partial_image_b64).size == pixels(call.result).size == (32, 32)
    assert events[-2].item == call and events[5].item_id == call.id


def test_edit(client: openai.OpenAI) -> None:
    """An image in the input is edited inside the mask; so is the call of an earlier response."""
    old = Image.new("RGB", (32, 32), (10, 200, 30))
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    tool = TOOL | {"action": "edit", "input_image_mask": {"image_url": data_url(mask)}}
    parts = [
        {"type": "input_text", "text": "a dog"},
        {"type": "input_image", "image_url": data_url(old), "detail": "auto"},
    ]
    first = client.responses.create(input=[{"role": "user", "content": parts}], tools=[tool])  # type: ignore[call-overload]
    new = pixels(call_of(first).result)
    assert (new.getpixel((24, 5)), call_of(first).action) == ((10, 200, 30), "edit")
    assert new.getpixel((4, 5)) != (10, 200, 30)
    assert "input_image_mask" not in first.to_dict()["tools"][0]  # type: ignore[index]
    stored = client.files.create(file=("image.png", base64.b64decode(call_of(first).result or "")), purpose="vision")
    turns = [call_of(first).to_dict(), {"role": "user", "content": "a dog"}]
    file = [{"role": "user", "content": [parts[0], {"type": "input_image", "file_id": stored.id}]}]
    second, third = (client.responses.create(input=each, tools=[TOOL]) for each in (turns, file))  # type: ignore[call-overload]
    assert call_of(second).result == call_of(third).result != call_of(first).result


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL | {"n": 2}]}, "n"),
        ({"tools": [TOOL | {"frame_count": 3}]}, "frame_count"),
        ({"tools": [TOOL | {"model": "dall-e-9"}]}, "model"),
        ({"tools": [TOOL | {"action": "edit"}]}, "action"),
        ({"tools": [TOOL | {"input_image_mask": {"file_id": "file-1"}}]}, "input_image_mask"),
        ({"tools": [TOOL | {"partial_images": 2}]}, "partial_images"),
        ({"tool_choice": "none"}, "tool_choice"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),  # it ended as a 500, after the image
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"instructions": "be brief"}, "instructions"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"inputs": "x"}, "inputs"),
        ({"input": " "}, "input"),
        ({"input": [{"role": "system", "content": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * 2}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input"),
        ({"input": [{"type": "image_generation_call", "id": "ig_1"}, {"role": "user", "content": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(service: Service, changes: dict[str, Any], param: str) -> None:
    body = json.dumps({"input": "a cat", "tools": [TOOL]} | changes)
    url, headers = f"{service.settings.base_url}/v1/responses", {"Content-Type": "application/json"}
    answer = httpx.post(url, content=body, headers=headers)
    status = 404 if param == "model" else 400
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_failures(client: openai.OpenAI) -> None:
    """As an HTTP error without a stream, and as the last event of one."""
    with pytest.raises(openai.InternalServerError) as failed:
        client.responses.create(input="[raise]", tools=[TOOL])  # type: ignore[list-item]
    assert failed.value.code == "job_failed"
    *_, last = client.responses.create(input="[impossible]", tools=[TOOL], stream=True)  # type: ignore[list-item]
    assert last.type == "response.failed" and last.response.error
    assert (last.response.status, last.response.error.code) == ("failed", "invalid_prompt")


def test_an_idempotency_key_returns_the_same_image(client: openai.OpenAI) -> None:
    tool = {"type": "image_generation"}  # no seed: a second job would have another
    header = {"Idempotency-Key": "response-1"}
    first, again = (client.responses.create(input="a cat", tools=[tool], extra_headers=header) for _ in range(2))  # type: ignore[list-item]
    assert (first.id, call_of(first).result) == (again.id, call_of(again).result)
    last = list(client.responses.create(input="a cat", tools=[tool], extra_headers=header, stream=True))[-1]  # type: ignore[list-item]
    assert last.type == "response.completed" and call_of(last.response).result == call_of(first).result


def test_a_file_id_of_megabytes_is_unknown(service: Service) -> None:
    """It became a key of Redis, on the connection that all requests share."""
    image = {"type": "input_image", "file_id": "file-" + "a" * (4 << 20)}
    body = {"model": "fake", "input": [{"role": "user", "content": [{"type": "input_text", "text": "a cat"}, image]}]}
    answer = httpx.post(f"{service.settings.base_url}/v1/responses", json=body | {"tools": [TOOL]}, timeout=60)
    assert answer.status_code == 404 and len(answer.text) < 1000, answer.text[:1000]
