"""The same client for asyncio.

async with AsyncFluidClient() as fluid:
    (await fluid.generate("a red apple, 3d style", seed=7))[0].save("apple.png")
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
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


class AsyncFluidClient:
    """Method for method as FluidClient, which says what each does."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        max_retries: int = 2,
    ) -> None:
        self._http = httpx.AsyncClient(**wire.connection(base_url, api_key, timeout_s))
        self._max_retries = max_retries

    async def __aenter__(self) -> "AsyncFluidClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    # --- pictures -------------------------------------------------------------------------------------

    async def generate(self, prompt: str, **options: Any) -> list[GeneratedImage]:
        """Draw and wait; one Picture per image."""
        body = {"prompt": prompt, **options, "response_format": "b64_json"}
        answer = await self._call("POST", "/v1/images/generations", json=body, headers=wire.fresh_key())
        return wire.pictures(answer.json())

    async def stream(
        self, prompt: str, *, partial_images: int = 3, **options: Any
    ) -> AsyncIterator[Preview | GeneratedImage]:
        """Previews while each picture is decoded, then the Picture. Leaving the loop early cancels the job."""
        body = {"prompt": prompt, **options, "stream": True, "partial_images": partial_images}
        with wire.reaching(self._http.base_url):
            async with aclosing(self._events("POST", "/v1/images/generations", json=body)) as events:
                async for event in events:
                    yield wire.streamed(event.data)

    async def edit(self, prompt: str, image: bytes, mask: bytes | None = None, **options: Any) -> list[GeneratedImage]:
        """Draw anew what is transparent in `mask` (or in `image`); the files as bytes."""
        sent = wire.form(image, mask, {"prompt": prompt, **options})
        return wire.pictures((await self._call("POST", "/v1/images/edits", **sent)).json())

    async def vary(self, image: bytes, **options: Any) -> list[GeneratedImage]:
        """Draw a picture again around a random part of it; `keep` says how much of it stays."""
        return wire.pictures(
            (await self._call("POST", "/v1/images/variations", **wire.form(image, None, options))).json()
        )

    async def like(self, file: bytes, **changes: Any) -> list[GeneratedImage]:
        """Draw a picture again from the recipe in its file; `warnings` say if the service has other weights now."""
        recipe = read_recipe(file)
        notes = served_difference(recipe, await self.models())
        return wire.warned(await self.generate(**request_of(recipe) | changes), notes)

    # --- jobs -----------------------------------------------------------------------------------------

    async def submit(self, prompt: str, **options: Any) -> dict[str, Any]:
        """Queue without waiting; returns the job object."""
        return await self._object("POST", "/v1/jobs", json={"prompt": prompt, **options}, headers=wire.fresh_key())

    async def job(self, job_id: str) -> dict[str, Any]:
        return await self._object("GET", f"/v1/jobs/{job_id}")

    async def jobs(self, **filters: Any) -> AsyncIterator[dict[str, Any]]:
        """All of them, newest first; `status` and `limit` (of a page) as in the API."""
        while True:
            page = await self._object("GET", "/v1/jobs", params=filters)
            for job in page["data"]:
                yield job
            if not page["has_more"]:
                return
            filters["after"] = page["last_id"]

    async def follow(self, job_id: str) -> AsyncGenerator[JobEvent, None]:
        """Everything that happens to a job, up to its end; goes on after a broken connection."""
        last, broken = "", 0
        while True:
            try:
                async with aclosing(self._events("GET", f"/v1/jobs/{job_id}/events", after=last)) as events:
                    async for event in events:
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
                await asyncio.sleep(pause_s(broken, None) or 0.0)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        return await self._object("POST", f"/v1/jobs/{job_id}/cancel")

    async def image(self, job_id: str, index: int = 0) -> bytes:
        return (await self._call("GET", f"/v1/jobs/{job_id}/images/{index}")).content

    async def wait(
        self,
        job_id: str,
        *,
        timeout_s: float = 300.0,
        poll_s: float = 0.2,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Until the job has ended, however it ended; `progress` is called with every look at it."""
        deadline = time.monotonic() + timeout_s
        while (job := await self.job(job_id))["status"] not in TERMINAL:
            if progress is not None:
                progress(job)
            if time.monotonic() > deadline:
                raise wire.still(job, timeout_s)
            await asyncio.sleep(poll_s)
        return job

    # --- batches --------------------------------------------------------------------------------------

    async def submit_batch(self, lines: bytes, filename: str = "batch.jsonl") -> dict[str, Any]:
        file = await self._object("POST", "/v1/files", **wire.upload(lines, filename))
        return await self._object("POST", "/v1/batches", json=wire.batch_of(file["id"]), headers=wire.fresh_key())

    async def batch(self, batch_id: str) -> dict[str, Any]:
        return await self._object("GET", f"/v1/batches/{batch_id}")

    async def cancel_batch(self, batch_id: str) -> dict[str, Any]:
        return await self._object("POST", f"/v1/batches/{batch_id}/cancel")

    async def batch_results(self, batch_id: str, *, errors: bool = False) -> AsyncIterator[dict[str, Any]]:
        path = f"/v1/files/{results_file(batch_id, errors=errors)}/content"
        with wire.reaching(self._http.base_url):
            async with self._http.stream("GET", path) as answer:
                if not answer.is_success:
                    await answer.aread()
                    wire.check(answer)
                async for line in self._lines(answer):
                    yield json.loads(line)

    # --- the service ----------------------------------------------------------------------------------

    async def models(self) -> list[dict[str, Any]]:
        return list((await self._object("GET", "/v1/models"))["data"])

    async def ready(self) -> tuple[bool, str]:
        """(whether a worker can draw, else why not)"""
        try:
            answer = await self._http.get("/health/ready", timeout=2)
        except httpx.TransportError as error:
            return False, f"no gateway yet ({type(error).__name__})"
        return answer.is_success, "" if answer.is_success else str(answer.json().get("reason", answer.text))

    async def wait_ready(self, *, timeout_s: float = 300.0, poll_s: float = 0.2) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            is_ready, reason = await self.ready()
            if is_ready:
                return
            if time.monotonic() > deadline:
                raise ServiceError(f"The service is not ready after {timeout_s:g} s: {reason}.")
            await asyncio.sleep(poll_s)

    # --- the wire -------------------------------------------------------------------------------------

    async def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return dict((await self._call(method, path, **options)).json())

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(self._max_retries + 1):
            answer, lost = None, None
            try:
                answer = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                lost = error
            wait_s = pause_s(attempt, answer)
            if wait_s is None or attempt == self._max_retries:
                break
            await asyncio.sleep(wait_s)
        if answer is None:
            raise wire.unreachable(self._http.base_url, lost or TimeoutError()) from lost
        return wire.check(answer)

    async def _events(
        self, method: str, path: str, *, after: str = "", **options: Any
    ) -> AsyncGenerator[JobEvent, None]:
        reader = EventReader()
        headers = {"Last-Event-ID": after} if after else {}
        async with self._http.stream(method, path, headers=headers, **options) as answer:
            if not answer.is_success:
                await answer.aread()
                wire.check(answer)
            async for line in self._lines(answer):
                if (event := reader.feed(line)) is not None:
                    yield event

    async def _lines(self, answer: httpx.Response) -> AsyncIterator[str]:
        reader = LineReader()
        async for piece in answer.aiter_bytes():
            for line in reader.feed(piece):
                yield line
