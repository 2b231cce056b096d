"""The barrier of the persistent kernel's teams, in real processes on shared memory.

The interpreter runs the programs of a grid one after the other, so a wait for a later one would never end. Here each
program of a team is a process that interprets the same function on the same memory.
"""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fluid_kernels.loops.persistent_kernel import team_barrier  # noqa: E402

TEAM, ROUNDS, DEADLINE_S = 3, 25, 300


def _rounds(board_ptr, late_ptr, counter_ptr, rank, rounds, team):
    """A kernel: in every round each program writes the round's number, waits, and counts the stale numbers it sees."""
    for index in range(rounds):
        tl.store(board_ptr + rank, index)
        team_barrier(counter_ptr, (2 * index + 1) * team, team)
        for other in range(team):
            seen = tl.load(board_ptr + other)
            tl.atomic_add(late_ptr, (seen != index).to(tl.int32))
        team_barrier(counter_ptr, (2 * index + 2) * team, team)


def _run(rank: int, board: Tensor, late: Tensor, counter: Tensor) -> None:
    torch.set_num_threads(1)
    kernel = triton.jit(_rounds)  # here, where the interpreter is asked for
    kernel[(1,)](board, late, counter, rank, ROUNDS, TEAM)


def test_no_program_passes_before_all_have_arrived() -> None:
    board, late, counter = (torch.zeros(n, dtype=torch.int32).share_memory_() for n in (TEAM, 1, 1))
    board -= 1
    context = multiprocessing.get_context("fork")
    team = [context.Process(target=_run, args=(rank, board, late, counter)) for rank in range(TEAM)]
    for process in team:
        process.start()
    for process in team:
        process.join(DEADLINE_S)
    hung = [process for process in team if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung and [process.exitcode for process in team] == [0] * TEAM
    assert counter.item() == 2 * ROUNDS * TEAM and late.item() == 0
