"""The run that turns a checkpoint's flow head into one of a mean flow; resumable like every trainer here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from model.checkpoint import Checkpoint, save_checkpoint
from model.config import ConfigError, FluidConfig
from model.inference.orders import training_masks
from model.inference.precision import autocast
from model.networks.autoregressive_model import Fluid
from model.networks.diffusion_head import DiffusionHead
from model.training.feeds import Feed
from model.training.few_steps.paths import guided_paths, mean_flow_loss, node_times, sample_scales, sample_steps
from model.training.optimizer import decay_groups
from model.training.trainer import Clock, Ema, Learner, learning_rate, own_state, step_generator, tell_if_used_up

PEAK_LR = 5e-4
ANNEAL_FROM = 0.4  # share of the budget
TEXT_DROP = 0.05
NEGATIVES = 0.1  # share of images that are guided away from another caption, as by a negative prompt
SAVE_EVERY = 50  # steps
TOKENS = 512  # paths per step, of the masked tokens of its batch
DRAWS = 4  # steps learned of each path


@dataclass
class Distillation:
    """A run: the checkpoint's frozen model, the head that learns, and the feed of its training data.

    Attributes:
        mask_orders: kind of order -> share of images whose known tokens are those that it decides first.
    """

    checkpoint: Checkpoint
    feed: Feed
    learner: Learner
    seed: int
    mask_orders: Mapping[str, float] = field(default_factory=dict)

    @property
    def student(self) -> DiffusionHead:
        assert isinstance(self.learner.module, DiffusionHead)
        return self.learner.module

    @property
    def teacher(self) -> DiffusionHead:
        return self.checkpoint.model.diffusion_head


def mean_flow_head(teacher: DiffusionHead) -> DiffusionHead:
    """A head of a mean flow that computes at first what `teacher`, a flow head, does, whatever the step's length."""
    student = DiffusionHead(replace(teacher.config, mean_flow=True))
    student.zero_init()
    student.load_state_dict(teacher.state_dict(), strict=False)  # all but the length's layers
    return student


def prepare(
    checkpoint: Checkpoint,
    feed: Feed,
    clock: Clock,
    ema: float,
    seed: int,
    mask_orders: Mapping[str, float] | None = None,
) -> Distillation:
    """Make the student and its optimiser.

    Raises:
        ConfigError: the checkpoint's head is no flow head of random order.
    """
    config = checkpoint.config
    if not isinstance(config, FluidConfig) or config.prediction != "flow" or config.categorical or config.causal:
        raise ConfigError(
            f"{checkpoint.folder} has family {config.family!r}, system {config.system!r} and prediction "
            f"{config.prediction!r}: only random-continuous models of family fluid with prediction 'flow' can be "
            "distilled; train one with such a preset"
        )
    if config.mean_flow:
        raise ConfigError(f"{checkpoint.folder} has a mean-flow head already; give the checkpoint it was made from")
    torch.manual_seed(seed)
    student = mean_flow_head(checkpoint.model.diffusion_head)
    optimizer = torch.optim.AdamW(decay_groups(student, 0.01), lr=PEAK_LR, betas=(0.9, 0.95), fused=True)
    learner = Learner(student, Ema(student, ema), optimizer, clock)
    return Distillation(checkpoint, feed, learner, seed, mask_orders or {})


def step_loss(run: Distillation, times: Tensor) -> Tensor:
    """The loss of the next step; all randomness is a function of (seed, step)."""
    rng = step_generator(run.seed, run.learner.clock.step)
    z, null = conditions(run, run.learner.clock.step, rng)
    chosen = torch.randperm(len(z), generator=rng)[:TOKENS]
    z, null = z[chosen], null[chosen]
    scales = sample_scales(len(z), rng)
    noise = torch.randn(len(z), run.checkpoint.config.channels, generator=rng)
    first, last = sample_steps((DRAWS, len(z)), rng)
    with autocast(z.device):
        path = guided_paths(run.teacher, z, null, scales, noise, times)
        return mean_flow_loss(run.student, path, times, first, last, z, null, scales)


@torch.no_grad()
def conditions(run: Distillation, step: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(M, D) z of the masked tokens of a batch with their captions, and with none or, rarely, with another caption."""
    model, captions = run.checkpoint.model, run.feed.captions
    rows, tokens, _ = run.feed.tokens(step)
    masked = training_masks(len(rows), run.checkpoint.config.tokens, rng, run.mask_orders)  # (B, N)
    found = []
    for drop, each in ((TEXT_DROP, rows), (1 - NEGATIVES, rows.roll(1))):
        with autocast(tokens.device):
            text = model.backbone.encode_text(*captions.sample(each, drop, rng))  # type: ignore[operator]
            found.append(model.backbone(tokens, ~masked, text)[masked].float())
    return found[0], found[1]


def distill(run: Distillation, state: Path, progress: bool = True) -> list[float]:
    """Train until the budget is used up, and return the losses, means of SAVE_EVERY steps; resumes from `state`.

    Raises:
        ConfigError: the state is damaged, or that of another head or of other weights.
    """
    assert isinstance(run.checkpoint.config, FluidConfig)
    times, clock = node_times(run.checkpoint.config.flow_shift), run.learner.clock
    with own_state(state.parent, f", or remove {state} to start over"):
        saved = run.learner.resume(state)
    of = run.checkpoint.sha256 if saved is None else saved.get("of", run.checkpoint.sha256)  # not in early states
    if of != run.checkpoint.sha256:
        raise ConfigError(
            f"{state} holds a head of the weights {of}, not of {run.checkpoint.sha256} in {run.checkpoint.folder}: "
            f"choose another --out, or remove {state} to start over"
        )
    losses: list[float] = saved["losses"] if saved else []
    tell_if_used_up(clock)
    bar = tqdm(initial=clock.step, desc="few steps", unit="step", disable=not progress, mininterval=1.0)
    recent: list[float] = []
    while clock.progress < 1:
        loss = step_loss(run, times)
        run.learner.update(loss, learning_rate(PEAK_LR, clock, warmup=50, anneal_from=ANNEAL_FROM), clip=1.0)
        recent.append(loss.item())
        bar.update()
        if clock.step % SAVE_EVERY == 0 or clock.progress >= 1:
            losses.append(sum(recent) / len(recent))
            recent = []
            bar.set_postfix_str(f"loss {losses[-1]:.4f}, {clock.seconds_left / 60:.0f} min left")
            run.learner.save(state, losses=losses, of=run.checkpoint.sha256)
    bar.close()
    return losses


def distilled_model(run: Distillation) -> Fluid:
    """The checkpoint's model with the averaged weights of the student as its head."""
    config = run.checkpoint.config
    assert isinstance(config, FluidConfig)
    model = Fluid(replace(config, mean_flow=True))
    model.backbone.load_state_dict(run.checkpoint.model.backbone.state_dict())
    run.learner.ema.copy_to(model.head)
    return model.eval()


def write(run: Distillation, model: Fluid, name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Save the run's distilled model as a checkpoint, with the original's metadata and what was done.

    Presets and scores of the original are left out: they are those of a head that needs more steps. So is its name: by
    it workers serve both beside each other.
    """
    about = {key: value for key, value in run.checkpoint.unscored.items() if key != "sampling"}
    about["name"] = name
    about["few_steps"] = {
        "of": run.checkpoint.sha256, "steps": run.learner.clock.step,
        "minutes": round(run.learner.clock.seconds / 60, 1),
    }  # fmt: skip
    save_checkpoint(folder, model, run.checkpoint.tokenizer, about, dtype)
