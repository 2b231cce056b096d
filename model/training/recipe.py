"""What a training run needs to know, as TOML: model/recipes/*.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from model.config import ConfigError
from model.presets import PRESETS


@dataclass(frozen=True)
class SceneRecipe:
    """Table [scenes] of a recipe: the pictures are composed while training."""

    things: int
    styles: tuple[str, ...]
    captions: int
    portraits: float
    tags: float
    snap: int
    reading_steps: int
    layout: float
    loaders: int


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs to know; the comments are in the recipe file."""

    preset: str
    data: str
    tokenizer: str
    text_encoder: str
    start_from: str
    out: str
    minutes: float
    steps: int
    batch: int
    noise_draws: int
    learning_rate: float
    weight_decay: float
    warmup: int
    anneal_from: float
    clip: float
    ema: float
    text_drop: float
    sheet_every: int
    save_every: int
    seed: int
    compile: bool
    scenes: SceneRecipe | None = None

    @property
    def state_file(self) -> Path:
        """Where a run keeps its whole state."""
        return Path(self.out) / "state.pt"

    @classmethod
    def load(cls, path: Path, **overrides: object) -> Recipe:
        """Read a TOML recipe; every key must be there and known.

        Raises:
            ConfigError: names the key.
        """
        raw = {**tomllib.loads(path.read_text()), **{k: v for k, v in overrides.items() if v is not None}}
        scenes = raw.pop("scenes", None)
        _check_keys(path, raw, {f.name for f in fields(cls)} - {"scenes"})
        if scenes is not None:
            _check_keys(path, scenes, {f.name for f in fields(SceneRecipe)})
            scenes = SceneRecipe(**{**scenes, "styles": tuple(scenes["styles"])})
        if raw["preset"] not in PRESETS:
            raise ConfigError(f"{path}: preset {raw['preset']!r} is not one of {sorted(PRESETS)}")
        return cls(**raw, scenes=scenes)


def _check_keys(path: Path, raw: dict[str, Any], names: set[str]) -> None:
    for problem, keys in (("unknown", set(raw) - names), ("missing", names - set(raw))):
        if keys:
            raise ConfigError(f"{path}: {problem} key {sorted(keys)[0]!r}; a recipe has {sorted(names)} here")
