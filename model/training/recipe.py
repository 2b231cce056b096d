"""The recipe of a training run: a TOML file (model/recipes/*.toml) with every setting, none of them optional.

The annotation of each key is its help text on the command line, where every top-level key can be overridden.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from model.config import ConfigError
from model.presets import PRESETS


@dataclass(frozen=True)
class SceneRecipe:
    """Table [scenes] of a recipe, for a model of scenes that are composed during training."""

    things: Annotated[int, "number of things, from the start of model/data/scenes/things.py"]
    styles: Annotated[tuple[str, ...], "styles of the sprites"]
    captions: Annotated[int, "number of captioned facts; each gets a new arrangement every time it is used"]
    portraits: Annotated[float, "share of the captions that describe a portrait"]
    tags: Annotated[float, "share of the captions that end in a keyword of a thing"]
    snap: Annotated[int, "corners of things are multiples of this, pixels"]
    relation_steps: Annotated[int, "steps of relation pretraining (model/training/relation_pretraining.py)"]
    layout_weight: Annotated[float, "weight of the auxiliary layout loss (model/training/layout_loss.py); 0: off"]
    breadth: Annotated[float, "share of each batch that shows single things of an atlas; 0 for data without them"]
    loaders: Annotated[int, "processes that compose scenes; 0: composed between the steps"]


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run."""

    preset: Annotated[str, "sizes of the model, a name in model/presets.py"]
    data: Annotated[str, "folder that `make data` packed"]
    tokenizer: Annotated[str, "trained image tokenizer: a .safetensors file, or the folder of a checkpoint"]
    text_encoder: Annotated[str, "folder of the text encoder's weights; empty: those that the preset names"]
    start_from: Annotated[str, "folder of a checkpoint with the initial weights; empty: random"]
    out: Annotated[str, "folder for state, sample sheets and checkpoint"]
    minutes: Annotated[float, "time budget in minutes; annealing ends with it. 0: steps alone count"]
    clock: Annotated[str, "what minutes are of: wall (time of day), or cpu (processor time of the trainer alone)"]
    steps: Annotated[int, "maximum number of steps"]
    batch: Annotated[int, "images per step"]
    noise_draws: Annotated[int, "diffusion losses per masked token"]
    learning_rate: Annotated[float, "peak learning rate of AdamW (betas 0.9, 0.95)"]
    weight_decay: Annotated[float, "weight decay, of matrices only"]
    warmup: Annotated[int, "steps of linear warm-up"]
    anneal_from: Annotated[float, "share of the budget after which the learning rate falls linearly"]
    anneal_minutes: Annotated[float, "length of a final annealing phase, which --anneal-now can begin earlier; 0: none"]
    clip: Annotated[float, "maximum gradient norm"]
    ema: Annotated[float, "decay of the averaged weights, which are the ones that ship"]
    text_drop: Annotated[float, "share of images trained without text, for classifier-free guidance"]
    sheet_every: Annotated[int, "steps between sample sheets"]
    save_every: Annotated[int, "steps between saved states"]
    seed: Annotated[int, "seed of all random numbers"]
    compile: Annotated[bool, "use torch.compile: about a third faster, half a minute to start"]
    scenes: SceneRecipe | None = None

    @property
    def state_file(self) -> Path:
        """File that holds the whole state of the run."""
        return Path(self.out) / "state.pt"

    @classmethod
    def load(cls, path: Path, **overrides: object) -> Recipe:
        """Read a TOML recipe in which every key is present and known; overrides that are None are ignored.

        Raises:
            ConfigError: the file is missing, or a key is unknown or missing; the message names it.
        """
        if not path.is_file():
            raise ConfigError(f"no recipe {path}; the shipped ones are in model/recipes")
        raw = {**tomllib.loads(path.read_text()), **{k: v for k, v in overrides.items() if v is not None}}
        scenes = raw.pop("scenes", None)
        _check_keys(path, raw, {f.name for f in fields(cls)} - {"scenes"})
        if scenes is not None:
            _check_keys(path, scenes, {f.name for f in fields(SceneRecipe)})
            scenes = SceneRecipe(**{**scenes, "styles": tuple(scenes["styles"])})
        if raw["preset"] not in PRESETS:
            raise ConfigError(f"{path}: preset {raw['preset']!r} is not one of {sorted(PRESETS)}")
        if raw["clock"] not in ("wall", "cpu"):
            raise ConfigError(f"{path}: clock {raw['clock']!r} is not wall or cpu")
        return cls(**raw, scenes=scenes)


def _check_keys(path: Path, raw: dict[str, Any], names: set[str]) -> None:
    for problem, keys in (("unknown", set(raw) - names), ("missing", names - set(raw))):
        if keys:
            raise ConfigError(f"{path}: {problem} key {sorted(keys)[0]!r}; a recipe has {sorted(names)} here")
