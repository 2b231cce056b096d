"""The recipe of a training run: a TOML file (model/recipes/*.toml) with every setting; only `name` may be missing.

The annotation of each key is its help text on the command line, where every top-level key can be overridden.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from model.config import ConfigError
from model.data.scenes.things import THINGS
from model.presets import PRESETS
from model.training.optimizer import OPTIMIZERS

POSITIVE = {
    "steps", "batch", "noise_draws", "learning_rate", "warmup", "clip", "sheet_every", "save_every", "things",
    "captions", "snap",
}  # fmt: skip
SHARES = {"anneal_from", "ema", "text_drop", "halton_masks", "gtr_masks", "portraits", "tags", "breadth"}
NOT_NEGATIVE = {"minutes", "anneal_minutes", "weight_decay", "seed", "relation_steps", "layout_weight", "loaders"}
_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("a text", (str,)), int: ("a whole number", (int,)), float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
}  # fmt: skip


@dataclass(frozen=True)
class SceneRecipe:
    """Table [scenes] of a recipe, for a model of scenes that are composed during training."""

    things: Annotated[int, "number of things, from the start of model/data/scenes/things.py"]
    styles: Annotated[tuple[str, ...], "styles of the sprites"]
    styles_held_out: Annotated[bool, "leave out things in the styles that scores of unseen styles ask for, 28 of 565"]
    captions: Annotated[int, "number of captioned facts; each gets a new arrangement every time it is used"]
    portraits: Annotated[float, "share of the captions that describe a portrait"]
    tags: Annotated[float, "share of the captions that end in a keyword of a thing"]
    snap: Annotated[int, "corners of things are multiples of this, pixels"]
    relation_steps: Annotated[int, "steps of relation pretraining (model/training/auxiliary/relation_pretraining.py)"]
    layout_weight: Annotated[float, "weight of the layout loss (model/training/auxiliary/layout_loss.py); 0: off"]
    breadth: Annotated[float, "share of each batch that shows single things of an atlas; 0 for data without them"]
    breadth_styles: Annotated[
        tuple[str, ...], "styles of single things, which are those that two of them draw; none: all"
    ]
    loaders: Annotated[int, "processes that compose scenes, on a CPU; 0: composed between the steps"]


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run."""

    name: Annotated[str, "id of the model where it is served; empty: the preset's name"]
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
    optimizer: Annotated[str, "adamw, or muon (Muon for the matrices of the blocks, AdamW for the rest)"]
    learning_rate: Annotated[float, "peak learning rate"]
    weight_decay: Annotated[float, "weight decay, of matrices only"]
    warmup: Annotated[int, "steps of linear warm-up"]
    anneal_from: Annotated[
        float, "share of the budget after which the learning rate falls linearly; of its steps, with anneal_minutes"
    ]
    anneal_minutes: Annotated[float, "length of a final annealing phase, which --anneal-now can begin earlier; 0: none"]
    clip: Annotated[float, "maximum gradient norm"]
    ema: Annotated[float, "decay of the averaged weights, which are the ones that ship"]
    text_drop: Annotated[float, "share of images trained without text, for classifier-free guidance"]
    halton_masks: Annotated[float, "share of images whose known tokens are those that a Halton order decides first"]
    gtr_masks: Annotated[float, "share of images whose known tokens are those that an order gtr decides first"]
    sheet_every: Annotated[int, "steps between sample sheets"]
    save_every: Annotated[int, "steps between saved states"]
    seed: Annotated[int, "seed of all random numbers"]
    compile: Annotated[bool, "use torch.compile: about a third faster, half a minute to start"]
    scenes: SceneRecipe | None = None

    @property
    def state_file(self) -> Path:
        """File that holds the whole state of the run."""
        return Path(self.out) / "state.pt"

    @property
    def mask_orders(self) -> dict[str, float]:
        """Kind of order -> share of images whose known tokens are those that it decides first."""
        return {"halton": self.halton_masks, "gtr": self.gtr_masks}

    @classmethod
    def load(cls, path: Path, **overrides: object) -> Recipe:
        """Read a TOML recipe in which every key but `name` is present, and none is unknown.

        Overrides that are None are ignored.

        Raises:
            ConfigError: the file is missing or no TOML, or a key is unknown, missing or has a value that cannot be; the
                message names it.
        """
        if not path.is_file():
            raise ConfigError(f"no recipe {path}; the shipped ones are in model/recipes")
        try:
            written = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is no TOML: {error}") from error
        raw = {"name": "", **written, **{k: v for k, v in overrides.items() if v is not None}}
        scenes = raw.pop("scenes", None)
        _check_values(path, raw, {name: kind for name, kind in get_type_hints(cls).items() if name != "scenes"})
        if scenes is not None:
            if not isinstance(scenes, dict):
                raise ConfigError(f"{path}: scenes must be one table, [scenes], not a {type(scenes).__name__}")
            _check_values(path, scenes, get_type_hints(SceneRecipe))
            if scenes["things"] > len(THINGS):
                raise ConfigError(f"{path}: things = {scenes['things']} must be at most {len(THINGS)}, which there are")
            lists = {key: tuple(value) for key, value in scenes.items() if isinstance(value, list)}
            scenes = SceneRecipe(**{**scenes, **lists})
        if raw["preset"] not in PRESETS:
            raise ConfigError(f"{path}: preset {raw['preset']!r} is not one of {sorted(PRESETS)}")
        for key in ("halton_masks", "gtr_masks"):
            if raw[key] and PRESETS[raw["preset"]].causal:
                raise ConfigError(f"{path}: {key} must be 0: {raw['preset']} predicts every token in raster order")
        if raw["halton_masks"] + raw["gtr_masks"] > 1:
            raise ConfigError(
                f"{path}: halton_masks = {raw['halton_masks']:g} and gtr_masks = {raw['gtr_masks']:g} are shares of "
                "the same images; their sum must be at most 1"
            )
        if raw["clock"] not in ("wall", "cpu"):
            raise ConfigError(f"{path}: clock {raw['clock']!r} is not wall or cpu")
        if raw["optimizer"] not in OPTIMIZERS:
            raise ConfigError(f"{path}: optimizer {raw['optimizer']!r} is not {' or '.join(OPTIMIZERS)}")
        if 0 < raw["minutes"] <= raw["anneal_minutes"]:
            raise ConfigError(
                f"{path}: minutes = {raw['minutes']:g} leaves nothing before anneal_minutes = "
                f"{raw['anneal_minutes']:g}; give fewer --anneal-minutes (0: anneal_from decides) or more --minutes"
            )
        return cls(**raw, scenes=scenes)


def _check_values(path: Path, raw: dict[str, Any], kinds: dict[str, Any]) -> None:
    names = set(kinds)
    for problem, keys in (("unknown", set(raw) - names), ("missing", names - set(raw))):
        if keys:
            raise ConfigError(f"{path}: {problem} key {sorted(keys)[0]!r}; a recipe has {sorted(names)} here")
    for name, value in raw.items():
        number: Any = value
        wanted, classes = _KINDS.get(kinds[name], ("a list of texts", (list, tuple)))
        if not isinstance(value, classes) or (isinstance(value, bool) and kinds[name] is not bool):
            raise ConfigError(f"{path}: {name} = {value!r} must be {wanted}")
        if isinstance(value, list | tuple) and not all(isinstance(each, str) for each in value):
            raise ConfigError(f"{path}: {name} = {value!r} must be {wanted}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}: {name} = {value!r} must be finite")
        if name in NOT_NEGATIVE and number < 0:
            raise ConfigError(f"{path}: {name} = {value!r} must be 0 or more")
        if name in POSITIVE and not number > 0:
            raise ConfigError(f"{path}: {name} = {value!r} must be more than 0")
        if name in SHARES and not 0 <= number <= 1:
            raise ConfigError(f"{path}: {name} = {value!r} must be from 0 to 1")
