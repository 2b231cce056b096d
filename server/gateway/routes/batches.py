"""OpenAI's Batches routes: many requests in one file."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from server.batch_format import URL
from server.gateway.admission import Key, idempotency_key
from server.gateway.dependencies import ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.schemas.batches import BatchList, BatchObject
from server.gateway.schemas.openapi import BATCH_ERRORS, CREATE_BATCH

router = APIRouter()


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [
        {"input_file_id": "file-0123", "endpoint": URL, "completion_window": "24h"}
    ]})  # fmt: skip

    input_file_id: Annotated[str, Field(min_length=1, max_length=100, description="Of POST /v1/files.")]
    endpoint: Annotated[Literal["/v1/images/generations"], Field(description="What each line is sent to.")]
    completion_window: Annotated[Literal["24h"], Field(description="What is not done by then is canceled.")]
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]] | None, Field(max_length=16)] = None


@router.post(
    "/v1/batches", tags=["batches"], responses=CREATE_BATCH, response_model=BatchObject, operation_id="create_batch"
)
async def create(
    body: BatchRequest, request: Request, services: ServicesDep, caller: CallerDep, key: Key = None
) -> dict[str, Any]:
    """Draw every line of a file, behind everybody else's requests. Survives restarts of everything."""
    known = idempotency_key(request)
    return (await services.batches.create(caller.name, body.input_file_id, body.metadata, known)).view()


@router.get(
    "/v1/batches", tags=["batches"], responses=BATCH_ERRORS, response_model=BatchList, operation_id="list_batches"
)
async def list_batches(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """Newest first."""
    found, has_more = await services.batches.list(caller.name, limit, after)
    ids = {"first_id": found[0].id if found else None, "last_id": found[-1].id if found else None}
    return {"object": "list", "data": [batch.view() for batch in found], "has_more": has_more} | ids


@router.get(
    "/v1/batches/{batch_id}",
    tags=["batches"],
    responses=BATCH_ERRORS,
    response_model=BatchObject,
    operation_id="get_batch",
)
async def get_batch(batch_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """How far a batch is."""
    return (await services.batches.get(caller.name, batch_id)).view()


@router.post(
    "/v1/batches/{batch_id}/cancel",
    tags=["batches"],
    responses=BATCH_ERRORS,
    response_model=BatchObject,
    operation_id="cancel_batch",
)
async def cancel(batch_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Safe to repeat. What has been drawn stays."""
    return (await services.batches.cancel(caller.name, batch_id)).view()
