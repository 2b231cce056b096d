"""Models, health checks, metrics and the playground."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics import exposition as openmetrics
from redis.exceptions import RedisError

from server.errors import NoWorkers, UnknownModel
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.metrics import render
from server.gateway.pages.api_reference import api_reference
from server.gateway.pages.playground import playground
from server.gateway.pages.self_contained import Page
from server.gateway.queue_trouble import reason
from server.gateway.schemas.openapi import MODEL, READY
from server.gateway.schemas.operations import Health, ModelList, ModelObject
from server.queue.redis_client import redis_time
from server.queue.statistics import queue_counts

log = logging.getLogger(__name__)
router = APIRouter()


@router.get("/v1/models", tags=["models"], response_model=ModelList, operation_id="list_models")
async def list_models(services: ServicesDep) -> dict[str, Any]:
    """List the models, each with its image size, presets, limits, styles, vocabulary and licence; the one of requests
    that name none comes first."""
    return {"object": "list", "data": await _models(services)}


@router.get(
    "/v1/models/{model_id:path}", tags=["models"], response_model=ModelObject, responses=MODEL, operation_id="get_model"
)
async def get_model(model_id: str, request: Request, services: ServicesDep) -> dict[str, Any] | RedirectResponse:
    """Get one model, by its id or an alias, which may have slashes."""
    if not model_id or model_id.endswith("/"):  # as other routes answer, whose parameters have no slashes
        return RedirectResponse(request.url.replace(path=request.url.path.rstrip("/")))
    known = await _models(services)
    ids = [each["id"] for each in known]
    wanted = model_id if model_id in ids else services.mapping.aliases.get(model_id, model_id)
    for each in known:
        if each["id"] == wanted:
            return each
    names = ", ".join(each["id"] for each in known) or "none yet"
    raise UnknownModel(f"No model has the id {model_id[:100]!r}. Served: {names}.", param="model")


async def _models(services: Services) -> list[dict[str, Any]]:
    fleet = services.fleet
    try:
        known, default = await fleet.models(), await fleet.default_model()
    except NoWorkers:
        known, default = {}, ""
    default, ready = services.mapping.aliases.get(default, default), await fleet.readiness()
    return [
        {"id": m.id, "object": "model", "created": 0, "owned_by": "fluid-serve"}
        | {"ready": ready.get(m.id, False), "default": m.id == default}
        | {key: value for key, value in asdict(m).items() if key != "id"}
        for m in sorted(known.values(), key=lambda m: (m.id != default, m.id))
    ]


@router.get(
    "/health/live", tags=["health"], response_model=Health, response_model_exclude_none=True, operation_id="live"
)
async def live() -> dict[str, str]:
    """Liveness: the gateway responds. Restart it only when this fails; it says nothing about workers."""
    return {"status": "live"}


@router.get("/health/ready", tags=["health"], response_model=Health, responses=READY, operation_id="ready")
async def ready(services: ServicesDep) -> Response:
    """Readiness: 200 when a live worker has generated its canary image and no background task of this gateway keeps
    crashing, and the store of finished images works, or else 503 with the reason. `models` tells which models are
    ready, for one is enough; `warnings` what an operator should mend."""
    try:
        why_not = await services.fleet.unready_reason()
    except RedisError as error:
        log.warning("not ready: %s", error)  # holds the address of Redis, so it stays out of the response
        why_not = f"the queue {reason(services.settings, error)}"
    store = services.queue.store
    if store is not None and store.trouble and store.trouble not in (why_not or ""):
        trouble = f"the store of finished images {store.trouble}"
        why_not = f"{why_not}; {trouble}" if why_not else trouble
    failing = "; ".join(map(str, services.supervisor.failing))
    if failing:
        why_not = f"{why_not}; {failing}" if why_not else failing
    if why_not is None:
        models = {"models": await services.fleet.readiness()}
        warnings = services.fleet.warnings
        return JSONResponse({"status": "ready", **models} | ({"warnings": warnings} if warnings else {}))
    return JSONResponse({"status": "not ready", "reason": why_not}, status_code=503, headers={"Retry-After": "1"})


@router.get("/metrics", tags=["health"], response_class=Response, operation_id="metrics")
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Metrics of the whole service in Prometheus' text format: this gateway, the queue and all workers.

    With `Accept: application/openmetrics-text` in OpenMetrics' format, where latencies name traces as exemplars.
    """
    registry = services.registry
    wants_exemplars = "application/openmetrics-text" in request.headers.get("accept", "")
    exemplars = await registry.exemplars() if wants_exemplars else None
    workers, last_seen = await registry.workers(), await registry.last_seen()
    text = render(
        services.metrics,
        await queue_counts(services.queue),
        workers,
        await registry.current_models(workers, await registry.replaced()),
        await registry.stats(),
        await redis_time(services.queue.redis),
        last_seen,
        await registry.models_of(set(last_seen) - {worker.id for worker in workers}),
        exemplars,
    )
    return Response(text, media_type=openmetrics.CONTENT_TYPE_LATEST if wants_exemplars else CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def show_playground() -> HTMLResponse:
    return playground().response()


@router.get("/docs", include_in_schema=False)
async def show_api_reference(request: Request) -> HTMLResponse:
    state = request.app.state
    if not hasattr(state, "api_reference"):
        state.api_reference = api_reference(request.app.openapi())
    page: Page = state.api_reference
    return page.response()
