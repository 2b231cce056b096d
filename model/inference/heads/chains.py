"""Diffusion schedules in the form that the head's loop reads: padded tables, with the head's time embeddings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from fluid_kernels.head_loop import COEFFICIENTS, ChainFacts, Chains, Rows
from fluid_kernels.ops.linear import in_one_order
from fluid_kernels.transfers import send
from model.networks.diffusion_head import DiffusionHead
from model.schedules import sampling_schedule

KEPT_BYTES = 64 << 20  # of single chains: 150 of 100 steps of MAR-B's head, whose embeddings are 0.4 MB


class ChainCache:
    """The chains that an engine has used recently, as many as fit into KEPT_BYTES; not thread-safe."""

    def __init__(self, head: DiffusionHead):
        self.head = head
        self._chains: OrderedDict[int, Chains] = OrderedDict()  # by number of diffusion steps

    def __call__(self, lengths: Sequence[int]) -> Chains:
        """The chains of these numbers of diffusion steps, longest first."""
        for length in lengths:
            if length not in self._chains:
                self._chains[length] = make_chains(self.head, (length,))
            self._chains.move_to_end(length)
        found = stack_chains([self._chains[length] for length in lengths])
        size = sum(chain.times.nbytes for chain in self._chains.values())
        while size > KEPT_BYTES and len(self._chains) > 1:
            size -= self._chains.popitem(last=False)[1].times.nbytes
        return found


def make_chains(head: DiffusionHead, lengths: Sequence[int]) -> Chains:
    """S chains of these numbers of diffusion steps on the head's device; K is the longest."""
    longest, device = max(lengths), head.token_in.weight.device
    timesteps = torch.zeros(len(lengths), longest, dtype=torch.int64)  # (S, K)
    network_times, falls = torch.zeros(2, len(lengths), longest)  # (S, K) each: read by the head; down to the next
    coefficients = torch.zeros(len(lengths), longest, len(COEFFICIENTS))  # (S, K, 7)
    for row, length in enumerate(lengths):
        schedule = sampling_schedule(head.config, length)
        timesteps[row, :length] = schedule.timesteps
        network_times[row, :length] = schedule.timesteps if schedule.times is None else schedule.times
        falls[row, :length] = schedule.timesteps.diff(prepend=torch.zeros(1, dtype=torch.int64))
        noisy = (torch.arange(length) > 0).float() if schedule.noisy is None else schedule.noisy
        columns = [*(getattr(schedule, name) for name in COEFFICIENTS[:-1]), noisy]
        coefficients[row, :length] = torch.stack(columns, 1)
    with torch.inference_mode():
        flat = (send(table.flatten(), device) for table in (network_times, falls))
        times = head.embed_time(*flat).unflatten(0, timesteps.shape)  # (S, K, W)
    facts = tuple(ChainFacts.of(*each) for each in zip(lengths, coefficients, strict=True))
    tables = (torch.tensor(list(lengths)), timesteps, coefficients)
    steps, timesteps, coefficients = (send(table, device) for table in tables)
    return Chains(steps, timesteps, times, coefficients, facts, flow=head.config.prediction == "flow")


def stack_chains(parts: Sequence[Chains]) -> Chains:
    """Stack single chains, the longest first, along the first dimension."""
    if len(parts) == 1:
        return parts[0]
    longest = parts[0].timesteps.shape[1]

    def padded(tables: list[Tensor]) -> Tensor:
        """(1, k, …) each -> (S, K, …)"""
        out = tables[0].new_zeros(len(tables), longest, *tables[0].shape[2:])
        for row, table in enumerate(tables):
            out[row, : table.shape[1]] = table[0]
        return out

    return Chains(
        torch.cat([part.steps for part in parts]),
        padded([part.timesteps for part in parts]),
        padded([part.times for part in parts]),
        padded([part.coefficients for part in parts]),
        None if any(part.host is None for part in parts) else tuple(f for part in parts for f in part.host or ()),
        flow=any(part.flow for part in parts),
    )


def embed_conditions(head: DiffusionHead, z: Tensor, guided: Tensor, guidance: Tensor) -> Tensor:
    """Conditions of the loop's rows (M + G, W).

    Args:
        z: (M + G, D) of each token, then the unconditional ones of the guided tokens.
        guided: (G,) int64, ascending. guidance: (M,) scales, read for guided tokens only.
    """
    condition = in_one_order(head.embed_condition, z)
    if not head.config.mean_flow or not len(guided):
        return condition
    scales = guidance[guided, None]  # (G, 1)
    both = in_one_order(lambda scale: torch.cat(head.embed_scale(scale[:, 0]), 1), scales)
    with_prompt, without = both.chunk(2, 1)
    condition = condition.index_add(0, guided, with_prompt.to(condition.dtype))
    condition[len(guidance) :] += without
    return condition


def warm_rows(rows: int, guided: int, width: int, device: torch.device) -> Rows:
    """Input of the head's loop whose results are dropped, to prepare a shape."""
    ones, zeros = torch.ones(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
    condition = torch.zeros(rows + guided, width, device=device)
    about = [0] * rows, list(range(guided))
    return Rows(condition, torch.arange(guided, device=device), zeros, ones, ones, zeros, zeros, about)
