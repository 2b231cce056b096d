"""The description of a model that workers publish and the gateway checks requests against."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from server.records import decode
from server.sampling import Sampling

PRESETS = ("low", "medium", "high")  #: what a request may name; a model has others at most in addition


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Sizes, presets, limits and vocabulary of one model."""

    id: str
    family: str
    image_size: tuple[int, int]
    tokens: int
    presets: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    limits: Mapping[str, float]
    vocabulary: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()  #: other names of things in the vocabulary, which a prompt may use as well
    breadth: tuple[str, ...] = ()  #: the part of the vocabulary that was learned one thing at a time
    breadth_styles: tuple[str, ...] = ()  #: the only styles of the breadth; none: all
    caption_words: tuple[str, ...] = ()  #: all other words of its captions: counts, colours, positions; none: unknown
    backgrounds: tuple[str, ...] = ()  #: words before "background"; none: unknown
    hints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: other words -> names
    styles: tuple[str, ...] = ()
    max_prompt_tokens: int = 0  #: that it reads of a prompt; 0: unknown
    system: str = ""  #: order and kind of token, such as "random-continuous"; "": unknown
    orders: tuple[str, ...] = ("random", "halton", "gtr")  #: that a request may name
    labels: tuple[str, ...] = ()  #: of a class-conditional model: the names of class i, as "first, second, …"
    negative_prompts: bool = True  #: False if guidance steers away from a learned branch that no prompt can replace
    transparent: bool = False  #: it generates alpha, for a transparent background
    checkpoint_sha256: str = ""
    license: str = ""
    conditions: str = ""  #: that its users must observe, beyond the licence's notice
    source: str = ""  #: address of the publisher of imported weights
    description: str = ""
    examples: tuple[str, ...] = ()  #: prompts that show what it can do

    @property
    def terms(self) -> dict[str, str]:
        """Licence, conditions and source for an image's metadata, as far as they are known."""
        named = {"model_license": self.license, "model_conditions": self.conditions, "model_source": self.source}
        return {name: value for name, value in named.items() if value}

    @property
    def discrete(self) -> bool:
        """True if tokens are sampled from a codebook."""
        return self.system.endswith("-discrete")

    def has_fixed(self, parameter: str) -> bool:
        """True if the model's limits leave this parameter one value."""
        high = self.limits.get(f"max_{parameter}")
        return high is not None and high == self.limits.get(f"min_{parameter}")

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> "ModelInfo":
        """Build a ModelInfo from what an engine's info() returns or Redis stores.

        Raises:
            TypeError, KeyError, ValueError: a key or a preset is missing, or a value has the wrong type.
        """
        values = dict(raw)
        width, height = values["image_size"]
        values["image_size"] = (int(width), int(height))
        for name in _LISTS & values.keys():
            values[name] = tuple(values[name])
        info = decode(cls, values)
        for preset in PRESETS:
            Sampling.from_mapping({**info.defaults, **info.presets[preset]})
        return info


#: Fields that are lists in JSON.
_LISTS = {each.name for each in fields(ModelInfo) if each.type == tuple[str, ...]}
