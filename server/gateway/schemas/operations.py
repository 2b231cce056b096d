"""Models and health as callers see them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_MODEL: dict[str, Any] = {
    "id": "atlas-128", "object": "model", "created": 0, "owned_by": "fluid-serve", "ready": True, "default": True,
    "family": "fluid", "image_size": [128, 128], "tokens": 64, "transparent": True,
    "styles": ["3d", "flat"], "vocabulary": ["apple"],
    "limits": {"max_n": 10, "max_num_inference_steps": 64}, "defaults": {"quality": "medium", "guidance_scale": 1.5},
}  # fmt: skip


class ModelObject(BaseModel):
    """A model and everything its workers publish about it: image_size, presets, defaults, limits, styles, ..."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_MODEL]})

    id: str = Field(description="Send it as `model`.")
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Always 0; present for OpenAI clients.")
    owned_by: str
    ready: bool = Field(description="Whether a live worker can generate with this model now.")
    default: bool = Field(default=False, description="Whether requests without `model` get this one.")
    transparent: bool = Field(default=False, description="Whether `background` can be transparent.")


class ModelList(BaseModel):
    """Every model that a worker has published, but those that a reload has replaced everywhere."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object": "list", "data": [_MODEL]}]})

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """Health of the gateway (live) or of the whole service (ready)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "live"}]})

    status: str = Field(description="live, ready or not ready.")
    reason: str | None = Field(default=None, description="Why the service is not ready.")
    warnings: list[str] | None = Field(default=None, description="What an operator should mend although it is ready.")
    models: dict[str, bool] | None = Field(default=None, description="Which models are ready, if any is.")
