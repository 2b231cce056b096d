"""The request body, for servers that validate it with pydantic."""

from __future__ import annotations

from pydantic import BaseModel


class Body(BaseModel):
    prompt: str
    seed: int
    num_inference_steps: int | None = None
