"""State of a training run: model, optimiser, clock, data. `prepare` makes it; it saves and resumes itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from model.checkpoint import load_checkpoint
from model.config import ConfigError, FluidConfig
from model.data.dataset import Dataset
from model.diffusion import Schedule, make_schedule
from model.inference.prompts import encoder_dtype
from model.networks.autoencoders.vqgan_tokenizer import is_vq_model, load_vq_model
from model.networks.autoregressive_model import Fluid
from model.networks.factory import AnyTokenizer, new_tokenizer
from model.networks.text_encoder import build_text_encoder
from model.networks.tokenizer_folder import is_tokenizer_folder, load_tokenizer_folder
from model.presets import PRESETS
from model.process_group import Group, Share
from model.training.distributed.folders import newest
from model.training.distributed.losses import StepLosses
from model.training.feeds import WHOLE, Feed, ImageFeed, SceneFeed, open_scenes
from model.training.latents.feed import LatentFeed
from model.training.latents.store import LatentCache, is_latent_cache
from model.training.layout_loss import LayoutHead
from model.training.recipe import Recipe
from model.training.relation_pretraining import pretrain_aligner
from model.training.trainer import Clock, Ema, Learner, decay_groups, load_state, save_state


@dataclass
class Run:
    """Everything that the training loop reads or changes.

    Attributes:
        layout_head: layer of the auxiliary layout loss, for recipes that have one.
        losses: model and layout head, as one module.
        group: the ranks that share the run; None: this process trains alone.
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
        self.learner.save(self.recipe.state_file, history=self.history, **layout)

    def resume(self) -> bool:
        """Load the state file and return True, or return False if there is none."""
        state = self.learner.resume(self.recipe.state_file)
        if state is not None:
            self.history = state["history"]
            if self.layout_head:
                self.layout_head.load_state_dict(state["layout"])
        return state is not None


def load_tokenizer(config: FluidConfig, path: str) -> AnyTokenizer:
    """Load a trained tokenizer, strictly: a .safetensors file, or the folder of a checkpoint, of a VQModel, or of an
    imported autoencoder (`fluid import`).

    Raises:
        ConfigError: there is none, or it has other sizes than `config`.
    """
    if Path(path).is_dir():
        found = find_tokenizer(Path(path))
        if found.config != config.tokenizer:
            raise ConfigError(
                f"the tokenizer of {path} does not fit the preset: it is {found.config}, the preset has "
                f"{config.tokenizer}"
            )
        return found
    if not Path(path).exists():
        raise ConfigError(f"no tokenizer at {path}: run `python -m model.training.train_tokenizer` first")
    tokenizer = new_tokenizer(config)
    tokenizer.load_state_dict(load_file(path))
    return tokenizer.eval()


def find_tokenizer(folder: Path) -> AnyTokenizer:
    """The tokenizer in a folder: one that `fluid import` wrote, a VQModel, or a checkpoint's.

    Raises:
        ConfigError, CheckpointError: there is none, or it is damaged.
    """
    if is_tokenizer_folder(folder):
        return load_tokenizer_folder(folder)
    if is_vq_model(folder):
        return load_vq_model(folder)
    raw = folder / "config.json"
    if raw.is_file() and json.loads(raw.read_text(encoding="utf-8")).get("_class_name"):
        raise ConfigError(f"{folder} is a model of diffusers: import it with `fluid import {folder} FOLDER` first")
    return load_checkpoint(folder).tokenizer


def open_feed(
    recipe: Recipe, config: FluidConfig, tokenizer: AnyTokenizer, device: torch.device, share: Share = WHOLE
) -> Feed:
    """Open the recipe's data and encode its captions; for a fixed image set, encode the images too.

    Raises:
        DataError, ConfigError: the data are missing, or do not fit the tokenizer.
    """
    folder = Path(recipe.data)
    encoder = build_text_encoder(config.text, recipe.text_encoder, encoder_dtype(device)).to(device)
    if recipe.scenes is None and is_latent_cache(folder):
        return LatentFeed(LatentCache(folder), tokenizer, encoder, recipe.batch, recipe.seed, share)
    if recipe.scenes is None:
        return ImageFeed(Dataset.load(folder), tokenizer, encoder, folder, recipe.batch, recipe.seed, share)
    scenes, loaders = open_scenes(recipe, recipe.scenes), recipe.scenes.loaders
    breadth = recipe.scenes.breadth
    return SceneFeed(scenes, tokenizer, encoder, folder, recipe.batch, recipe.seed, loaders, device, breadth, share)


def prepare(recipe: Recipe, group: Group | None = None) -> tuple[Run, AnyTokenizer]:
    """Do everything that precedes the first step: load data and tokenizer, make model and optimiser.

    Relation pretraining of scenes happens here, unless the run is about to be resumed.

    Args:
        group: the ranks that train together.
    Raises:
        ConfigError, DataError, CheckpointError: something that the recipe names is missing or does not fit.
    """
    config = PRESETS[recipe.preset]
    device = group.device if group else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(config, recipe.tokenizer)
    feed = open_feed(recipe, config, tokenizer, device, group.share if group else WHOLE)
    if group and min(recipe.batch, len(feed)) < group.size:
        raise ConfigError(f"a batch of {min(recipe.batch, len(feed))} images for {group.size} ranks: each needs one")
    torch.manual_seed(recipe.seed)
    model = Fluid(config)
    if recipe.start_from:
        start_from(model, Path(recipe.start_from))
    model.to(device)
    relation_steps = recipe.scenes.relation_steps if recipe.scenes else 0
    begun = recipe.state_file.exists() or newest(recipe.state_file) is not None
    if isinstance(feed, SceneFeed) and relation_steps and not begun:
        pretrain_relations(model, feed, Path(recipe.out) / "aligner.pt", relation_steps, recipe.seed)
    torch.manual_seed(recipe.seed + 1)
    layout_head = LayoutHead(config.width).to(device) if recipe.scenes and recipe.scenes.layout_weight else None
    losses = StepLosses(model, layout_head, recipe.scenes.layout_weight if recipe.scenes else 0.0)
    if group:  # the import takes a second that a single process spares
        from model.training.distributed.learner import ShardedEma, ShardedLearner, shard

        shard(losses, group.mesh)
    groups = decay_groups(model, recipe.weight_decay)
    if layout_head:
        groups += decay_groups(layout_head, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    clock = Clock(recipe.steps, recipe.minutes, recipe.clock == "cpu", recipe.anneal_minutes)
    if group:
        learner: Learner = ShardedLearner(model, ShardedEma(model, recipe.ema), optimizer, clock, losses)
    else:
        learner = Learner(model, Ema(model, recipe.ema), optimizer, clock)
    schedule = make_schedule().to(device)
    return Run(recipe, config, model, learner, schedule, feed, device, losses, layout_head, group=group), tokenizer


def pretrain_relations(model: Fluid, feed: SceneFeed, file: Path, steps: int, seed: int) -> None:
    """Pretrain the text aligner on relations, or read the result from `file` if a killed run got that far."""
    aligner, saved = model.backbone.aligner, load_state(file)
    if saved is not None:
        aligner.load_state_dict(saved)
        return
    accuracy = pretrain_aligner(aligner, feed.scenes.facts, feed.captions, steps, seed)
    print(f"relation pretraining: {accuracy:.1%} accuracy on held-back captions")
    save_state(file, **aligner.state_dict())


def start_from(model: Fluid, folder: Path) -> None:
    """Copy the weights of a checkpoint into `model`; optimiser and clock are not part of a checkpoint.

    Raises:
        ConfigError: the checkpoint has other sizes than `model`.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint.config != model.config:
        raise ConfigError(
            f"start_from: {folder} has other sizes than the recipe's preset; choose the preset of {folder}"
        )
    model.load_state_dict(checkpoint.model.state_dict())
