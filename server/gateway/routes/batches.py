"""OpenAI's Batches API: many image requests in one file."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from server.batch_format import URL
from server.gateway.admission import IdempotencyKey, idempotency_key
from server.gateway.dependencies import ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.requests.body import JsonRoute
from server.gateway.requests.query_params import reject_unknown_query_params
from server.gateway.schemas.batches import BatchList, BatchObject
from server.gateway.schemas.openapi import BATCH_ERRORS, CREATE_BATCH

router = APIRouter(route_class=JsonRoute)


class BatchRequest(BaseModel):
    """The file to process; `completion_window` has one valid value."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [
        {"input_file_id": "file-0123", "endpoint": URL, "completion_window": "24h"}
    ]})  # fmt: skip

    input_file_id: Annotated[
        str, Field(min_length=1, max_length=100, description="Id of a file uploaded with POST /v1/files.")
    ]
    endpoint: Annotated[
        Literal["/v1/images/generations", "/v1/images/edits"],
        Field(description="The route that every line is sent to."),
    ]
    completion_window: Annotated[Literal["24h"], Field(description="Lines that are not finished by then are canceled.")]
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
        Field(max_length=16, description="Your own labels: up to 16, keys of 64 and values of 512 characters."),
    ] = None


@router.post(
    "/v1/batches", tags=["batches"], responses=CREATE_BATCH, response_model=BatchObject, operation_id="create_batch"
)
async def create_batch(
    body: BatchRequest, request: Request, services: ServicesDep, caller: CallerDep, key: IdempotencyKey = None
) -> dict[str, Any]:
    """Create a batch: every line of an uploaded file becomes a job of low priority.

    Batches survive restarts of the gateway, the workers and Redis. Repeating the request with the same
    `Idempotency-Key` returns the same batch.
    """
    batch = await services.batches.create(
        caller.name, body.input_file_id, body.metadata, idempotency_key(request), body.endpoint
    )
    return batch.to_openai()


@router.get(
    "/v1/batches",
    tags=["batches"],
    responses=BATCH_ERRORS,
    response_model=BatchList,
    operation_id="list_batches",
    dependencies=[Depends(reject_unknown_query_params)],
)
async def list_batches(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """List your batches, newest first."""
    found, has_more = await services.batches.list(caller.name, limit, after)
    ids = {"first_id": found[0].id if found else None, "last_id": found[-1].id if found else None}
    return {"object": "list", "data": [batch.to_openai() for batch in found], "has_more": has_more} | ids


@router.get(
    "/v1/batches/{batch_id}",
    tags=["batches"],
    responses=BATCH_ERRORS,
    response_model=BatchObject,
    operation_id="get_batch",
)
async def get_batch(batch_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Get a batch: its status, counts and the ids of its result files."""
    return (await services.batches.get(caller.name, batch_id)).to_openai()


@router.post(
    "/v1/batches/{batch_id}/cancel",
    tags=["batches"],
    responses=BATCH_ERRORS,
    response_model=BatchObject,
    operation_id="cancel_batch",
)
async def cancel_batch(batch_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Cancel a batch. Finished images stay available; repeating the call has no effect."""
    return (await services.batches.cancel(caller.name, batch_id)).to_openai()
