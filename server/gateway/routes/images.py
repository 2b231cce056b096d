"""POST /v1/images/generations: OpenAI's synchronous image route, on top of the same queue as jobs."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.errors import InvalidRequest
from server.gateway.admission import idempotency_key, submission_of
from server.gateway.dependencies import ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.requests import content_negotiation
from server.gateway.requests.resolve import resolve
from server.gateway.responses.synchronous import respond
from server.gateway.schemas.images import ImagesResponse
from server.gateway.schemas.openapi import GENERATE, RequestBody

router = APIRouter(tags=["images"])


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    responses=GENERATE,
    operation_id="generate",
)
async def generate(request: Request, body: RequestBody, services: ServicesDep, caller: CallerDep) -> Response:
    """Draw pictures and wait for them. If you disconnect, the job is canceled; with an `Idempotency-Key` it goes on,
    and the same request with the same key gets its pictures.

    The official `openai` clients work unchanged; `seed`, `num_inference_steps`, `diffusion_steps`,
    `guidance_scale`, `guidance_schedule` and `temperature` go through their `extra_body`.
    With `Accept: image/*`, or a type of image, the answer is the file itself, and seed and timing are headers.
    With `stream: true` it is server-sent events: up to `partial_images` previews of each picture, then the pictures.
    """
    fleet = services.fleet
    body = content_negotiation.with_format(request, body)
    job, warnings = resolve(body, await fleet.models(), await fleet.default_model())
    if job.webhook:
        raise InvalidRequest("'webhook' is for jobs: POST /v1/jobs. Here the answer is the news.", param="webhook")
    submission = submission_of(
        caller, job, "sync", body.fingerprint(), key=idempotency_key(request), follow_events=bool(body.stream)
    )
    return await respond(request, services, body, submission, warnings)
