"""The run: rollouts of the model as it is, then some steps on them together with images of the data; resumable."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from model.config import ConfigError
from model.evaluation.detector import Detector
from model.flow import add_flow_noise
from model.inference.orders import training_masks
from model.inference.precision import autocast
from model.networks.autoregressive_model import Fluid
from model.reinforcement.rollouts import Drawing, Rollouts, rollouts
from model.training.feeds import SceneFeed
from model.training.loop import diffusion_draws
from model.training.run import Run
from model.training.trainer import learning_rate, step_generator


@dataclass(frozen=True)
class Tuning:
    """What a recipe does not say.

    Attributes:
        drawing: the images of an iteration.
        updates: steps per iteration; each sees all its images, differently masked.
        strength: s of the objective (see the package).
    """

    drawing: Drawing
    updates: int = 3
    strength: float = 1.0


@dataclass
class Curve:
    """[step, mean reward, share of correct images] of every iteration, in a file beside the run's state."""

    file: Path
    entries: list[list[float]] = field(default_factory=list)

    def resume(self, step: int) -> None:
        """Read the entries up to `step`: those after it belong to iterations that will be done again."""
        if step and self.file.is_file():
            self.entries = [entry for entry in json.loads(self.file.read_text()) if entry[0] <= step]

    def add(self, step: int, found: Rollouts) -> None:
        self.entries.append([step, round(found.reward, 4), round(found.correct, 4)])

    def recent(self, count: int = 20) -> tuple[float, float]:
        """Mean reward and share of correct images of the last iterations."""
        last = self.entries[-count:]
        return sum(entry[1] for entry in last) / len(last), sum(entry[2] for entry in last) / len(last)


def check(run: Run) -> SceneFeed:
    """Return the run's feed.

    Raises:
        ConfigError: this model or its data cannot be tuned so.
    """
    config = run.config
    if config.prediction != "flow" or config.categorical or config.causal or config.mean_flow:
        raise ConfigError(
            f"preset {run.recipe.preset}: system {config.system!r}, prediction {config.prediction!r}; only "
            "random-continuous models with prediction 'flow' can be tuned by rewards: choose such a preset"
        )
    if not isinstance(run.feed, SceneFeed):
        raise ConfigError("the recipe has no table [scenes]: the judge knows what composed scenes show, nothing else")
    if run.layout_head is not None:
        raise ConfigError("layout_weight must be 0: images that the model drew have no known layout")
    return run.feed


def objective(run: Run, old: Fluid, found: Rollouts, strength: float) -> Tensor:
    """The loss of the next step, on images of the data and of `found`; all randomness is a function of (seed, step)."""
    recipe, step, captions = run.recipe, run.clock.step, run.feed.captions
    rng = step_generator(recipe.seed, step)
    rows, tokens, _ = run.feed.tokens(step)
    states, mask = captions.sample(rows, recipe.text_drop, rng)
    own_states, own_mask = captions.sample(found.rows, 0.0, rng)
    states, mask, tokens = (
        torch.cat(pair) for pair in ((states, own_states), (mask, own_mask), (tokens, found.tokens))
    )
    masked = training_masks(len(tokens), run.config.tokens, rng)  # (B + P, N)
    index, noise = diffusion_draws(run.config, int(masked.sum()), recipe.noise_draws, rng, run.device)
    assert index is not None and noise is not None
    x0 = tokens[masked].repeat(recipe.noise_draws, 1)  # (R·M, C)
    t, noise = index.flatten(), noise.flatten(0, 1)
    x = add_flow_noise(x0, t, noise)
    own = (torch.arange(len(tokens)) >= len(rows))[:, None].expand_as(masked)[masked].repeat(recipe.noise_draws)
    advantage = found.advantage[:, None].expand(-1, run.config.tokens)[masked[len(rows) :]].repeat(recipe.noise_draws)
    with autocast(run.device):
        text = run.model.backbone.encode_text(states, mask)
        z = run.model.backbone(tokens, ~masked, text)[masked]  # (M, D)
        predicted = run.model.head(x, t, z.repeat(recipe.noise_draws, 1)).float()
        with torch.no_grad():
            part = slice(len(rows), None)
            text = old.backbone.encode_text(states[part], mask[part])
            z = old.backbone(tokens[part], ~masked[part], text)[masked[part]]
            before = old.head(x[own], t[own], z.repeat(recipe.noise_draws, 1)).float()
    velocity = noise - x0
    target = velocity.clone()
    target[own] = before + strength * advantage[:, None] * (velocity[own] - before)
    return (predicted - target).square().mean()


def tune(run: Run, judge: Detector, how: Tuning, progress: bool = True) -> Iterator[Curve]:
    """Tune until the budget is used up; yield the curve after each save, which is at the end of an iteration.

    Raises:
        ConfigError: as `check`.
    """
    feed, recipe, clock = check(run), run.recipe, run.clock
    curve = Curve(Path(recipe.out) / "rewards.json")
    curve.resume(clock.step)
    old = copy.deepcopy(run.model).requires_grad_(False).eval()
    if recipe.compile:  # bound methods, so that parameter names in the state dict stay as they are
        for model in (run.model, old):
            model.backbone.forward = torch.compile(model.backbone.forward)  # type: ignore[method-assign]
    bar = tqdm(initial=clock.step, desc="tune", unit="step", disable=not progress, mininterval=1.0)
    losses: list[float] = []
    while clock.progress < 1:
        old.load_state_dict(run.model.state_dict())
        iteration = clock.step // how.updates
        found = rollouts(old, feed, judge, how.drawing, recipe.seed, iteration)
        for _ in range(how.updates):
            loss = objective(run, old, found, how.strength)
            rate = learning_rate(recipe.learning_rate, clock, recipe.warmup, recipe.anneal_from)
            run.learner.update(loss, rate, recipe.clip)
            losses.append(loss.item())
            bar.update()
        curve.add(clock.step, found)
        reward, correct = curve.recent()
        bar.set_postfix_str(f"reward {reward:.3f}, correct {correct:.1%}, {clock.seconds_left / 60:.0f} min left")
        if clock.step % recipe.save_every < how.updates or clock.progress >= 1:
            run.history.append([clock.step, clock.seconds, sum(losses) / len(losses)])
            losses = []
            run.save()
            curve.file.write_text(json.dumps(curve.entries))
            yield curve
    bar.close()
