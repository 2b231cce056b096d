"""The synchronous client: draw pictures, watch them grow, queue jobs, wait for the service.

with FluidClient() as fluid:
    fluid.generate("a red apple, 3d style", seed=7)[0].save("apple.png")
"""

import json
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import httpx

from server.batch_format import results_file
from server.client import protocol as wire
from server.client.line_readers import EventReader, LineReader
from server.client.results import GeneratedImage, JobEvent, Preview
from server.client.retries import pause_s
from server.errors import ServiceError
from server.images.recipe import read_recipe, request_of, served_difference
from server.jobs import TERMINAL

__all__ = ["FluidClient", "GeneratedImage", "JobEvent", "Preview"]


class FluidClient:
    """Options of `generate`, `stream` and `submit` are the API's parameters: n, seed, quality, output_format, ...

    Requests that drew no answer, or were turned away for now, are repeated up to `max_retries` times; each carries an
    Idempotency-Key, so that nothing is drawn twice. Every method raises ServiceError.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        max_retries: int = 2,
    ) -> None:
        self._http = httpx.Client(**wire.connection(base_url, api_key, timeout_s))
        self._max_retries = max_retries

    def __enter__(self) -> "FluidClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- pictures -------------------------------------------------------------------------------------

    def generate(self, prompt: str, **options: Any) -> list[GeneratedImage]:
        """Draw and wait; one Picture per image."""
        body = {"prompt": prompt, **options, "response_format": "b64_json"}
        answer = self._call("POST", "/v1/images/generations", json=body, headers=wire.fresh_key())
        return wire.pictures(answer.json())

    def stream(self, prompt: str, *, partial_images: int = 3, **options: Any) -> Iterator[Preview | GeneratedImage]:
        """Previews while each picture is decoded, then the Picture. Leaving the loop early cancels the job."""
        body = {"prompt": prompt, **options, "stream": True, "partial_images": partial_images}
        with wire.reaching(self._http.base_url):
            for event in self._events("POST", "/v1/images/generations", json=body):
                yield wire.streamed(event.data)

    def edit(self, prompt: str, image: bytes, mask: bytes | None = None, **options: Any) -> list[GeneratedImage]:
        """Draw anew what is transparent in `mask` (or in `image`); the files as bytes."""
        sent = wire.form(image, mask, {"prompt": prompt, **options})
        return wire.pictures((self._call("POST", "/v1/images/edits", **sent)).json())

    def vary(self, image: bytes, **options: Any) -> list[GeneratedImage]:
        """Draw a picture again around a random part of it; `keep` says how much of it stays."""
        return wire.pictures((self._call("POST", "/v1/images/variations", **wire.form(image, None, options))).json())

    def like(self, file: bytes, **changes: Any) -> list[GeneratedImage]:
        """Draw a picture again from the recipe in its file; `warnings` say if the service has other weights now."""
        recipe = read_recipe(file)
        notes = served_difference(recipe, self.models())
        return wire.warned(self.generate(**request_of(recipe) | changes), notes)

    # --- jobs -----------------------------------------------------------------------------------------

    def submit(self, prompt: str, **options: Any) -> dict[str, Any]:
        """Queue without waiting; returns the job object."""
        return self._object("POST", "/v1/jobs", json={"prompt": prompt, **options}, headers=wire.fresh_key())

    def job(self, job_id: str) -> dict[str, Any]:
        return self._object("GET", f"/v1/jobs/{job_id}")

    def jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """All of them, newest first; `status` and `limit` (of a page) as in the API."""
        while True:
            page = self._object("GET", "/v1/jobs", params=filters)
            yield from page["data"]
            if not page["has_more"]:
                return
            filters["after"] = page["last_id"]

    def follow(self, job_id: str) -> Iterator[JobEvent]:
        """Everything that happens to a job, up to its end; goes on after a broken connection."""
        last, broken = "", 0
        while True:
            try:
                for event in self._events("GET", f"/v1/jobs/{job_id}/events", after=last):
                    if event.type == "error":
                        raise wire.fault(event.data["error"], 200)
                    last, broken = event.id, 0
                    yield event
                    if event.type in TERMINAL:
                        return
            except httpx.TransportError as error:
                broken += 1
                if broken > self._max_retries:
                    raise wire.unreachable(self._http.base_url, error) from error
                time.sleep(pause_s(broken, None) or 0.0)

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._object("POST", f"/v1/jobs/{job_id}/cancel")

    def image(self, job_id: str, index: int = 0) -> bytes:
        return self._call("GET", f"/v1/jobs/{job_id}/images/{index}").content

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float = 300.0,
        poll_s: float = 0.2,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Until the job has ended, however it ended; `progress` is called with every look at it."""
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id))["status"] not in TERMINAL:
            if progress is not None:
                progress(job)
            if time.monotonic() > deadline:
                raise wire.still(job, timeout_s)
            time.sleep(poll_s)
        return job

    # --- batches --------------------------------------------------------------------------------------

    def submit_batch(self, lines: bytes, filename: str = "batch.jsonl") -> dict[str, Any]:
        """Upload JSON lines (custom_id, body) and begin to draw them; returns the batch object."""
        file = self._object("POST", "/v1/files", **wire.upload(lines, filename))
        return self._object("POST", "/v1/batches", json=wire.batch_of(file["id"]), headers=wire.fresh_key())

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self._object("GET", f"/v1/batches/{batch_id}")

    def cancel_batch(self, batch_id: str) -> dict[str, Any]:
        return self._object("POST", f"/v1/batches/{batch_id}/cancel")

    def batch_results(self, batch_id: str, *, errors: bool = False) -> Iterator[dict[str, Any]]:
        """What has ended so far, line by line: the pictures, or what failed."""
        path = f"/v1/files/{results_file(batch_id, errors=errors)}/content"
        with wire.reaching(self._http.base_url), self._http.stream("GET", path) as answer:
            if not answer.is_success:
                answer.read()
                wire.check(answer)
            for line in self._lines(answer):
                yield json.loads(line)

    # --- the service ----------------------------------------------------------------------------------

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

    # --- the wire -------------------------------------------------------------------------------------

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return dict(self._call(method, path, **options).json())

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(self._max_retries + 1):
            answer, lost = None, None
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                lost = error
            wait_s = pause_s(attempt, answer)
            if wait_s is None or attempt == self._max_retries:
                break
            time.sleep(wait_s)
        if answer is None:
            raise wire.unreachable(self._http.base_url, lost or TimeoutError()) from lost
        return wire.check(answer)

    def _events(self, method: str, path: str, *, after: str = "", **options: Any) -> Iterator[JobEvent]:
        reader = EventReader()
        headers = {"Last-Event-ID": after} if after else {}
        with self._http.stream(method, path, headers=headers, **options) as answer:
            if not answer.is_success:
                answer.read()
                wire.check(answer)
            for line in self._lines(answer):
                if (event := reader.feed(line)) is not None:
                    yield event

    def _lines(self, answer: httpx.Response) -> Iterator[str]:
        reader = LineReader()
        for piece in answer.iter_bytes():
            yield from reader.feed(piece)
