"""The request body that every peer validates."""

from __future__ import annotations

from pydantic import BaseModel


class Body(BaseModel):
    prompt: str
    seed: int
    num_inference_steps: int | None = None
