# Generated from aio.py by `make format`: edit that file.
"""The synchronous client.

with FluidClient() as fluid:
    [image] = fluid.generate("a red apple, 3d style", seed=7)
    image.save("apple.png")
"""

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Self
from urllib.parse import quote

import httpx

from server.batch_format import results_file
from server.client import protocol
from server.client.line_readers import EventReader, LineReader
from server.client.protocol import Background
from server.client.results import GeneratedImage, JobEvent, Preview
from server.client.retries import is_permanent, retry_delay_s
from server.errors import ServiceError
from server.images.recipe import read_recipe, served_checkpoint_warnings, to_request
from server.jobs import TERMINAL


class FluidClient:
    """A connection pool to one service. `options` are the API's parameters: n, seed, quality, output_format, ...

    Requests that get no response, or the status 429 or 502 to 504, are retried up to `max_retries` times, with backoff
    or after Retry-After. Every retry repeats the request's Idempotency-Key, so nothing is generated twice.
    Every failure is a ServiceError. Loopback addresses are never reached through a proxy of the environment
    (HTTP_PROXY), and with `use_proxy=False` no address is.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        max_retries: int = 2,
        use_proxy: bool = True,
    ) -> None:
        options = protocol.http_options(base_url, api_key, timeout_s, use_proxy)
        self._http = protocol.open_client(httpx.Client, options)
        self._max_retries = max_retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- images ---------------------------------------------------------------------------------------

    def generate(self, prompt: str, *, background: Background | None = None, **options: Any) -> list[GeneratedImage]:
        """Generate `n` images (1 unless given) and wait for all of them.

        `background="transparent"`, here and below, is an error for a model that generates no alpha.
        """
        options = self._with_background(background, options)
        body = {"prompt": prompt, **options, "response_format": "b64_json"}
        headers = protocol.idempotency_key()
        return protocol.images(self._object("POST", "/v1/images/generations", json=body, headers=headers))

    def stream(
        self, prompt: str, *, partial_images: int = 3, background: Background | None = None, **options: Any
    ) -> Generator[Preview | GeneratedImage, None]:
        """Yield previews while each image is decoded, then the image. Leaving the loop early cancels the job."""
        options = self._with_background(background, options)
        body = {"prompt": prompt, **options, "stream": True, "partial_images": partial_images}
        # Without an Idempotency-Key, which would let the job go on: a request that is repeated has been canceled.
        with closing(self._events("POST", "/v1/images/generations", json=body)) as events:
            for event in events:
                yield protocol.stream_item(event.data)

    def edit(
        self,
        prompt: str,
        image: bytes,
        mask: bytes | None = None,
        *,
        background: Background | None = None,
        **options: Any,
    ) -> list[GeneratedImage]:
        """Regenerate what is transparent in `mask`, or in `image` when there is no mask; both are image files."""
        options = self._with_background(background, options)
        form = protocol.multipart(image, mask, {"prompt": prompt, **options})
        return protocol.images(self._object("POST", "/v1/images/edits", **form))

    def vary(self, image: bytes, *, background: Background | None = None, **options: Any) -> list[GeneratedImage]:
        """Generate variations of an image file; `keep` is the share of the image that stays, 0 to below 1."""
        options = self._with_background(background, options)
        form = protocol.multipart(image, None, options)
        return protocol.images(self._object("POST", "/v1/images/variations", **form))

    def like(self, file: bytes, **changes: Any) -> list[GeneratedImage]:
        """Generate again from the recipe in an image file; `warnings` say so if its weights have changed."""
        recipe = read_recipe(file)
        warnings = served_checkpoint_warnings(recipe, self.models())
        return protocol.with_warnings(self.generate(**to_request(recipe) | changes), warnings)

    def _with_background(self, background: Background | None, options: dict[str, Any]) -> dict[str, Any]:
        """The options with `background`. Raises ServiceError if it is transparent, and the model has no alpha."""
        if background == "transparent":
            name = options.get("model")
            models = [self._object("GET", f"/v1/models/{quote(name, safe='')}")] if name else self.models()
            if models and not models[0].get("transparent"):
                raise protocol.no_alpha(models[0]["id"])
        return options if background is None else {**options, "background": background}

    # --- jobs -----------------------------------------------------------------------------------------

    def submit(self, prompt: str, *, background: Background | None = None, **options: Any) -> dict[str, Any]:
        """Queue a job and return its job object at once."""
        options = self._with_background(background, options)
        body, headers = {"prompt": prompt, **options}, protocol.idempotency_key()
        return self._object("POST", "/v1/jobs", json=body, headers=headers)

    def job(self, job_id: str) -> dict[str, Any]:
        return self._object("GET", f"/v1/jobs/{job_id}")

    def jobs(self, **filters: Any) -> Generator[dict[str, Any], None]:
        """Yield every job, newest first. `status` filters, `limit` is the page size."""
        while True:
            page = self._object("GET", "/v1/jobs", params=filters)
            yield from page["data"]
            if not page["has_more"]:
                return
            filters["after"] = page["last_id"]

    def follow(self, job_id: str) -> Generator[JobEvent, None]:
        """Yield a job's events until it ends. Resumes after the last event when the connection breaks."""
        last_id, failures = "", 0
        while True:
            try:
                with closing(self._events("GET", f"/v1/jobs/{job_id}/events", after=last_id)) as events:
                    for event in events:
                        if event.type == "error":
                            raise protocol.service_error(event.data["error"], 200)
                        last_id, failures = event.id, 0
                        yield event
                        if event.type in TERMINAL:
                            return
            except ServiceError as error:
                failures += 1
                # Status 0: the connection failed.
                if error.status or is_permanent(error.__cause__) or failures > self._max_retries:
                    raise
                time.sleep(retry_delay_s(failures, None) or 0.0)

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._object("POST", f"/v1/jobs/{job_id}/cancel")

    def image(self, job_id: str, index: int = 0) -> bytes:
        """Download the file of one finished image."""
        response = self._call("GET", f"/v1/jobs/{job_id}/images/{index}")
        return response.content

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float = 300.0,
        poll_s: float = 0.2,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Poll until the job ends, in any terminal state, and return it; `progress` gets the job at every poll."""
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id))["status"] not in TERMINAL:
            if progress is not None:
                progress(job)
            if time.monotonic() > deadline:
                raise ServiceError(f"Job {job_id} is still {job['status']} after {timeout_s:g} s.")
            time.sleep(poll_s)
        return job

    # --- batches --------------------------------------------------------------------------------------

    def submit_batch(self, lines: bytes, filename: str = "batch.jsonl") -> dict[str, Any]:
        """Upload JSON Lines of {"custom_id", "body"}, start the batch and return its object."""
        return self.start_batch(self.upload_batch(lines, filename))

    def upload_batch(self, lines: bytes, filename: str = "batch.jsonl") -> str:
        file = self._object("POST", "/v1/files", **protocol.batch_upload(lines, filename))
        return str(file["id"])

    def start_batch(self, file_id: str, key: str = "") -> dict[str, Any]:
        """Start the batch of an uploaded file; with the same key again, return the same batch."""
        return self._object("POST", "/v1/batches", **protocol.batch_request(file_id, key))

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self._object("GET", f"/v1/batches/{batch_id}")

    def cancel_batch(self, batch_id: str) -> dict[str, Any]:
        return self._object("POST", f"/v1/batches/{batch_id}/cancel")

    def batch_results(self, batch_id: str, *, errors: bool = False) -> Generator[dict[str, Any], None]:
        """Yield the result of each line that has succeeded so far; with `errors`, of each that has failed."""
        path = f"/v1/files/{results_file(batch_id, errors=errors)}/content"
        with closing(self._lines("GET", path)) as lines:
            for line in lines:
                yield json.loads(line)

    # --- the service ----------------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        return list((self._object("GET", "/v1/models"))["data"])

    def ready(self) -> tuple[bool, str]:
        """Return (True, "") once a worker can generate, else (False, reason); never raises."""
        health = self.health()
        return health["status"] == "ready", str(health.get("reason", ""))

    def health(self) -> dict[str, Any]:
        """Return `status` ("ready" or "not ready"), `reason`, and `models` with those that are ready; never raises."""
        try:
            response = self._http.get("/health/ready", timeout=2)
        except httpx.TransportError as error:
            return {"status": "not ready", "reason": f"no gateway yet ({type(error).__name__})"}
        try:
            return {"status": "not ready", "reason": "" if response.is_success else response.text, **response.json()}
        except (ValueError, TypeError):  # a proxy in between may send its own error page
            return {"status": "not ready", "reason": response.text}

    def wait_ready(self, *, timeout_s: float = 300.0, poll_s: float = 0.2) -> None:
        """Poll until a worker can generate; raise ServiceError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            is_ready, reason = self.ready()
            if is_ready:
                return
            if time.monotonic() > deadline:
                raise ServiceError(f"The service is not ready after {timeout_s:g} s: {reason}.")
            time.sleep(poll_s)

    # --- transport ------------------------------------------------------------------------------------

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return protocol.json_object(self._call(method, path, **options))

    def _call(self, method: str, path: str, *, stream: bool = False, **options: Any) -> httpx.Response:
        """Return the response of a request that succeeds. With `stream` the caller reads its body, and closes it."""
        for attempt in range(self._max_retries + 1):
            response, failure = None, None
            try:
                response = self._http.send(self._http.build_request(method, path, **options), stream=stream)
            except httpx.TransportError as error:
                failure = error
            delay_s = retry_delay_s(attempt, response)
            if is_permanent(failure) or delay_s is None or attempt == self._max_retries:
                break
            if response is not None:
                response.close()
            time.sleep(delay_s)
        if response is None:
            raise protocol.unreachable(self._http.base_url, failure or TimeoutError()) from failure
        if stream and not response.is_success:
            self._read_all(response)
        return protocol.checked(response)

    def _read_all(self, response: httpx.Response) -> None:
        try:
            response.read()
        except httpx.TransportError as error:
            raise protocol.unreachable(self._http.base_url, error) from error
        finally:
            response.close()

    def _events(self, method: str, path: str, *, after: str = "", **options: Any) -> Generator[JobEvent, None]:
        reader = EventReader()
        if after:
            options["headers"] = {"Last-Event-ID": after}
        with closing(self._lines(method, path, **options)) as lines:
            for line in lines:
                if (event := reader.feed(line)) is not None:
                    yield event

    def _lines(self, method: str, path: str, **options: Any) -> Generator[str, None]:
        reader = LineReader()
        response = self._call(method, path, stream=True, **options)
        try:
            for chunk in response.iter_bytes():
                yield from reader.feed(chunk)
        except httpx.TransportError as error:
            raise protocol.unreachable(self._http.base_url, error) from error
        finally:
            response.close()
