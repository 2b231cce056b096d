"""A training run before its first step: model, data, tokenizer, optimiser, and where it goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from model.checkpoint import load_checkpoint
from model.config import ConfigError, FluidConfig
from model.data.dataset import Dataset
from model.diffusion import Schedule, make_schedule
from model.networks.random_order_model import Fluid
from model.networks.text_encoder import build_text_encoder
from model.networks.tokenizer import PcaSkipTokenizer, new_tokenizer
from model.presets import PRESETS
from model.training.feeds import Feed, PictureFeed, SceneFeed, open_bank
from model.training.layout_loss import LayoutHead
from model.training.recipe import Recipe
from model.training.relation_pretraining import read
from model.training.trainer import Clock, Ema, Learner, decay_groups


@dataclass
class Run:
    """The moving parts of a training."""

    recipe: Recipe
    config: FluidConfig
    model: Fluid
    learner: Learner
    schedule: Schedule
    feed: Feed
    device: torch.device
    layout: LayoutHead | None = None  # the extra lesson of scenes
    history: list[list[float]] = field(default_factory=list)  # [step, seconds, loss]
    waited: float = 0.0  # seconds of this process without a picture to train on

    @property
    def clock(self) -> Clock:
        return self.learner.clock

    def save(self) -> None:
        lesson = {"layout": self.layout.state_dict()} if self.layout else {}
        self.learner.save(self.recipe.state_file, history=self.history, **lesson)

    def resume(self) -> bool:
        state = self.learner.resume(self.recipe.state_file)
        if state is not None:
            self.history = state["history"]
            if self.layout:
                self.layout.load_state_dict(state["layout"])
        return state is not None


def load_tokenizer(config: FluidConfig, path: str) -> PcaSkipTokenizer:
    """A trained tokenizer, strictly loaded: the file of a run, or the folder of a checkpoint, which has its own.

    Raises:
        ConfigError: it has not been trained yet, or is of another size.
    """
    if Path(path).is_dir():
        checkpoint = load_checkpoint(Path(path))
        if checkpoint.config.tokenizer != config.tokenizer or not isinstance(checkpoint.tokenizer, PcaSkipTokenizer):
            raise ConfigError(f"the tokenizer of {path} has other sizes than preset asks for: {config.tokenizer}")
        return checkpoint.tokenizer
    if not Path(path).exists():
        raise ConfigError(f"no tokenizer at {path}: run `python -m model.training.train_tokenizer` first")
    tokenizer = new_tokenizer(config)
    tokenizer.load_state_dict(load_file(path))
    return tokenizer.eval()


def open_feed(recipe: Recipe, config: FluidConfig, tokenizer: PcaSkipTokenizer, device: torch.device) -> Feed:
    """Pictures and captions as the recipe wants them."""
    folder, encoder = Path(recipe.data), build_text_encoder(config.text, recipe.text_encoder).to(device)
    if recipe.scenes is None:
        return PictureFeed(Dataset.load(folder), tokenizer, encoder, folder, recipe.batch, recipe.seed)
    loaders = recipe.scenes.loaders
    return SceneFeed(open_bank(recipe), tokenizer, encoder, folder, recipe.batch, recipe.seed, loaders, device)


def prepare(recipe: Recipe) -> tuple[Run, PcaSkipTokenizer]:
    """Everything before the first step."""
    config, device = PRESETS[recipe.preset], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(config, recipe.tokenizer)
    feed = open_feed(recipe, config, tokenizer, device)
    torch.manual_seed(recipe.seed)
    model = Fluid(config)
    if recipe.start_from:
        start_from(model, Path(recipe.start_from))
    model.to(device)
    if isinstance(feed, SceneFeed) and recipe.scenes and not recipe.state_file.exists():
        share = read(model.backbone.aligner, feed.scenes.facts, feed.bank, recipe.scenes.reading_steps, recipe.seed)
        print(f"reading lesson: {share:.1%} of captions not used in it are read rightly")
    layout = LayoutHead(config.width).to(device) if recipe.scenes and recipe.scenes.layout else None
    groups = decay_groups(model, recipe.weight_decay)
    if layout:
        groups += decay_groups(layout, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    learner = Learner(model, Ema(model, recipe.ema), optimizer, Clock(recipe.steps, recipe.minutes))
    return Run(recipe, config, model, learner, make_schedule().to(device), feed, device, layout), tokenizer


def start_from(model: Fluid, folder: Path) -> None:
    """Take over the weights of a checkpoint of the same sizes. Optimiser and clock begin anew.

    Raises:
        ConfigError: the sizes differ.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint.config != model.config:
        raise ConfigError(
            f"start_from: {folder} has other sizes than the recipe's preset; choose the preset of {folder}"
        )
    model.load_state_dict(checkpoint.model.state_dict())
