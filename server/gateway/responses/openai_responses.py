"""OpenAI's Response object and its events, for the same jobs and previews as those of the image routes."""

import base64
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from server.errors import RequestError
from server.gateway.dependencies import Services
from server.gateway.responses import image_stream, sse
from server.gateway.responses.images import image_payload, usage
from server.gateway.schemas.openai_responses import (
    ImageCall,
    ResponseFault,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
)
from server.jobs import JobInput, JobRecord, JobState
from server.queue.job_queue import Outcome


@dataclass(frozen=True, slots=True)
class ResponseView:
    """Shows a job as a Response."""

    body: ResponsesRequest
    job: JobInput
    job_id: str
    action: str
    warnings: list[str]
    created_at: float

    @property
    def item_id(self) -> str:
        return f"ig_{self.job_id.removeprefix('job_')}"

    def call(self, status: str, result: str | None = None) -> ImageCall:
        job = self.job
        return ImageCall(
            id=self.item_id,
            status=status,
            result=result,
            action=self.action,
            background=job.background,
            output_format=job.output_format,
            quality=job.quality,
            size=f"{job.width}x{job.height}",
            seed=job.seed,
        )

    def response(self, status: str, *output: ImageCall, **others: Any) -> ResponseObject:
        """`others`: completed_at, usage or error."""
        body = self.body
        return ResponseObject(
            id=f"resp_{self.job_id.removeprefix('job_')}",
            created_at=self.created_at,
            status=status,
            model=self.job.model,
            output=list(output),
            metadata=body.metadata or {},
            tool_choice=body.tool_choice or "auto",
            tools=[{name: value for name, value in tool.items() if name != "input_image_mask"} for tool in body.tools],
            user=body.user,
            job_id=self.job_id,
            warnings=self.warnings,
            **others,
        )

    async def completed(self, services: Services, record: JobRecord) -> ResponseObject:
        """The response with the image.

        Raises:
            JobExpired: the image was deleted.
        """
        image = await image_payload(services, record, record.outputs[0], "b64_json", "")
        counted = await usage(services, record)
        total = ResponseUsage(
            input_tokens=counted.input_tokens,
            input_tokens_details={"cached_tokens": 0, "cache_write_tokens": 0},
            output_tokens=counted.output_tokens,
            output_tokens_details={"reasoning_tokens": 0},
            total_tokens=counted.total_tokens,
        )
        call = self.call("completed", image["b64_json"])
        return self.response("completed", call, completed_at=record.completed_at or time.time(), usage=total)


async def response_events(
    services: Services, view: ResponseView, outcome: Outcome, *, keep: bool
) -> AsyncIterator[bytes]:
    """Yield the events of a response: created, the call and its previews, completed or failed.

    Args:
        outcome: not NEW if the job is that of an earlier request, whose resolved parameters are shown then.
        keep: as `image_stream.image_events`.
    """
    numbers = itertools.count()

    def event(kind: str, **fields: Any) -> bytes:
        return sse.message({"type": kind, "sequence_number": next(numbers)} | fields, event=kind)

    def of_call(kind: str, **fields: Any) -> bytes:
        return event(f"response.image_generation_call.{kind}", item_id=view.item_id, output_index=0, **fields)

    is_open = is_generating = False
    try:
        if outcome is not Outcome.NEW:
            record = await services.queue.get(view.job_id)
            view = replace(view, job=record.input, created_at=record.created_at)
        call = view.call("in_progress")
        cached = outcome is Outcome.CACHED
        async with aclosing(image_stream.follow_images(services, view.job_id, keep=keep, cached=cached)) as followed:
            async for news in followed:
                # Not before the job is followed: a client that disconnects from then on cancels it.
                if not is_open:
                    is_open, opening = True, view.response("in_progress").model_dump()
                    yield event("response.created", response=opening)
                    yield event("response.in_progress", response=opening)
                    yield event("response.output_item.added", output_index=0, item=call.model_dump())
                    yield of_call("in_progress")
                is_waiting = news is None or (isinstance(news, JobState) and news is not JobState.PROCESSING)
                if not (is_waiting or is_generating):
                    is_generating = True
                    yield of_call("generating")
                if news is None:
                    yield sse.PING
                elif isinstance(news, image_stream.Preview):
                    shown = call.model_dump(include={"background", "output_format", "quality", "size"})
                    data = base64.b64encode(news.data).decode()
                    yield of_call("partial_image", partial_image_index=news.number, partial_image_b64=data, **shown)
                elif isinstance(news, JobRecord):
                    done = await view.completed(services, news)
                    yield of_call("completed")
                    yield event("response.output_item.done", output_index=0, item=done.output[0].model_dump())
                    yield event("response.completed", response=done.model_dump())
    except image_stream.FAILURES as error:
        yield event("response.failed", response=_failed(view, image_stream.request_error(services, view.job_id, error)))


def _failed(view: ResponseView, error: RequestError) -> dict[str, Any]:
    """The last response of a stream. The status code is already sent, so its class is in the error's code."""
    code = "server_error" if error.status >= 500 else "invalid_prompt"
    fault = ResponseFault(code=code, message=error.message)
    return view.response("failed", view.call("failed"), error=fault).model_dump()
