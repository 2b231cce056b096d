"""POST /v1/images/generations: OpenAI's synchronous image route, on the same queue as jobs."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.errors import InvalidRequest
from server.gateway.admission import idempotency_key, submission_of
from server.gateway.dependencies import ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.requests import content_negotiation
from server.gateway.requests.body import JsonRoute
from server.gateway.requests.resolve import resolve
from server.gateway.responses.synchronous import respond
from server.gateway.schemas.image_responses import ImagesResponse
from server.gateway.schemas.openapi import GENERATE, RequestBody

router = APIRouter(tags=["images"], route_class=JsonRoute)


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    responses=GENERATE,
    operation_id="generate",
)
async def generate_images(request: Request, body: RequestBody, services: ServicesDep, caller: CallerDep) -> Response:
    """Generate images and wait for them.

    The official `openai` clients work unchanged; pass `seed`, `num_inference_steps`, `diffusion_steps`,
    `guidance_scale`, `guidance_schedule` and `temperature` through their `extra_body`.

    If you disconnect, the job is canceled. With an `Idempotency-Key` it continues instead, and repeating the same
    request with the same key returns its images.

    With `Accept: image/*`, or a specific image type, the response is the image file; its seed and timings are in the
    headers. With `stream: true` the response is server-sent events: up to `partial_images` previews of each image,
    then the images.
    """
    fleet = services.fleet
    body = content_negotiation.with_format(request, body)
    models = await fleet.models()
    job, warnings = resolve(body, models, await fleet.default_model(), services.mapping)
    if job.webhook:
        raise InvalidRequest("'webhook' is for POST /v1/jobs; this route waits for the images.", param="webhook")
    key = idempotency_key(request)
    fingerprint = body.fingerprint() if key else ""  # a random id is met only by this very request
    submission = submission_of(caller, job, "sync", fingerprint, key=key, follow_events=bool(body.stream))
    submission = services.result_cache.mark(submission, request, models, seeded=body.seed is not None)
    return await respond(request, services, body, submission, warnings)
