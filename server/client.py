"""A small synchronous client: draw pictures, queue jobs, wait for the service.

with FluidClient("http://127.0.0.1:8000") as client:
    [picture] = client.generate("a red apple, 3d style", seed=7)
    picture.save("apple.png")
"""

import base64
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from server.errors import ServiceError

TERMINAL = ("succeeded", "failed", "canceled", "aborted")


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished file and how it came to be."""

    data: bytes
    seed: int
    format: str
    metrics: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.data)
        return target


class FluidClient:
    """Options of `generate` and `submit` are the API's parameters: n, seed, quality, output_format, ..."""

    def __init__(self, base_url: str = "http://127.0.0.1:8000", *, timeout_s: float = 300.0) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s)

    def __enter__(self) -> "FluidClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(self, prompt: str, **options: Any) -> list[Picture]:
        """Draw and wait; one Picture per image."""
        body = {"prompt": prompt, **options, "response_format": "b64_json"}
        answer = self._call("POST", "/v1/images/generations", json=body).json()
        return [
            Picture(base64.b64decode(d["b64_json"]), d["seed"], answer["output_format"], answer["metrics"])
            for d in answer["data"]
        ]

    def submit(self, prompt: str, **options: Any) -> dict[str, Any]:
        """Queue without waiting; returns the job object."""
        return self._object("POST", "/v1/jobs", json={"prompt": prompt, **options})

    def job(self, job_id: str) -> dict[str, Any]:
        return self._object("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._object("POST", f"/v1/jobs/{job_id}/cancel")

    def image(self, job_id: str, index: int = 0) -> bytes:
        return self._call("GET", f"/v1/jobs/{job_id}/images/{index}").content

    def wait(self, job_id: str, *, timeout_s: float = 300.0, poll_s: float = 0.2) -> dict[str, Any]:
        """Until the job has ended, however it ended."""
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id))["status"] not in TERMINAL:
            if time.monotonic() > deadline:
                raise ServiceError(f"Job {job_id} is still {job['status']} after {timeout_s:g} s.")
            time.sleep(poll_s)
        return job

    def models(self) -> list[dict[str, Any]]:
        return list(self._object("GET", "/v1/models")["data"])

    def ready(self) -> tuple[bool, str]:
        """(whether a worker can draw, else why not)"""
        try:
            answer = self._http.get("/health/ready", timeout=2)
        except httpx.TransportError as error:
            return False, f"no gateway yet ({type(error).__name__})"
        return answer.is_success, "" if answer.is_success else str(answer.json().get("reason", answer.text))

    def wait_ready(self, *, timeout_s: float = 300.0, poll_s: float = 0.2) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            is_ready, reason = self.ready()
            if is_ready:
                return
            if time.monotonic() > deadline:
                raise ServiceError(f"The service is not ready after {timeout_s:g} s: {reason}.")
            time.sleep(poll_s)

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return dict(self._call(method, path, **options).json())

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise ServiceError(f"No answer from {self._http.base_url}: {error}. Is `fluid serve` up?") from error
        if answer.is_success:
            return answer
        raise _service_error(answer)


def _service_error(answer: httpx.Response) -> ServiceError:
    try:
        fault = answer.json()["error"]
    except (ValueError, KeyError, TypeError):  # a proxy in between answers in its own words
        fault = {"message": answer.text[:500]}
    return ServiceError(
        f"{answer.status_code}: {fault['message']}",
        status=answer.status_code,
        code=fault.get("code"),
        param=fault.get("param"),
    )
