"""Many pictures at once, each at its own step with its own settings, sharing every forward pass.

    admit -> step, step, … -> tokens -> release

A *row* is one picture being decoded. Rows join and leave between steps; in a step every row decides as many tokens as
its own schedule says, and the tokens of all rows go through the diffusion head packed together. model/generate.py is
the definition this is tested against.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from model.condition import Condition, Conditioner
from model.diffusion import Schedule, make_schedule
from model.fluid import RandomOrderModel
from model.masking import guidance_at, masked_after, random_order
from model.sampler import PackedRows, draw_tokens

PROMPTS_KEPT = 256  # prompts whose conditions stay in memory


class RowRequest(Protocol):
    """What a row needs to know; any object with these attributes will do."""

    @property
    def prompt(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def num_inference_steps(self) -> int: ...
    @property
    def diffusion_steps(self) -> int: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def guidance_schedule(self) -> str: ...
    @property
    def temperature(self) -> float: ...


class EngineError(ValueError):
    """A request that this engine cannot decode, or more rows than it has."""


@dataclass
class _Row:
    request: RowRequest
    condition: Condition  # one row
    order: Tensor  # (N,)
    step: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A half-decoded picture: enough to go on anywhere that has the same checkpoint. Undecided tokens are zero."""

    request: RowRequest
    step: int
    tokens: Tensor  # (N, C) on the CPU


class Engine:
    """Fixed rows over one model; not thread-safe, one caller at a time."""

    def __init__(self, model: RandomOrderModel, conditioner: Conditioner, max_rows: int):
        self.model, self.conditioner, self.max_rows = model, conditioner, max_rows
        self.config = model.config
        self.device = next(model.parameters()).device
        shape = (max_rows, self.config.tokens)
        self._tokens = torch.zeros(*shape, self.config.channels, device=self.device)
        self._known = torch.zeros(*shape, dtype=torch.bool, device=self.device)
        self._rows: dict[int, _Row] = {}
        self._prompts: OrderedDict[str, Condition] = OrderedDict()
        self._stacked: tuple[tuple[int, ...], Condition] | None = None
        self._null = conditioner("")

    # ---- the life of a row -------------------------------------------------------------------------------

    def admit(self, requests: Sequence[RowRequest]) -> list[int]:
        """Give each request a row; all or none.

        Raises:
            EngineError: a number is outside what the model can do, or there are too few free rows.
            PromptError: the model cannot be conditioned on a prompt.
        """
        for request in requests:
            self._check(request)
        free = [row for row in range(self.max_rows) if row not in self._rows]
        if len(requests) > len(free):
            raise EngineError(f"{len(requests)} rows asked for, {len(free)} of {self.max_rows} are free")
        conditions = [self._condition(request.prompt) for request in requests]
        seeds = torch.tensor([request.seed for request in requests], dtype=torch.int64, device=self.device)
        orders = random_order(seeds, self.config.tokens)  # (R, N)
        rows = free[: len(requests)]
        for row, request, condition, order in zip(rows, requests, conditions, orders, strict=True):
            self._rows[row] = _Row(request, condition, order)
            self._tokens[row], self._known[row] = 0.0, False
        self._stacked = None
        return rows

    @torch.inference_mode()
    def step(self) -> list[int]:
        """One autoregressive step for every unfinished row; returns the rows that it finished."""
        active = [i for i in sorted(self._rows) if self._rows[i].step < self._rows[i].request.num_inference_steps]
        if not active:
            return []
        guided = [i for i in active if self._rows[i].request.guidance_scale != 1]
        spans = {i: self._span(self._rows[i]) for i in active}
        z, z_uncond = self._conditions(active, guided)  # (A, N, D), (G, N, D)
        for count in sorted({self._rows[i].request.diffusion_steps for i in active}):
            # Rows with other diffusion steps need another loop; the rest share one.
            self._draw([i for i in active if self._rows[i].request.diffusion_steps == count],
                       active, guided, spans, z, z_uncond, _schedule(count, self.device))  # fmt: skip
        for i in active:
            self._rows[i].step += 1
        return [i for i in active if self._rows[i].step == self._rows[i].request.num_inference_steps]

    def progress(self, row: int) -> tuple[int, int]:
        """(steps done, steps in all)"""
        return self._rows[row].step, self._rows[row].request.num_inference_steps

    def peek(self, row: int) -> Tensor:
        """(N, C) tokens so far. Undecided ones are zero, which is the mean of the training pictures' latents: a
        neutral filling that the decoder turns into a smooth ground, never into noise."""
        return self._tokens[row].clone()

    def release(self, row: int) -> None:
        """Free the row, finished or not."""
        del self._rows[row]
        self._stacked = None

    def snapshot(self, row: int) -> Snapshot:
        """What `restore` needs; order and known positions follow from seed and step."""
        return Snapshot(self._rows[row].request, self._rows[row].step, self._tokens[row].cpu())

    def restore(self, snapshot: Snapshot) -> int:
        """Go on with a picture where its snapshot was taken; returns its row.

        Raises:
            EngineError: as `admit`.
        """
        (row,) = self.admit([snapshot.request])
        state = self._rows[row]
        state.step = snapshot.step
        decided = state.order[self._span(state)[1] :]
        self._known[row, decided] = True
        self._tokens[row] = snapshot.tokens.to(self.device)
        return row

    # ---- inside a step -----------------------------------------------------------------------------------

    def _span(self, row: _Row) -> tuple[int, int]:
        """The row decides order[after:before] in its next step."""
        steps, total = row.request.num_inference_steps, self.config.tokens
        return masked_after(row.step, steps, total), masked_after(row.step - 1, steps, total)

    def _conditions(self, active: list[int], guided: list[int]) -> tuple[Tensor, Tensor]:
        """One backbone pass over all rows and, under them, the unconditional half of the guided ones."""
        slots = torch.tensor(active + guided, device=self.device)
        key = (*active, -1, *guided)
        if self._stacked is None or self._stacked[0] != key:
            parts = [self._rows[i].condition for i in active] + [self._null] * len(guided)
            self._stacked = (key, self._null.stack(parts))
        z = self.model.backbone(self._tokens[slots], self._known[slots], self._stacked[1])
        return z[: len(active)], z[len(active) :]

    def _draw(
        self, rows: list[int], active: list[int], guided: list[int], spans: dict[int, tuple[int, int]],
        z: Tensor, z_uncond: Tensor, schedule: Schedule,
    ) -> None:  # fmt: skip
        """Pack the tokens these rows decide now, draw them, write them back."""
        chosen = {i: self._rows[i].order[spans[i][0] : spans[i][1]] for i in rows}
        counts = torch.tensor([len(c) for c in chosen.values()])
        position = torch.cat(list(chosen.values()))  # (M,)

        def per_token(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).repeat_interleave(counts).to(self.device)

        slot = per_token(rows, torch.int64)
        uncond = [z_uncond[guided.index(i), chosen[i]] for i in rows if i in guided]
        requests = [self._rows[i].request for i in rows]
        scales = [
            guidance_at(r.guidance_scale, r.guidance_schedule, spans[i][0], self.config.tokens)
            for i, r in zip(rows, requests, strict=True)
        ]
        packed = PackedRows(
            z=z[per_token([active.index(i) for i in rows], torch.int64), position],
            z_uncond=torch.cat(uncond) if uncond else z[0, :0],
            guided=per_token([int(i in guided) for i in rows], torch.bool),
            guidance=per_token(scales, torch.float32)[:, None],
            temperature=per_token([r.temperature for r in requests], torch.float32)[:, None],
            seed=per_token([r.seed for r in requests], torch.int64),
            position=position,
        )
        drawn = draw_tokens(self.model.head, packed, schedule, self.config.prediction, self.config.clamp)
        self._tokens[slot, position] = drawn
        self._known[slot, position] = True

    def _condition(self, prompt: str) -> Condition:
        """The prompt's condition, from memory where it was seen lately."""
        if prompt not in self._prompts:
            self._prompts[prompt] = self.conditioner(prompt)
        self._prompts.move_to_end(prompt)
        if len(self._prompts) > PROMPTS_KEPT:
            self._prompts.popitem(last=False)
        return self._prompts[prompt]

    def _check(self, request: RowRequest) -> None:
        if not 1 <= request.num_inference_steps <= self.config.tokens:
            raise EngineError(
                f"num_inference_steps is {request.num_inference_steps}; this model has {self.config.tokens} tokens "
                f"and decodes at least one a step, so 1 to {self.config.tokens}"
            )
        if not 1 <= request.diffusion_steps <= 1000:
            raise EngineError(f"diffusion_steps is {request.diffusion_steps}; 1 to 1000 are possible")
        if request.guidance_schedule not in ("constant", "linear"):
            raise EngineError(f"guidance_schedule {request.guidance_schedule!r} is not constant or linear")
        if not 0 <= request.seed < 1 << 63:
            raise EngineError(f"seed {request.seed} is outside 0 to 2**63 - 1")


@lru_cache(maxsize=64)
def _schedule(count: int, device: torch.device) -> Schedule:
    return make_schedule(count).to(device)
