"""Continuous batching: many images at once, each at its own step with its own settings, in shared forward passes.

    admit -> step, step, … -> tokens -> release

A *row* is one image being decoded. Rows join and leave between steps; in a step every row decides as many tokens as
its own schedule says, and the tokens of all rows go through the diffusion head packed together. generate.py is the
definition that this is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fluid_kernels.allocation import is_out_of_memory
from fluid_kernels.head_loop import HeadWeights
from fluid_kernels.heads import choose_path, make_head
from fluid_kernels.loops.torch_loop import TorchHead
from model.inference.backbone_pass import PlainPass, StaticPass, prefill
from model.inference.heads.categorical import CategoricalSampler
from model.inference.heads.chains import ChainCache, warm_rows
from model.inference.known_tokens import KnownTokens, masked_tokens, undecided
from model.inference.orders import make_order
from model.inference.prompts import ConditionCache
from model.inference.requests import EngineError, RowRequest, check_request
from model.inference.row_state import RowState, RowStep, Snapshot
from model.inference.step_plan import StepPlan
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.categorical_head import CategoricalHead
from model.networks.causal import make_cache
from model.networks.condition import Conditioner

WARM_STEPS = 3  # an exact first one, one that compiles, one that is replayed


class OutOfMemory(RuntimeError):
    """Some rows do not fit into memory even alone. They stay at their last step: release them, or call `step` again."""

    def __init__(self, rows: list[int]):
        super().__init__(f"out of memory for rows {rows}, each alone; use a device with more memory or a smaller model")
        self.rows = rows


class Engine:
    """A fixed number of rows over one model. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        model: AutoregressiveModel,
        conditioner: Conditioner,
        max_rows: int,
        dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
        static: bool | None = None,
    ):
        """Allocate the rows and prepare the head's weights.

        Args:
            max_rows: R, the maximum number of images at once.
            dtype: of the head's matrix products; for the backbone's see model/inference/precision.py.
            kernels: path of the head's loop, see fluid_kernels/heads.py.
            static: run the backbone in fixed shapes (backbone_pass.py); None: on CUDA, unless it is sharded.
        Raises:
            HeadPathError: these kernels cannot run here.
        """
        self.model, self.conditioner, self.max_rows = model, conditioner, max_rows
        self.takes_negative_prompts = conditioner.takes_negative_prompts
        self.config = model.config
        self.device = next(model.parameters()).device
        self._tokens = undecided(self.config, max_rows, self.device)  # (R, N, C), or (R, N) if discrete
        self._known = torch.zeros(max_rows, self.config.tokens, dtype=torch.bool, device=self.device)  # (R, N)
        self._rows: dict[int, RowState] = {}  # by slot, 0 to R - 1
        self._conditions = ConditionCache(conditioner)
        self._null = conditioner("")  # the condition of the unconditional halves of rows without a negative prompt
        shards = getattr(model.backbone, "shards", 1)
        cache = make_cache(self.config, 2 * max_rows, self.device, dtype, shards)  # of each row and its other half
        self._backbone: PlainPass | StaticPass
        if self.device.type == "cuda" and shards == 1 if static is None else static:
            self._backbone = StaticPass(model.backbone, self._tokens, self._known, self._null, cache)
        else:
            self._backbone = PlainPass(model.backbone, self._tokens, self._known, cache)
        self._head: Any  # a Head or a CategoricalSampler, called by `_sample`
        if isinstance(model.head, CategoricalHead):
            self._head = CategoricalSampler(model.table, model.head.bias, dtype)
        else:
            self._head = make_head(HeadWeights.from_head(model.diffusion_head), dtype, kernels)
            self._chains = ChainCache(model.diffusion_head)
        plain = isinstance(self._head, TorchHead)  # whatever was asked for: some heads have no other
        self.kernels = "torch" if plain else choose_path(kernels, self.device)

    @torch.inference_mode()
    def warm_up(self, tokens: int, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compile kernels and capture graphs for every shape of a step, ahead of the first image; none on a CPU.

        A shape that does not fit into memory is left out: `step` splits such a step.

        Args:
            tokens: the most tokens that one row decides in a step; larger steps are prepared when they come.
            report: called with (shapes done, shapes in total).
        """
        work: list[Callable[[], object]] = []
        if isinstance(self._backbone, StaticPass):
            work += [partial(self._backbone.warm_up, shape) for shape in self._backbone.shapes]
        work += [partial(self._warm_head, *bucket) for bucket in self._head.buckets(self.max_rows * tokens)]
        for done, one in enumerate(work):
            report(done, len(work))
            try:
                one()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._backbone.forget()

    def _warm_head(self, rows: int, guided: int) -> None:
        """Run the head's loop on random tokens, whose results are dropped."""
        batch = warm_rows(rows, guided, self.config.head_width, self.device)
        self._head(batch, self._chains((WARM_STEPS,)), self.config.update_rule, self.config.clamp)

    # ---- the life of a row -------------------------------------------------------------------------------

    def admit(self, requests: Sequence[RowRequest], known: Sequence[KnownTokens | None] | None = None) -> list[int]:
        """Give each request a row; all or none. known: for each request, the tokens that it starts from, if any.

        Raises:
            EngineError: a parameter is outside what the model or the tokens left to decide allow, or there are too
                few free rows.
            PromptError: the model cannot be conditioned on a prompt, or on any negative one.
        """
        for request in requests:
            check_request(request, self.config)
        free = [row for row in range(self.max_rows) if row not in self._rows]
        if len(requests) > len(free):
            raise EngineError(f"{len(requests)} rows requested, {len(free)} of {self.max_rows} are free")
        conditions = [(self._conditions(r.prompt), self._conditions.unconditional(r, self._null)) for r in requests]
        orders = [
            make_order(request.sampling.order, torch.tensor([request.seed]), self.config.grid)[0]
            for request in requests
        ]  # (N,) each
        starts = [None] * len(requests) if known is None else known
        each = zip(requests, conditions, orders, starts, strict=True)
        states = [RowState.start(*parts, self.config.unmasking) for parts in each]
        rows = free[: len(requests)]
        for row, state, start in zip(rows, states, starts, strict=True):
            self._rows[row] = state
            tokens = undecided(self.config, 1, self.device)[0]
            self._tokens[row] = tokens if start is None else masked_tokens(start, tokens)
            self._known[row] = False if start is None else start.kept
        return rows

    @torch.inference_mode()
    def step(self) -> list[int]:
        """Run one autoregressive step for every unfinished row; return the rows that have finished, each once.

        Raises:
            OutOfMemory: some rows do not fit even alone; all others have made their step, and those that it finished
                are returned by the next call.
        """
        too_big: list[int] = []
        self._step_rows([i for i in sorted(self._rows) if not self._rows[i].finished], too_big)
        if too_big:
            raise OutOfMemory(too_big)
        fresh = [i for i in sorted(self._rows) if self._rows[i].finished and not self._rows[i].reported]
        for i in fresh:
            self._rows[i].reported = True
        return fresh

    def progress(self, row: int) -> tuple[int, int]:
        """(steps done, total steps)"""
        return self._rows[row].step, self._rows[row].request.sampling.num_inference_steps

    def peek(self, row: int) -> Tensor:
        """(N, C) tokens so far, or (N,) int64 if discrete.

        Undecided ones are zero, the mean of the training images' latents: the decoder turns that neutral filling into
        a smooth background, never into noise. Discrete ones are -1.
        """
        return self._tokens[row].clone()

    def release(self, row: int) -> None:
        """Free the row, finished or not."""
        del self._rows[row]

    def snapshot(self, row: int) -> Snapshot:
        """The state that `restore` needs; order and decided positions follow from seed, step and kept tokens."""
        state = self._rows[row]
        kept = None if state.kept is None else state.kept.cpu()
        return Snapshot(state.request, state.step, self.peek(row).cpu(), kept)

    def restore(self, snapshot: Snapshot) -> int:
        """Resume an image where its snapshot was taken; returns its row.

        Raises:
            EngineError, PromptError: as `admit`.
        """
        tokens = snapshot.tokens.to(self.device)  # (N, C) or (N,), the kept ones among them
        known = None if snapshot.kept is None else KnownTokens(tokens, snapshot.kept.to(self.device))
        (row,) = self.admit([snapshot.request], [known])
        state = self._rows[row]
        state.step = snapshot.step
        if self.config.categorical:
            self._known[row] = tokens >= 0
        else:
            self._known[row, state.order[state.masked :]] = True
        self._tokens[row] = tokens
        return row

    # ---- inside a step -----------------------------------------------------------------------------------

    def _step_rows(self, rows: list[int], too_big: list[int]) -> None:
        """One step of these rows together, or in halves if memory runs out.

        A row's tokens do not depend on the rest of the batch, so halves generate the same images.
        """
        if not rows:
            return
        try:
            self._decode([self._rows[i].next_step(i) for i in rows])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._backbone.forget()
            if len(rows) == 1:
                too_big += rows
                return
        else:
            for i in rows:
                self._rows[i].step += 1
                self._rows[i].cached = self._rows[i].step
            return
        # Outside the handler: the exception's frames hold the tensors that filled the memory.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._step_rows(rows[: len(rows) // 2], too_big)
        self._step_rows(rows[len(rows) // 2 :], too_big)

    def _decode(self, steps: list[RowStep]) -> None:
        """Run the backbone, then all rows' tokens through the head together, and write the tokens back."""
        steps = sorted(steps, key=lambda step: -step.diffusion_steps)  # the order that the head's loop expects
        z = self._condition_tokens(steps)  # (B + U, N or 1, D); first, so that a GPU works while the host packs
        plan = StepPlan.pack(steps)
        if not len(plan):  # raster order: every row walks over a kept token
            return
        plan = plan.to(self.device).placed(self._known)
        decided, chosen = self._sample(plan, z[plan.z_row, plan.z_position])
        slot, position = plan.slot, plan.position
        if chosen is None:
            self._tokens[slot, position] = decided
            self._known[slot, position] = True
        else:
            self._tokens[slot, position] = torch.where(chosen, decided, self._tokens[slot, position])
            self._known[slot, position] |= chosen

    def _sample(self, plan: StepPlan, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sample the tokens of a plan from their z (M + G, D).

        Returns:
            (M, C) or (M,) tokens, and (M,) bool, which of them are decided; None: all.
        """
        if isinstance(self.model.head, CategoricalHead):
            tokens, confidence = self._head(plan.categorical_rows(z))
            return tokens, plan.chosen(confidence, self._known)
        rows, chains = plan.head_rows(self.model.diffusion_head, z), self._chains(plan.lengths)
        return self._head(rows, chains, self.config.update_rule, self.config.clamp), None

    def _condition_tokens(self, steps: list[RowStep]) -> Tensor:
        """One backbone pass over B rows and, below them, the unconditional halves of the U paired ones."""
        paired = [step for step in steps if step.paired]
        conditions = [step.condition for step in steps] + [step.unconditional for step in paired]
        if not self.config.causal:
            slots = [step.slot for step in (*steps, *paired)]
            following = [step.following for step in (*steps, *paired)]
            return self._backbone(slots, conditions, max(step.known for step in steps), following)
        self._prefill(steps)
        slots = [step.slot for step in steps] + [self.max_rows + step.slot for step in paired]
        walks = [step.walk or 0 for step in (*steps, *paired)]
        return self._backbone(slots, conditions, max(walks) + 1, walks)

    def _prefill(self, steps: list[RowStep]) -> None:
        """Compute the keys and values of rows that begin in the middle, each row by itself."""
        for step in steps:
            if step.walk is not None and step.cached < step.walk:
                halves = [(step.slot, step.condition), (self.max_rows + step.slot, step.unconditional)]
                slots, conditions = zip(*halves[: 1 + step.paired], strict=True)
                prefill(self._backbone, slots, conditions, step.walk)

    # ---- prompts -----------------------------------------------------------------------------------------

    def prompt_tokens(self, prompt: str) -> int:
        """Number of tokens of the prompt that the model reads; an admitted one is not encoded again."""
        for state in self._rows.values():
            if state.request.prompt == prompt:
                return state.condition.tokens
        return self._conditions(prompt).tokens
