"""The engine against the reference decoder, and the head's loop against plain matrix products of the same shapes.

One thread, processor time, sides alternating; each figure is the ratio of the least times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.gpu.cases import decode
from benchmarks.machine import without_zero_init
from fluid_kernels.head_loop import HeadWeights, Rows
from fluid_kernels.loops.torch_loop import TorchHead
from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.heads.chains import make_chains
from model.inference.prompts import TextPrompts
from model.inference.requests import Request, Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.diffusion_head import DiffusionHead
from model.networks.text_encoder import HashEncoder
from model.presets import MAR_PRESETS, PRESETS

BATCH, PROMPT = 4, "a red apple"
SAMPLING = Sampling(num_inference_steps=8, diffusion_steps=12)
HEAD_ROWS, HEAD_STEPS = 64, 4
ROUNDS = 3


def measure() -> dict[str, float]:
    """Return engine_over_reference and head_over_matmul."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return {"engine_over_reference": _engine(), "head_over_matmul": _head()}
    finally:
        torch.set_num_threads(threads)


def ratio(side: Callable[[], object], reference: Callable[[], object]) -> float:
    """Return the least processor time of one side over that of the other, alternating."""
    times: tuple[list[float], list[float]] = ([], [])
    for work in (side, reference):
        work()  # first use of a shape is slower
    for _ in range(ROUNDS):
        for work, seen in zip((side, reference), times, strict=True):
            began = time.process_time()
            work()
            seen.append(time.process_time() - began)
    return min(times[0]) / min(times[1])


def _engine() -> float:
    torch.manual_seed(0)
    model = without_zero_init(Fluid(PRESETS["emoji-64"]))
    encoder = HashEncoder(model.config.text)
    engine = Engine(model, TextPrompts(model, encoder), max_rows=BATCH)
    text, null = (model.backbone.encode_text(*encoder.encode(prompts)) for prompts in ([PROMPT] * BATCH, [""]))
    seeds = torch.arange(BATCH)

    def run_engine() -> None:
        decode(engine, [Request(PROMPT, seed, SAMPLING) for seed in range(BATCH)])

    return ratio(run_engine, lambda: generate(model, text, null, seeds, SAMPLING))


def _head() -> float:
    config = MAR_PRESETS["mar-b"]
    head = without_zero_init(DiffusionHead(config))
    weights = HeadWeights.from_head(head)
    loop, chains = TorchHead(weights, torch.float32), make_chains(head, (HEAD_STEPS,))
    rows = Rows(
        condition=head.embed_condition(torch.randn(HEAD_ROWS, config.width)),
        guided=torch.empty(0, dtype=torch.int64), chain=torch.zeros(HEAD_ROWS, dtype=torch.int64),
        guidance=torch.ones(HEAD_ROWS), temperature=torch.ones(HEAD_ROWS), seed=torch.arange(HEAD_ROWS),
        position=torch.arange(HEAD_ROWS) % config.tokens,
    )  # fmt: skip
    x, products = torch.randn(HEAD_ROWS, weights.width), (5 * weights.depth + 2) * HEAD_STEPS
    # As many matrices as the head has, in turn: one alone would stay in the cache.
    matrices = [torch.randn(weights.width, weights.width) for _ in range(5 * weights.depth + 2)]

    def multiply() -> None:
        for number in range(products):
            torch.mm(x, matrices[number % len(matrices)])

    return ratio(lambda: loop(rows, chains, "eps", 0.0), multiply)
