"""The sampling parameters of a request, defined once for the service; no torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from server.records import decode


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a row is decoded. model/inference/requests.py has the same fields, because the gateway's image has no model;
    a new one also needs its entry in `ImageRequest`."""

    num_inference_steps: int
    diffusion_steps: int
    guidance_scale: float
    guidance_schedule: str
    temperature: float
    order: str = "random"  #: "random", "halton", "gtr" or "confidence"; or "raster", which such models have only
    diffusion_steps_final: int | None = None  #: at the last AR step; None: as many as at the first
    guidance_interval: tuple[float, float] = (0.0, 1.0)  #: share of the AR steps in which guidance acts
    top_k: int | None = None  #: discrete tokens: sample from the k likeliest; None: from all
    top_p: float | None = None  #: discrete tokens: sample from the likeliest with this share of the probability

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Sampling":
        """Pick the sampling parameters out of JSON, which may hold others; None means the default."""
        given = {name: _typed(values[name]) for name in SAMPLING_FIELDS if values.get(name) is not None}
        return decode(cls, given)

    def __post_init__(self) -> None:
        """Convert to float: JSON may write 3.0 as 3, on which `repr` and the job object should not depend."""
        for name in ("guidance_scale", "temperature"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.top_p is not None:
            object.__setattr__(self, "top_p", float(self.top_p))


def _typed(value: Any) -> Any:
    """Turn a list into a tuple, which JSON does not have."""
    return tuple(map(float, value)) if isinstance(value, list | tuple) else value


SAMPLING_FIELDS = tuple(field.name for field in fields(Sampling))
