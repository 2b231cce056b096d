"""Shared by all trainers: clock, learning-rate schedule, moving average of weights, resumable state on disk.

Everything random in training is a function of (seed, step) alone, so a run that was killed and resumed sees the same
batches as one that was not.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ConfigError

MAX_SKIPPED = 20  # steps in a row


@dataclass
class Clock:
    """Progress of a run through its budget of steps and minutes, whichever is further along.

    A budget in minutes makes the annealing end on time on any machine; seconds spent before a kill count. With
    `anneal_minutes` the annealing is a phase of that length, the last of the budget or started earlier by `anneal`:
    then the run ends with the phase, whatever is left of the budget. A run that its steps end anneals by steps.

    Attributes:
        steps, minutes: the budget; 0 minutes means that steps alone count.
        cpu: count this process's CPU time, which other work on the machine does not change, instead of the time of day.
        anneal_minutes: length of the annealing phase; 0: `learning_rate` decides by shares of the budget.
        step, seconds: what has been used of the budget.
        annealing: seconds that were used when the phase began, or None before it.
    """

    steps: int
    minutes: float
    cpu: bool = False
    anneal_minutes: float = 0.0
    step: int = 0
    seconds: float = 0.0
    annealing: float | None = None

    def __post_init__(self) -> None:
        self._last = self._now()

    def _now(self) -> float:
        return time.process_time() if self.cpu else time.perf_counter()

    def tick(self) -> None:
        """Count one step and the time since the last; begin the annealing phase when it is due."""
        now = self._now()
        self.seconds += now - self._last
        self._last = now
        self.step += 1
        if self.anneal_minutes and self.minutes and self.seconds >= 60 * (self.minutes - self.anneal_minutes):
            self.anneal()

    def resync(self) -> None:
        """Do not count the time since the last tick: it was spent on something other than training."""
        self._last = self._now()

    def anneal(self) -> None:
        """Begin the annealing phase now, unless it has begun."""
        if self.annealing is None:
            self.annealing = self.seconds

    @property
    def annealed(self) -> float:
        """Share of the annealing phase that is over, from 0 to 1."""
        if self.annealing is None or not self.anneal_minutes:
            return 0.0
        return min(1.0, (self.seconds - self.annealing) / (60 * self.anneal_minutes))

    @property
    def progress(self) -> float:
        """Share of the budget that is used, from 0 to 1."""
        end = 60 * self.minutes if self.annealing is None else self.annealing + 60 * self.anneal_minutes
        by_time = self.seconds / end if end else 0.0
        return min(1.0, max(self.step / self.steps, by_time))

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until the budget is used up, at the pace so far."""
        return self.seconds / self.progress * (1 - self.progress) if self.progress > 0 else float("inf")


def learning_rate(peak: float, clock: Clock, warmup: int, anneal_from: float, floor: float = 0.02) -> float:
    """Learning rate of the next step: linear warm-up over `warmup` steps, constant, then linear down to floor·peak.

    Most of the visible quality comes in the last part, so a run should always know its end in advance.

    Args:
        anneal_from: share of the budget at which the rate begins to fall; of its steps alone, for a clock with an
            annealing phase.
    """
    used = clock.step / clock.steps if clock.anneal_minutes else clock.progress
    fallen = (used - anneal_from) / (1 - anneal_from) if used > anneal_from else 0.0
    factor = min(1.0, (clock.step + 1) / warmup) * (1 - (1 - floor) * max(clock.annealed, min(1.0, fallen)))
    return peak * factor


class Ema:
    """Exponential moving average of a module's parameters and buffers, kept in float32.

    The decay ramps as (1 + n) / (10 + n): with few steps a constant 0.999 would still hold the initial weights.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.shadow = {k: v.detach().clone().float() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's current values."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = module.state_dict()
        names = list(self.shadow)
        torch._foreach_lerp_([self.shadow[n] for n in names], [state[n].float() for n in names], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Load the averaged values into `module`."""
        module.load_state_dict(self.shadow)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in self.shadow.items():  # in place: the loaded tensors are on the CPU
            value.copy_(state["shadow"][name])


def save_state(path: Path, **state: Any) -> None:
    """Write `state` atomically: a kill in the middle leaves the previous file in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote, or return None if there is no file. Unpickles tensors and plain values only.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}): remove it to start over") from error
    return state


@contextmanager
def own_state(out: Path, remedy: str = "") -> Iterator[None]:
    """Turn the error of loading a state that does not fit into a ConfigError, which names the folder of the run."""
    try:
        yield
    except ConfigError:  # a damaged one
        raise
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{out} holds a run with another preset, optimizer or set of losses: choose another --out{remedy}"
        ) from error


def tell_if_used_up(clock: Clock) -> None:
    """Say why a resumed run takes no step, whatever its flags: its outputs are written again, and look like new."""
    if clock.progress >= 1:
        print(f"the budget is used up after {clock.step} steps: give more --minutes or --steps, or another --out")


@contextmanager
def own_weight_decay(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Load a state inside: it has the weight decay of its time, which a recipe may change as it may the rate."""
    own = [group["weight_decay"] for group in optimizer.param_groups]
    yield
    for group, value in zip(optimizer.param_groups, own, strict=True):
        group["weight_decay"] = value


@dataclass
class Learner:
    """A module with its moving average, optimiser and clock: the state that every trainer advances."""

    module: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    clock: Clock
    skipped: int = field(default=0, init=False)  #: steps in a row, until now, whose gradients were not finite

    def update(
        self, loss: Tensor, rate: float, clip: float, meanwhile: Callable[[], None] | None = None
    ) -> None:  # fmt: skip
        """Do one optimiser step on `loss`, with learning rate `rate` and the gradient norm clipped to `clip`.

        A step whose gradients are not finite is left out: it would spoil the weights, their average and the next state.

        Args:
            meanwhile: called before this process waits for the gradients; a GPU goes on with what it starts while the
                optimiser's kernels are launched.

        Raises:
            ConfigError: the gradients of MAX_SKIPPED steps in a row were not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = self.clip_gradients(clip)
        if meanwhile:
            meanwhile()
        if math.isfinite(norm):
            self.optimizer.step()
            self.ema.update(self.module)
            self.skipped = 0
        else:
            self.skipped += 1
            if self.skipped == MAX_SKIPPED:
                raise ConfigError(
                    f"the gradients of {MAX_SKIPPED} steps in a row are not finite; the state was last saved before. "
                    "Lower the learning rate, or look for damaged images or tokens"
                )
        self.clock.tick()

    def clip_gradients(self, clip: float) -> Tensor:
        """Clip the gradient norm to `clip`, and return what it was, ()."""
        return torch.nn.utils.clip_grad_norm_(self.module.parameters(), clip)

    def mean(self, loss: Tensor) -> float:
        """The loss of a step, over all ranks that share it."""
        return loss.item()

    def agree(self, flag: bool) -> bool:
        """The flag that counts on all ranks."""
        return flag

    def save(self, path: Path, **more: Any) -> None:
        """Write the state, and `more` beside it, to `path`."""
        save_state(
            path, model=self.module.state_dict(), ema=self.ema.state_dict(), optimizer=self.optimizer.state_dict(),
            step=self.clock.step, seconds=self.clock.seconds, annealing=self.clock.annealing, **more,
        )  # fmt: skip

    def resume(self, path: Path) -> dict[str, Any] | None:
        """Load what `save` wrote and return it, or return None if there is no file."""
        state = load_state(path)
        if state is not None:
            self.module.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            with own_weight_decay(self.optimizer):
                self.optimizer.load_state_dict(state["optimizer"])
            self.clock.step, self.clock.seconds = state["step"], state["seconds"]
            self.clock.annealing = state.get("annealing")  # absent from states of earlier versions
        return state


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random generator of one step. The multiplier is large and odd, so that neighbouring seeds share no steps."""
    return torch.Generator(device).manual_seed((seed * 0x9E3779B1 + step) & 0x7FFF_FFFF_FFFF_FFFF)
