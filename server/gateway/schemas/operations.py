"""Models and health as callers get them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ModelObject(BaseModel):
    """A model, and all that its workers say of it: image_size, presets, defaults, limits, styles, vocabulary, ..."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    ready: bool = Field(description="Whether a live worker draws with it.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    status: str
    reason: str | None = None
