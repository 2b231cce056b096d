"""What a worker publishes about its model, and what the gateway checks requests against."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker publishes about its model; the gateway resolves and checks requests against it."""

    id: str
    family: str
    image_size: tuple[int, int]
    tokens: int
    presets: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    limits: Mapping[str, float]
    vocabulary: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # of a class-conditional model: "first name, second name, …" of class i
    checkpoint_sha256: str = ""
    license: str = ""
    description: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> "ModelInfo":
        """From an engine's info() or from Redis; missing or unknown keys are an error."""
        values = dict(raw)
        width, height = values["image_size"]
        values["image_size"] = (int(width), int(height))
        for name in ("vocabulary", "styles", "labels"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)
