"""What both clients agree on: requests, answers, events, and when to try again. No connection of its own."""

import base64
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from server.batch_format import URL
from server.client.results import GeneratedImage, Preview
from server.errors import ServiceError


def connection(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """What the HTTP library needs to be told, of either kind."""
    api_key = api_key or os.environ.get("FLUID_API_KEY")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": base_url, "timeout": timeout_s, "headers": headers}


def fresh_key() -> dict[str, str]:
    """One per call, the same for all its tries: a request whose answer was lost is not drawn twice."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def pictures(answer: Mapping[str, Any]) -> list[GeneratedImage]:
    return [
        GeneratedImage(
            base64.b64decode(d["b64_json"]), d["seed"], answer["output_format"], answer["metrics"],
            tuple(answer["warnings"]),
        )
        for d in answer["data"]
    ]  # fmt: skip


def form(image: bytes, mask: bytes | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """An edit or variation as httpx sends it."""
    files = {"image": ("image", image)} | ({} if mask is None else {"mask": ("mask", mask)})
    data = {name: value if isinstance(value, list) else str(value) for name, value in options.items()}
    return {"files": files, "data": data | {"response_format": "b64_json"}, "headers": fresh_key()}


def warned(found: list[GeneratedImage], warnings: list[str]) -> list[GeneratedImage]:
    """The same with more to say of them."""
    return [replace(picture, warnings=(*warnings, *picture.warnings)) for picture in found]


def streamed(data: Mapping[str, Any]) -> Preview | GeneratedImage:
    """An event of the image route. Raises ServiceError if it tells of a failure."""
    if "error" in data:
        raise fault(data["error"], 200)
    file = base64.b64decode(data["b64_json"])
    if data["type"].endswith("partial_image"):
        return Preview(file, data["image_index"], data["partial_image_index"], data["output_format"])
    return GeneratedImage(file, data["seed"], data["output_format"], {})


def upload(lines: bytes, filename: str) -> dict[str, Any]:
    return {"files": {"file": (filename, lines)}, "data": {"purpose": "batch"}}


def batch_of(file_id: str) -> dict[str, str]:
    return {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}


def check(answer: httpx.Response) -> httpx.Response:
    """The answer if it is success, else ServiceError; its body must have been read."""
    if answer.is_success:
        return answer
    try:
        told = answer.json()["error"]
    except (ValueError, KeyError, TypeError):  # a proxy in between answers in its own words
        told = {"message": answer.text[:500]}
    raise fault(told, answer.status_code)


def fault(told: Mapping[str, Any], status: int) -> ServiceError:
    return ServiceError(f"{status}: {told['message']}", status=status, code=told.get("code"), param=told.get("param"))


def unreachable(base_url: object, error: Exception) -> ServiceError:
    return ServiceError(f"No answer from {base_url}: {error}. Is `fluid serve` up?")


@contextmanager
def reaching(base_url: object) -> Iterator[None]:
    """What goes wrong on the way, as ServiceError."""
    try:
        yield
    except httpx.TransportError as error:
        raise unreachable(base_url, error) from error


def still(job: Mapping[str, Any], timeout_s: float) -> ServiceError:
    return ServiceError(f"Job {job['id']} is still {job['status']} after {timeout_s:g} s.")
