"""Speed of a GPU against its limits.

    ceilings    peak rates of this device: a large bfloat16 product, a large copy
    loop        the head's sampling loop by rows: each of our paths, from one row to a thousand
    shipped     whole images of the shipped model, default preset
    images      models of MAR's and the paper's sizes, random weights, 64 x 100 steps, guidance on, with peak memory
    backbones   the backbone alone, by rows, eagerly and as a CUDA graph
    attention   padded rows with a mask against packed rows of different lengths, at the shapes of MAR's encoder
    peers       MAR-B by the method of the released code, eager and under autocast, and torch.compile's loop, beside our
                engine in the same run; the released code itself if --mar-repo names a clone

`images` and `peers` run four of the 64 autoregressive steps, with all their diffusion steps; an image takes 16 times
their sum. calls.py puts the parts in their order.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import exact
from benchmarks.gpu.cases import (
    LABELS,
    MODELS,
    decode,
    head_case,
    paths,
    random_engine,
    random_model,
    shipped,
    synchronise,
)
from benchmarks.gpu.head import loop_of, seconds
from benchmarks.gpu.parts import Emit, Record, attempt
from benchmarks.gpu.prompt_states import PROMPTS
from benchmarks.gpu.warm import LOOP_ROWS
from benchmarks.machine import describe_machine
from model.inference.backbone_pass import PlainPass, StaticPass
from model.inference.engine import Engine
from model.inference.requests import Request, Sampling
from model.inference.row_state import Snapshot
from model.networks.mar import Mar

STEPS, DIFFUSION_STEPS, SAMPLED = 64, 100, (8, 24, 40, 56)


def bench_ceilings(args: argparse.Namespace, emit: Emit) -> None:
    """Measure peak rates on random data: products of zeros run faster."""
    size, bytes_ = (256, 1 << 20) if args.quick else (8192, 4 << 30)
    a, b = (torch.randn(size, size, device=args.device).bfloat16() for _ in range(2))
    emit({"what": "matmul bf16", "size": size, "tflops": 2e-12 * size**3 / seconds(lambda: a @ b, args.device, 9)})
    source = torch.randint(0, 255, (bytes_,), dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    spent = seconds(lambda: target.copy_(source), args.device, 9)
    emit({"what": "copy, read + written", "bytes": 2 * bytes_, "gb_per_s": 2e-9 * bytes_ / spent})


def bench_loop(args: argparse.Namespace, emit: Emit) -> None:
    """Time the head's loop on guided rows of one chain. A row here is a token: two evaluations per step."""
    for name in args.models:
        for rows, path in itertools.product((2, 16) if args.quick else LOOP_ROWS, paths(args.device, name, args.paths)):
            time_loop(name, rows, path, args, emit)


def time_loop(name: str, rows: int, path: str, args: argparse.Namespace, emit: Emit) -> None:
    """Emit the microseconds of a step of one variant of the loop (head.py)."""
    steps = 4 if args.quick else 10 if path in ("eager", "autocast", "compiled") else DIFFUSION_STEPS
    about = {"model": name, "rows": rows, "path": path, "steps": steps}
    with attempt(emit, about) as record, torch.inference_mode():
        case = head_case(MODELS[name], args.device, rows, (steps,))
        spent = seconds(loop_of(path, case), args.device, 1 if args.quick else 3)
        record |= {"us_per_step": 1e6 * spent / steps, "tflops": 1e-12 * case.flops / spent}


def bench_shipped(args: argparse.Namespace, emit: Emit) -> None:
    """Time whole images, pixels included: 8 x 25 steps, guidance 3, Halton order."""
    engine, tokenizer = shipped(args.device, max(args.batches), torch.bfloat16)

    def generate(count: int) -> Tensor:
        steps = (2, 5) if args.quick else (8, 25)
        requests = [Request(PROMPTS[i % 4], i, Sampling(*steps, order="halton")) for i in range(count)]
        with torch.inference_mode():
            return tokenizer.decode(decode(engine, requests)).cpu()

    for batch in args.batches:
        with attempt(emit, {"batch": batch, "kernels": engine.kernels}) as record:
            spent = seconds(functools.partial(generate, batch), args.device, 1 if args.quick else 5)
            record["seconds_per_image"] = spent / batch


def bench_images(args: argparse.Namespace, emit: Emit) -> None:
    """Time models from small to large, so that running out of time costs as few rows of the table as possible."""
    for name in args.models:
        with attempt(emit, {"model": name, "side": "engine"}) as record:
            engine, record["parameters"] = random_engine(name, args.device, max(args.batches), torch.bfloat16)
            record["rows"] = engine.max_rows  # its static inputs take memory for all of them
            record["kernels"] = engine.kernels
            for batch in args.batches:
                with attempt(emit, {"model": name, "batch": batch, "side": "engine"}) as one:
                    one |= image_time(engine, batch, args)
            del engine


def bench_peers(args: argparse.Namespace, emit: Emit) -> None:
    """Time the released code's method beside our engine: the same weights, batches and steps, in one process."""
    name = args.models[0]
    ours: dict[int, float] = {}
    with attempt(emit, {"model": name, "side": "engine"}) as record:
        engine, record["parameters"] = random_engine(name, args.device, max(args.batches), torch.bfloat16)
        for batch in args.batches:
            with attempt(emit, {"model": name, "batch": batch, "side": "engine"}) as one:
                one |= image_time(engine, batch, args)
                ours[batch] = one["seconds_per_image"]
        del engine
    sides = ("autocast", "eager", *(["official"] if args.mar_repo else []))
    for side, batch in itertools.product(sides, args.batches):
        with attempt(emit, {"model": name, "batch": batch, "side": side}) as record:
            record |= peer_time(name, batch, side, args)
            if batch in ours:
                record["engine_is_faster"] = record["seconds_per_image"] / ours[batch]
    for rows in (2,) if args.quick else (4, 256):
        for variant in ("autocast",) if args.quick else ("autocast", "compiled"):
            time_loop(name, rows, variant, args, emit)


def image_time(engine: Engine, batch: int, args: argparse.Namespace) -> Record:
    """Measure seconds per image and the device's peak memory with our engine."""
    steps, diffusion_steps, sampled = plan(args)
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    tokens = torch.randn(batch, engine.config.tokens, engine.config.channels)
    spent = 0.0
    for _ in range(2):  # the first round is slower: each shape is new
        spent = sum(one_step(engine, tokens, index, steps, diffusion_steps, args.device) for index in sampled)
    record: Record = {"seconds_per_image": spent * steps / len(sampled) / batch}
    if args.device == "cuda":
        record["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return record


def one_step(engine: Engine, tokens: Tensor, index: int, steps: int, diffusion_steps: int, device: str) -> float:
    """Time autoregressive step `index` with all rows at that step, in seconds."""
    prompts = prompts_of(engine)
    for row in range(len(tokens)):
        request = Request(prompts[row % len(prompts)], row, Sampling(steps, diffusion_steps))
        engine.restore(Snapshot(request, index, tokens[row]))
    synchronise(device)
    begin = time.perf_counter()
    engine.step()
    synchronise(device)
    spent = time.perf_counter() - begin
    for row in range(len(tokens)):
        engine.release(row)
    return spent


def peer_time(name: str, batch: int, which: str, args: argparse.Namespace) -> Record:
    """Measure seconds per image with the method of the released code (benchmarks/exact.py); always 64 x 100 steps."""
    model, _ = random_model(name, args.device)
    assert isinstance(model, Mar)
    side = exact.eager_side(model, batch)
    if which == "official":
        side = exact.official_side(args.mar_repo, model, batch)
    tokens = torch.randn(batch, model.config.tokens, model.config.channels, device=args.device)
    sampled = SAMPLED[-1:] if args.quick else SAMPLED
    spent = 0.0
    with torch.autocast(args.device, torch.bfloat16, enabled=which != "eager"):
        for round_ in range(2):
            begin = time.perf_counter()
            for index in sampled if round_ else sampled[-1:]:
                side(index, tokens)
            synchronise(args.device)
            spent = time.perf_counter() - begin
    return {"seconds_per_image": spent * STEPS / len(sampled) / batch}


def prompts_of(engine: Engine) -> Sequence[str]:
    """Return prompts that the engine's model accepts."""
    return PROMPTS if engine.config.family == "fluid" else LABELS


def plan(args: argparse.Namespace) -> tuple[int, int, tuple[int, ...]]:
    """Return (autoregressive steps, diffusion steps, autoregressive steps to run)."""
    return (8, 4, (2, 6)) if args.quick else (STEPS, DIFFUSION_STEPS, SAMPLED)


def bench_backbones(args: argparse.Namespace, emit: Emit) -> None:
    """Time the backbone with half of the tokens known, eagerly and as a CUDA graph.

    Rows are evaluations: two per guided image.
    """
    for name in args.models:
        engine, _ = random_engine(name, args.device, 1, torch.bfloat16)
        config, prompts = engine.config, prompts_of(engine)
        for rows, static in itertools.product((2, 4) if args.quick else (2, 128), (False, True)):
            with attempt(emit, {"model": name, "rows": rows, "static": static}) as record, torch.inference_mode():
                tokens = torch.randn(rows, config.tokens, config.channels, device=args.device)
                known = torch.arange(config.tokens, device=args.device).expand(rows, -1) % 2 == 0
                conditions = [engine.conditioner(prompts[i % len(prompts)]) for i in range(rows)]
                state = engine.model.backbone, tokens, known
                run = StaticPass(*state, conditions[0]) if static else PlainPass(*state)
                work = functools.partial(run, range(rows), conditions, config.tokens // 2)
                record["ms"] = 1e3 * seconds(work, args.device, 3)


def bench_attention(args: argparse.Namespace, emit: Emit) -> None:
    """Time attention on rows of 64 to 320 keys, evenly spread like rows at different steps; heads as MAR-B's."""
    heads, width = (2, 16) if args.quick else (12, 64)
    for rows in (4,) if args.quick else (16, 128):
        lengths = torch.linspace(64, 320, rows).int()
        longest, total = int(lengths.max()), int(lengths.sum())
        q, k, v = (torch.randn(rows, heads, longest, width, device=args.device).bfloat16() for _ in range(3))
        real = (torch.arange(longest)[None] < lengths[:, None]).to(args.device)[:, None, None]
        methods: dict[str, Callable[[], object]] = {
            "no mask": functools.partial(F.scaled_dot_product_attention, q, k, v),
            "mask": functools.partial(F.scaled_dot_product_attention, q, k, v, attn_mask=real),
        }
        if args.device == "cuda":
            methods["packed"] = packed_attention(lengths, heads, width, args.device)
        for method, work in methods.items():
            with attempt(emit, {"rows": rows, "method": method, "tokens": total, "padded": rows * longest}) as record:
                record["us"] = 1e6 * seconds(work, args.device, 1 if args.quick else 20)


def packed_attention(lengths: Tensor, heads: int, width: int, device: str) -> Callable[[], object]:
    """Return a call of torch's variable-length attention kernel."""
    from torch.nn.attention.varlen import varlen_attn

    ends = F.pad(lengths.cumsum(0), (1, 0)).int().to(device)
    q, k, v = (torch.randn(int(lengths.sum()), heads, width, device=device).bfloat16() for _ in range(3))
    longest = int(lengths.max())
    return lambda: varlen_attn(q, k, v, ends, ends, longest, longest)


def describe(args: argparse.Namespace, emit: Emit) -> None:
    """Describe the machine; as a part, so that the process which forks never touches the device."""
    record: dict[str, Any] = describe_machine()
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        record |= {
            "capability": f"{properties.major}.{properties.minor}", "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda,
        }  # fmt: skip
    emit(record)
