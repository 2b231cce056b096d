"""What all trainers share: schedule, moving average of weights, and a state on disk that survives a kill.

Everything random in training is a function of (seed, step) alone, so a run that was killed and resumed goes through
the same batches as one that was not.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Clock:
    """How far a run has come, by steps and by seconds of training, whichever is further along.

    A budget in minutes makes the annealing end on time on any machine; seconds spent before a kill count.
    """

    steps: int
    minutes: float
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._last = time.perf_counter()

    def tick(self) -> None:
        """One step is done."""
        now = time.perf_counter()
        self.seconds += now - self._last
        self._last = now
        self.step += 1

    def resync(self) -> None:
        """Forget the time since the last tick: it went into something other than training."""
        self._last = time.perf_counter()

    @property
    def progress(self) -> float:
        """0 at the start, 1 when the budget is used up."""
        by_time = self.seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(self.step / self.steps, by_time))

    @property
    def seconds_left(self) -> float:
        """Estimate from the pace so far."""
        return self.seconds / self.progress * (1 - self.progress) if self.progress > 0 else float("inf")


def learning_rate(peak: float, clock: Clock, warmup: int, anneal_from: float, floor: float = 0.02) -> float:
    """Linear warm-up over `warmup` steps, constant, then linear down to floor·peak at the end.

    Most of the visible quality comes in the last part, so a run should always be given its end in advance.
    """
    factor = min(1.0, (clock.step + 1) / warmup)
    if clock.progress > anneal_from:
        factor *= 1 - (1 - floor) * (clock.progress - anneal_from) / (1 - anneal_from)
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
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = module.state_dict()
        names = list(self.shadow)
        torch._foreach_lerp_([self.shadow[n] for n in names], [state[n].float() for n in names], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        module.load_state_dict(self.shadow)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in self.shadow.items():  # into what is there: the file's tensors are on the CPU
            value.copy_(state["shadow"][name])


def save_state(path: Path, **state: Any) -> None:
    """Write atomically: a kill in the middle leaves the previous state in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None where there is nothing yet. Tensors and plain values only, no code."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


@dataclass
class Learner:
    """A module, its moving average, its optimiser and its clock: what every trainer moves on by one step."""

    module: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    clock: Clock

    def update(self, loss: Tensor, rate: float, clip: float) -> None:
        """One optimiser step down the gradient of `loss`, at learning rate `rate`, gradient norm at most `clip`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), clip)
        self.optimizer.step()
        self.ema.update(self.module)
        self.clock.tick()

    def save(self, path: Path, **more: Any) -> None:
        save_state(
            path, model=self.module.state_dict(), ema=self.ema.state_dict(), optimizer=self.optimizer.state_dict(),
            step=self.clock.step, seconds=self.clock.seconds, **more,
        )  # fmt: skip

    def resume(self, path: Path) -> dict[str, Any] | None:
        """Take up what `save` wrote and return it; None where there is nothing yet."""
        state = load_state(path)
        if state is not None:
            self.module.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.clock.step, self.clock.seconds = state["step"], state["seconds"]
        return state


def generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step. Large odd multiplier: neighbouring steps must not share streams."""
    return torch.Generator(device).manual_seed((seed * 0x9E3779B1 + step) & 0x7FFF_FFFF_FFFF_FFFF)


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay, vectors (biases, norms, tables of one row) do not."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors: list[Tensor] = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
