"""Many pictures at once, each at its own step with its own settings, sharing every forward pass.

    admit -> step, step, … -> tokens -> release

A *row* is one picture being decoded. Rows join and leave between steps; in a step every row decides as many tokens as
its own schedule says, and the tokens of all rows go through the diffusion head packed together. generate.py is
the definition this is tested against.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from fluid_kernels.head_loop import Chains, HeadWeights, Rows
from fluid_kernels.heads import choose_path, make_head
from model.inference.backbone_pass import PlainPass, StaticPass, send
from model.inference.known_tokens import Given
from model.inference.orders import annealed, guidance_at, make_order, masked_after
from model.inference.requests import EngineError, RowRequest, check_request
from model.inference.sampler import make_chains, stack_chains
from model.inference.step_plan import Snapshot, _Now, _Row, _start
from model.networks.condition import Condition, Conditioner
from model.networks.random_order_model import RandomOrderModel

PROMPTS_KEPT = 256  # prompts whose conditions stay in memory
SCHEDULES_KEPT = 64  # diffusion schedules with their time embeddings: 0.4 MB each at 100 steps of MAR-B's head


class OutOfMemory(RuntimeError):
    """Rows that do not fit into memory even alone. They stand where they stood; release them, or try again."""

    def __init__(self, rows: list[int]):
        super().__init__(f"out of memory with rows {rows}, each by itself; use a device with more, or a smaller model")
        self.rows = rows


class Engine:
    """Fixed rows over one model; not thread-safe, one caller at a time."""

    def __init__(
        self,
        model: RandomOrderModel,
        conditioner: Conditioner,
        max_rows: int,
        dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
        static: bool | None = None,
    ):
        """dtype: of the head's matrix products; for those of the backbone see model/inference/precision.py.
        kernels: what runs the head's loop, see fluid_kernels/heads.py.
        static: run the backbone in fixed shapes (backbone_pass.py); None: on CUDA.

        Raises:
            HeadPathError: these kernels cannot run here.
        """
        self.model, self.conditioner, self.max_rows = model, conditioner, max_rows
        self.config = model.config
        self.device = next(model.parameters()).device
        shape = (max_rows, self.config.tokens)
        self._tokens = torch.zeros(*shape, self.config.channels, device=self.device)
        self._known = torch.zeros(*shape, dtype=torch.bool, device=self.device)
        self._rows: dict[int, _Row] = {}
        self._prompts: OrderedDict[str, Condition] = OrderedDict()
        self._null = conditioner("")
        self._backbone: PlainPass | StaticPass
        if self.device.type == "cuda" if static is None else static:
            self._backbone = StaticPass(model.backbone, self._tokens, self._known, self._null)
        else:
            self._backbone = PlainPass(model.backbone, self._tokens, self._known)
        self._head = make_head(HeadWeights.from_head(model.head), dtype, kernels)
        self.kernels = choose_path(kernels, self.device)
        self._schedules: OrderedDict[int, Chains] = OrderedDict()

    # ---- the life of a row -------------------------------------------------------------------------------

    def admit(self, requests: Sequence[RowRequest], given: Sequence[Given | None] | None = None) -> list[int]:
        """Give each request a row; all or none. `given`: for each the tokens that it starts from, if any.

        Raises:
            EngineError: a number is outside what the model or the tokens left to decide can do, or there are too few
                free rows.
            PromptError: the model cannot be conditioned on a prompt.
        """
        for request in requests:
            check_request(request, self.config)
        free = [row for row in range(self.max_rows) if row not in self._rows]
        if len(requests) > len(free):
            raise EngineError(f"{len(requests)} rows asked for, {len(free)} of {self.max_rows} are free")
        conditions = [self._condition(request.prompt) for request in requests]
        orders = [
            make_order(request.sampling.order, torch.tensor([request.seed]), self.config.grid)[0]
            for request in requests
        ]  # (N,) each
        starts = [None] * len(requests) if given is None else given
        states = [_start(*parts) for parts in zip(requests, conditions, orders, starts, strict=True)]
        rows = free[: len(requests)]
        for row, state, start in zip(rows, states, starts, strict=True):
            self._rows[row] = state
            self._tokens[row], self._known[row] = 0.0, False
            if start is not None:
                self._tokens[row] = torch.where(start.stays[:, None], start.tokens, 0.0)
                self._known[row] = start.stays
        return rows

    @torch.inference_mode()
    def step(self) -> list[int]:
        """One autoregressive step for every unfinished row; returns the rows that have finished, each once.

        Raises:
            OutOfMemory: some rows do not fit even alone; all others have made their step, and those that it finished
                are returned by the next call.
        """
        stuck: list[int] = []
        self._pass([i for i in sorted(self._rows) if not self._rows[i].finished], stuck)
        if stuck:
            raise OutOfMemory(stuck)
        fresh = [i for i in sorted(self._rows) if self._rows[i].finished and not self._rows[i].reported]
        for i in fresh:
            self._rows[i].reported = True
        return fresh

    def progress(self, row: int) -> tuple[int, int]:
        """(steps done, steps in all)"""
        return self._rows[row].step, self._rows[row].request.sampling.num_inference_steps

    def peek(self, row: int) -> Tensor:
        """(N, C) tokens so far. Undecided ones are zero, which is the mean of the training pictures' latents: a
        neutral filling that the decoder turns into a smooth ground, never into noise."""
        return self._tokens[row].clone()

    def release(self, row: int) -> None:
        """Free the row, finished or not."""
        del self._rows[row]

    def snapshot(self, row: int) -> Snapshot:
        """What `restore` needs; order and known positions follow from seed, step and what was given."""
        state = self._rows[row]
        stays = None if state.stays is None else state.stays.cpu()
        return Snapshot(state.request, state.step, self._tokens[row].cpu(), stays)

    def restore(self, snapshot: Snapshot) -> int:
        """Go on with a picture where its snapshot was taken; returns its row.

        Raises:
            EngineError: as `admit`.
        """
        tokens = snapshot.tokens.to(self.device)  # (N, C), the given ones among them
        given = None if snapshot.stays is None else Given(tokens, snapshot.stays.to(self.device))
        (row,) = self.admit([snapshot.request], [given])
        state = self._rows[row]
        state.step = snapshot.step
        masked = masked_after(state.step - 1, state.request.sampling.num_inference_steps, len(state.order))
        self._known[row, state.order[masked:]] = True
        self._tokens[row] = tokens
        return row

    # ---- inside a step -----------------------------------------------------------------------------------

    def _pass(self, rows: list[int], stuck: list[int]) -> None:
        """One step of these rows together; in halves where memory does not suffice. A row's tokens do not depend on
        its company, so that halves draw the same pictures."""
        if not rows:
            return
        try:
            self._decode([self._now(i) for i in rows])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._backbone.forget()
            if len(rows) == 1:
                stuck += rows
                return
        else:
            for i in rows:
                self._rows[i].step += 1
            return
        # Outside the handler: the exception's frames hold the tensors that filled the memory.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._pass(rows[: len(rows) // 2], stuck)
        self._pass(rows[len(rows) // 2 :], stuck)

    def _now(self, index: int) -> _Now:
        """What the row does in its next step."""
        row, total = self._rows[index], self.config.tokens
        sampling, left = row.request.sampling, len(row.order)
        steps = sampling.num_inference_steps
        after, before = masked_after(row.step, steps, left), masked_after(row.step - 1, steps, left)
        low, high = sampling.guidance_interval
        guided = low <= row.step / steps < high
        final = sampling.diffusion_steps if sampling.diffusion_steps_final is None else sampling.diffusion_steps_final
        return _Now(
            index, row.request, row.order[after:before],
            guidance_at(sampling.guidance_scale, sampling.guidance_schedule, after, total) if guided else 1.0,
            annealed(sampling.diffusion_steps, final, row.step, steps),
        )  # fmt: skip

    def _decode(self, rows: list[_Now]) -> None:
        """Backbone, then all rows' tokens through the head together, then write them back.

        Planned on the host and sent in few pieces: nothing here waits for the device."""
        rows = sorted(rows, key=lambda now: -now.diffusion_steps)  # as the loop wants its tokens
        guided = [i for i, now in enumerate(rows) if now.guidance != 1]
        z = self._condition_tokens(rows, guided)  # (B + halves, N, D)
        owner = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(now.positions) for now in rows]))  # (M,)
        position = torch.cat([now.positions for now in rows])  # (M,)
        half = torch.full((len(rows),), -1)  # where a row's unconditional z lies
        half[guided] = len(rows) + torch.arange(len(guided))
        with_null = (half[owner] >= 0).nonzero()[:, 0]  # (G,) tokens of guided rows
        lengths = sorted({now.diffusion_steps for now in rows}, reverse=True)
        of_row = torch.tensor(
            [[lengths.index(now.diffusion_steps), now.request.seed, now.index] for now in rows]
        )  # (B, 3)
        dials = torch.tensor([[now.guidance, now.request.sampling.temperature] for now in rows])  # (B, 2) float32
        chain, seed, slot, position_ = send(torch.cat([of_row[owner].T, position[None]]), self.device)  # (M,) each
        guidance, temperature = send(dials[owner].T.contiguous(), self.device)
        where = torch.stack([torch.cat([owner, half[owner[with_null]]]), torch.cat([position, position[with_null]])])
        z_row, z_position = send(where, self.device)  # (M + G,) each
        drawn = self._head(
            Rows(
                condition=self.model.head.embed_condition(z[z_row, z_position]),
                guided=send(with_null, self.device), chain=chain, guidance=guidance, temperature=temperature,
                seed=seed, position=position_,
            ),
            self._chains(tuple(lengths)), self.config.prediction, self.config.clamp,
        )  # fmt: skip
        self._tokens[slot, position_] = drawn
        self._known[slot, position_] = True

    def _condition_tokens(self, rows: list[_Now], guided: list[int]) -> Tensor:
        """One backbone pass over all rows and, under them, the unconditional half of the guided ones."""
        indices = [now.index for now in rows]
        most_known = max(self.config.tokens - self._masked(self._rows[i]) for i in indices)
        conditions = [self._rows[i].condition for i in indices] + [self._null] * len(guided)
        return self._backbone([*indices, *(indices[i] for i in guided)], conditions, most_known)

    @staticmethod
    def _masked(row: _Row) -> int:
        """Tokens that are not decided yet."""
        return masked_after(row.step - 1, row.request.sampling.num_inference_steps, len(row.order))

    def _chains(self, lengths: tuple[int, ...]) -> Chains:
        """The schedules of these numbers of steps, from memory where they were needed lately."""
        for length in lengths:
            if length not in self._schedules:
                self._schedules[length] = make_chains(self.model.head, (length,))
            self._schedules.move_to_end(length)
        found = stack_chains([self._schedules[length] for length in lengths])
        while len(self._schedules) > SCHEDULES_KEPT:
            self._schedules.popitem(last=False)
        return found

    def prompt_tokens(self, prompt: str) -> int:
        """How many tokens the model reads of a prompt."""
        return self._condition(prompt).tokens

    def _condition(self, prompt: str) -> Condition:
        """The prompt's condition, from memory where it was seen lately."""
        if prompt not in self._prompts:
            self._prompts[prompt] = self.conditioner(prompt)
        self._prompts.move_to_end(prompt)
        if len(self._prompts) > PROMPTS_KEPT:
            self._prompts.popitem(last=False)
        return self._prompts[prompt]


def is_out_of_memory(error: Exception) -> bool:
    """On a CPU torch raises a RuntimeError like any other, told apart by its words alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
