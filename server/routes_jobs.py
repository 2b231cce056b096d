"""/v1/jobs: submit without waiting, look, fetch, cancel."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from server.admission import accept
from server.errors import UnknownImage
from server.images import MIME
from server.jobs import JobState, new_job_id
from server.openapi import JOB, JOB_IMAGE, SUBMIT_ERRORS, RequestBody
from server.resolve import resolve
from server.schemas import JobObject
from server.services import ServicesDep
from server.views import gone, job_object

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post("", status_code=202, response_model=JobObject, responses=SUBMIT_ERRORS, operation_id="submit_job")
async def submit(body: RequestBody, services: ServicesDep) -> Response:
    """Accept a request and answer at once. Survives disconnects and restarts of everything."""
    fleet = services.fleet
    job, warnings = resolve(body, await fleet.models(), await fleet.default_model())
    job_id = new_job_id()
    await accept(services, job_id, job, "job")
    view = await job_object(services, await services.queue.get(job_id), warnings)
    return JSONResponse(view.model_dump(), status_code=202, headers={"Location": f"/v1/jobs/{job_id}"})


@router.get("/{job_id}", response_model=JobObject, responses=JOB, operation_id="get_job")
async def get(job_id: str, services: ServicesDep) -> Response:
    """202 while the job waits or runs, 200 once it has ended."""
    record = await services.queue.get(job_id)
    view = await job_object(services, record)
    return JSONResponse(view.model_dump(), status_code=200 if record.state.terminal else 202)


@router.get(
    "/{job_id}/images/{index}",
    response_class=Response,
    responses=JOB_IMAGE,
    operation_id="get_job_image",
)
async def image(job_id: str, index: int, services: ServicesDep) -> Response:
    """The file of one picture."""
    record = await services.queue.get(job_id)
    if record.state is not JobState.SUCCEEDED:
        # Only what can still come is worth a retry.
        retry = None if record.state.terminal else 1
        raise UnknownImage(
            f"Job {job_id} is {record.state}; it has no pictures{' yet' if retry else ''}.",
            param="index",
            retry_after_s=retry,
        )
    if not 0 <= index < len(record.outputs):
        raise UnknownImage(f"Job {job_id} has images 0 to {len(record.outputs) - 1}, not {index}.", param="index")
    output = record.outputs[index]
    data = await services.queue.result(record, output)
    if data is None:
        raise gone(record)
    headers = {"seed": str(output.seed), "ETag": f'"{output.sha256}"', "Cache-Control": "private, immutable"}
    return Response(data, media_type=MIME[output.format], headers=headers)


@router.post("/{job_id}/cancel", status_code=202, response_model=JobObject, responses=JOB, operation_id="cancel_job")
async def cancel(job_id: str, services: ServicesDep) -> Response:
    """Safe to repeat. 200 once the job has ended, 202 while its worker is still letting go."""
    record = await services.queue.cancel(job_id)
    view = await job_object(services, record)
    return JSONResponse(view.model_dump(), status_code=200 if record.state.terminal else 202)
