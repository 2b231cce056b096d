"""What both clients agree on: requests, answers, events, and when to try again. No connection of its own."""

import base64
import email.utils
import json
import os
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from server.batch_format import URL
from server.errors import ServiceError

TERMINAL = ("succeeded", "failed", "canceled", "aborted")
#: Too many, or nobody there just now. A 500 is a job that failed after its own tries: another would end the same way.
RETRIED = (429, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
#: Who is asked to stay away longer than this would rather hear of it.
LONGEST_RETRY_AFTER_S = 120.0


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished file and how it came to be."""

    data: bytes
    seed: int
    format: str
    metrics: dict[str, Any]
    warnings: tuple[str, ...] = ()  #: about the request that it answers

    def save(self, path: str | Path) -> Path:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.data)
        return target


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture half done."""

    data: bytes
    image_index: int
    number: int
    format: str


@dataclass(frozen=True, slots=True)
class JobEvent:
    """`type`: status, progress, partial_image, or at last the state in which the job ended."""

    id: str
    type: str
    data: dict[str, Any]


def connection(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """What the HTTP library needs to be told, of either kind."""
    api_key = api_key or os.environ.get("FLUID_API_KEY")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": base_url, "timeout": timeout_s, "headers": headers}


def fresh_key() -> dict[str, str]:
    """One per call, the same for all its tries: a request whose answer was lost is not drawn twice."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def pictures(answer: Mapping[str, Any]) -> list[Picture]:
    return [
        Picture(
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


def warned(found: list[Picture], warnings: list[str]) -> list[Picture]:
    """The same with more to say of them."""
    return [replace(picture, warnings=(*warnings, *picture.warnings)) for picture in found]


def streamed(data: Mapping[str, Any]) -> Preview | Picture:
    """An event of the image route. Raises ServiceError if it tells of a failure."""
    if "error" in data:
        raise fault(data["error"], 200)
    file = base64.b64decode(data["b64_json"])
    if data["type"].endswith("partial_image"):
        return Preview(file, data["image_index"], data["partial_image_index"], data["output_format"])
    return Picture(file, data["seed"], data["output_format"], {})


def upload(lines: bytes, filename: str) -> dict[str, Any]:
    return {"files": {"file": (filename, lines)}, "data": {"purpose": "batch"}}


def batch_of(file_id: str) -> dict[str, str]:
    return {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}


class LineReader:
    """Lines that end in a line feed alone: httpx's own also end at U+2028, which JSON has inside strings."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, piece: bytes) -> list[str]:
        """The lines that `piece` ends."""
        first, *others = piece.split(b"\n")
        self._parts.append(first)
        whole = []
        for other in others:
            whole.append(b"".join(self._parts).removesuffix(b"\r").decode())
            self._parts = [other]
        return whole


class EventReader:
    """Server-sent events, line by line (the part of the standard that this service uses)."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> JobEvent | None:
        """An event when `line` is the one that ends it."""
        if line:
            name, _, value = line.partition(":")
            if name:  # else it is a comment, as pings are
                self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return JobEvent(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))


def pause_s(attempt: int, answer: httpx.Response | None) -> float | None:
    """How long to wait before the next try; None: there is no point in one. `answer` is None if there was none."""
    backoff: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.75, 1.0)
    if answer is None:
        return backoff
    if answer.status_code not in RETRIED:
        return None
    asked = _retry_after_s(answer.headers.get("retry-after", ""))
    if asked is None:
        return backoff
    return asked if asked <= LONGEST_RETRY_AFTER_S else None


def _retry_after_s(text: str) -> float | None:
    """RFC 9110: seconds, or a date."""
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


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
