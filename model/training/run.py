"""State of a training run: model, optimiser, clock, data. `prepare` makes it; it saves and resumes itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import load_checkpoint, read_config
from model.config import ConfigError, FluidConfig
from model.data.atlas.atlas_bank import AtlasBank
from model.data.dataset import Dataset
from model.data.scenes.compose import SIZE
from model.diffusion import Schedule, make_schedule
from model.inference.prompts import encoder_dtype
from model.networks.autoregressive_model import Fluid
from model.networks.factory import AnyTokenizer
from model.networks.text_encoder import build_text_encoder, is_packaged
from model.networks.transformer import RESIDUAL_OUTPUTS
from model.presets import PRESETS
from model.process_group import Group, Share
from model.training.auxiliary.layout_loss import LayoutHead
from model.training.auxiliary.relation_pretraining import pretrain_or_read
from model.training.command.machine import can_compile
from model.training.composer.feed import ComposedFeed
from model.training.distributed.folders import newest
from model.training.distributed.losses import StepLosses
from model.training.feeds import WHOLE, Feed, ImageFeed, SceneFeed, open_scenes
from model.training.latents.feed import LatentFeed
from model.training.latents.store import LatentCache, is_latent_cache
from model.training.optimizer import make_optimizer
from model.training.recipe import Recipe
from model.training.reconstruction.load import load_tokenizer, tokens_digest
from model.training.trainer import Clock, Ema, Learner, own_state


@dataclass
class Run:
    """Everything that the training loop reads or changes.

    Attributes:
        layout_head: layer of the auxiliary layout loss, for recipes that have one.
        losses: model and layout head, as one module.
        group: the ranks that share the run; None: this process trains alone.
        started_from: as `started_from` gives it; a resumed run keeps its own.
        made_of: as `made_of` gives it; a run is resumed with the same alone.
        history: [step, seconds of training, mean loss since the last entry], one entry per save.
        data_wait_s: seconds that this process has waited for batches.
    """

    recipe: Recipe
    config: FluidConfig
    model: Fluid
    learner: Learner
    schedule: Schedule
    feed: Feed
    device: torch.device
    losses: StepLosses
    layout_head: LayoutHead | None = None
    history: list[list[float]] = field(default_factory=list)
    data_wait_s: float = 0.0
    group: Group | None = None
    started_from: dict[str, Any] = field(default_factory=dict)
    made_of: dict[str, Any] = field(default_factory=dict)

    @property
    def leads(self) -> bool:
        """True for the process that writes and reports."""
        return self.group is None or self.group.leads

    @property
    def share(self) -> Share:
        """The part of each batch that this process computes."""
        return WHOLE if self.group is None else self.group.share

    @property
    def clock(self) -> Clock:
        return self.learner.clock

    def save(self) -> None:
        """Write the whole state to the recipe's state file."""
        layout = {"layout": self.layout_head.state_dict()} if self.layout_head else {}
        self.learner.save(
            self.recipe.state_file, history=self.history, started_from=self.started_from, made_of=self.made_of, **layout
        )

    def resume(self) -> bool:
        """Load the state file and return True, or return False if there is none.

        Raises:
            ConfigError: it is damaged, or that of another preset, optimizer, set of losses, start, tokenizer or data,
                or its annealing phase has begun and the recipe has none.
        """
        out = Path(self.recipe.out)
        with own_state(out, f", and --start-from {out}/checkpoint to go on from its weights"):
            state = self.learner.resume(self.recipe.state_file)
            if state is not None and self.layout_head:
                self.layout_head.load_state_dict(state["layout"])
        if state is None:
            return False
        self.history = state["history"]
        kept = state.get("started_from")  # absent from states of earlier versions
        start = self.started_from  # another run may have written new weights to its folder since
        if kept is not None and start and all(start[key] != kept.get(key) for key in ("sha256", "folder")):
            raise ConfigError(
                f"start_from = {self.recipe.start_from!r}: {out} holds a run that began with "
                f"{kept['name'] + ', weights ' + kept['sha256'] if kept else 'random weights'}; resume it with "
                "an empty start_from (--start-from ''), or choose another --out"
            )
        self.started_from = start if kept is None else kept
        before = state.get("made_of") or {}  # absent from states of earlier versions
        for what, value in self.made_of.items():
            if before.get(what, value) != value:
                raise ConfigError(
                    f"{out} holds a run that began with another {what}: restore it, or choose another --out, with "
                    f"--start-from {out}/checkpoint to go on from its weights"
                )
        if self.clock.annealing is not None and not self.recipe.anneal_minutes:
            raise ConfigError(
                f"anneal_minutes = 0, but the annealing phase of {out} has begun, and would end at once: give its "
                "length by --anneal-minutes"
            )
        return True


def open_feed(
    recipe: Recipe, config: FluidConfig, tokenizer: AnyTokenizer, device: torch.device, share: Share = WHOLE
) -> Feed:
    """Open the recipe's data and encode its captions; for a fixed image set, encode the images too.

    Raises:
        DataError, ConfigError: the data are missing, or do not fit the tokenizer.
    """
    folder = Path(recipe.data)
    images = None if recipe.scenes else LatentCache(folder) if is_latent_cache(folder) else Dataset.load(folder)
    if isinstance(images, LatentCache):
        _check_size(recipe, images.latents.shape[1], config.tokens, "tokens")
    else:
        _check_size(recipe, SIZE if images is None else images.images.shape[1], config.image_size, "pixels")
    encoder = build_text_encoder(config.text, recipe.text_encoder, encoder_dtype(device)).to(device)
    if isinstance(images, LatentCache):
        return LatentFeed(images, tokenizer, encoder, recipe.batch, recipe.seed, share)
    if images is not None:
        return ImageFeed(images, tokenizer, encoder, folder, recipe.batch, recipe.seed, share)
    assert recipe.scenes is not None
    scenes, s = open_scenes(recipe, recipe.scenes), recipe.scenes
    if isinstance(scenes, AtlasBank) and config.image_channels == 3:
        raise ConfigError(
            f"images of {recipe.data} have alpha, preset {recipe.preset} has none: choose another preset, or other data"
        )
    made = (scenes, tokenizer, encoder, folder, recipe.batch, recipe.seed)
    if device.type != "cpu":
        return ComposedFeed(*made, device, s.breadth, share, recipe.compile)
    return SceneFeed(*made, s.loaders, device, s.breadth, share)


def _check_size(recipe: Recipe, size: int, wanted: int, unit: str) -> None:
    """Raise ConfigError if images of the data have another size than the preset's: before captions are encoded."""
    if size != wanted:
        raise ConfigError(
            f"images of {recipe.data} have {size} {unit}, preset {recipe.preset} generates {wanted}: choose another "
            "preset, or other data"
        )


def config_of(recipe: Recipe) -> FluidConfig:
    """The preset's config, with the recipe's text encoder: the checkpoint is served with it."""
    config = PRESETS[recipe.preset]
    if not recipe.text_encoder or config.text.kind not in ("transformers", "package"):
        return config
    folder = Path(recipe.text_encoder)  # the service may be started elsewhere
    if config.text.kind == "package" and is_packaged(folder, config.text.name):  # that of a portable run
        return config
    name = str(folder.resolve()) if folder.is_dir() else recipe.text_encoder
    return replace(config, text=replace(config.text, kind="transformers", name=name))


def prepare(recipe: Recipe, group: Group | None = None) -> tuple[Run, AnyTokenizer]:
    """Do everything that precedes the first step: load data and tokenizer, make model and optimiser.

    Relation pretraining of scenes happens here, unless the run resumes or starts from a checkpoint, which has had it.

    Args:
        group: the ranks that train together.
    Raises:
        ConfigError, DataError, CheckpointError: something that the recipe names is missing or does not fit.
    """
    config = config_of(recipe)
    device = group.device if group else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(config, recipe.tokenizer)
    if recipe.compile and (group or not can_compile(device)):  # ranks gather parameters within a pass
        recipe = replace(recipe, compile=False)
    feed = open_feed(recipe, config, tokenizer, device, group.share if group else WHOLE)
    if group and min(recipe.batch, len(feed)) < group.size:
        raise ConfigError(f"a batch of {min(recipe.batch, len(feed))} images for {group.size} ranks: each needs one")
    torch.manual_seed(recipe.seed)
    model = Fluid(config)
    if recipe.start_from and (share := start_from(model, Path(recipe.start_from))) < 1:
        print(f"{share:.0%} of the model's values are those of {recipe.start_from}, which has other sizes")
    model.to(device)
    relation_steps = recipe.scenes.relation_steps if recipe.scenes and not recipe.start_from else 0
    begun = recipe.state_file.exists() or newest(recipe.state_file) is not None
    if isinstance(feed, SceneFeed) and relation_steps and not begun:
        file, facts = Path(recipe.out) / "aligner.pt", feed.scenes.facts
        pretrain_or_read(model.backbone.aligner, facts, feed.captions, file, relation_steps, recipe.seed)
    torch.manual_seed(recipe.seed + 1)
    layout_head = LayoutHead(config.width).to(device) if recipe.scenes and recipe.scenes.layout_weight else None
    losses = StepLosses(model, layout_head, recipe.scenes.layout_weight if recipe.scenes else 0.0)
    if group:  # the import takes a second that a single process spares
        from model.training.distributed.learner import ShardedEma, ShardedLearner, shard

        shard(losses, group.mesh)
    more = [layout_head] if layout_head else []
    optimizer = make_optimizer(recipe.optimizer, model, more, recipe.learning_rate, recipe.weight_decay)
    clock = Clock(recipe.steps, recipe.minutes, recipe.clock == "cpu", recipe.anneal_minutes)
    if group:
        learner: Learner = ShardedLearner(model, ShardedEma(model, recipe.ema), optimizer, clock, losses=losses)
    else:
        learner = Learner(model, Ema(model, recipe.ema), optimizer, clock)
    schedule = make_schedule().to(device)
    run = Run(recipe, config, model, learner, schedule, feed, device, losses, layout_head, group=group)
    run.started_from, run.made_of = started_from(recipe), made_of(recipe, tokenizer, feed)
    return run, tokenizer


def made_of(recipe: Recipe, tokenizer: AnyTokenizer, feed: Feed) -> dict[str, Any]:
    """What weights depend on and their metadata tell: with another of these, a run that goes on would be wrong."""
    found = {"tokenizer": tokens_digest(tokenizer), "data": feed.about["data"].get("sha256")}
    if s := recipe.scenes:
        found |= {
            "[scenes] things": s.things, "[scenes] styles": list(s.styles),
            "[scenes] styles_held_out": s.styles_held_out,
        }  # fmt: skip
    return found


def started_from(recipe: Recipe) -> dict[str, Any]:
    """Folder, name, weights and training, with those before it, of the checkpoint that a run starts from; {}: none."""
    if not recipe.start_from:
        return {}
    raw = read_config(Path(recipe.start_from))
    known = {"name": raw["about"]["name"], "sha256": raw["sha256"], "training": raw["about"].get("training", {})}
    return {"folder": recipe.start_from, **known}


def start_from(model: Fluid, folder: Path) -> float:
    """Copy the weights of a checkpoint into `model`; optimiser and clock are not part of a checkpoint.

    A checkpoint of other sizes gives the tensors whose names and shapes `model` has too, so that a model of another
    tokenizer, or of more blocks, need not learn to read and compose once more. Blocks that the checkpoint lacks start
    as identities: their output projections are 0.

    Returns:
        Share of the model's values that were copied, from 0 to 1.

    Raises:
        ConfigError: less than half of the values fit.
    """
    given, own = load_checkpoint(folder).model.state_dict(), model.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    share = sum(map(Tensor.numel, fitting.values())) / sum(map(Tensor.numel, own.values()))
    if share < 0.5:
        raise ConfigError(
            f"start_from: {folder} has other sizes than the recipe's preset, {share:.0%} of the values would fit; "
            f"choose the preset of {folder}, or one of its width"
        )
    model.load_state_dict(fitting, strict=False)
    for name, value in own.items():
        layer = name.rpartition(".")[0]
        if name not in given and layer.startswith("backbone.blocks.") and layer.endswith(RESIDUAL_OUTPUTS):
            value.zero_()
    return share
