"""Correctness of a GPU: does it generate the same images as a CPU?

    philox     random numbers of the Triton kernel against the definition
    ops        each fused operation against its definition, with every tile size of the table
    head       each path of the head's loop against the float32 definition, from one row to many tiles
    systems    tokens of the paper's four systems (random weights) against those of a CPU, in float32
    backbone   the backbone on the device against float32 on the CPU
    image      images of the shipped model against those of a CPU in float32, in decibels
    batch      an image generated alone against the same image among rows that join and leave

Needs torch, triton, safetensors, numpy and tqdm; calls.py puts the parts in their order.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.cases import MODELS, decode, engine_over, head_case, paths, random_model, shipped
from benchmarks.gpu.parts import Emit, attempt
from benchmarks.gpu.prompt_states import PROMPTS
from benchmarks.gpu.warm import CHECKED_ROWS
from fluid_kernels.head_loop import head_loop_ref
from fluid_kernels.heads import choose_path, make_head
from fluid_kernels.philox import STEP, normal_ref
from model.config import ModelConfig
from model.inference.backbone_pass import PlainPass, StaticPass
from model.inference.engine import Engine
from model.inference.orders import orders_of
from model.inference.precision import pack
from model.inference.requests import Request, Sampling
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.tokenizer import psnr, to_pixels, to_uint8

DTYPES = (torch.float32, torch.bfloat16)
# Tolerances between device and definition. Relative errors are means over means; decibels are of 8-bit pixels.
PHILOX = 1e-5
HEAD = {torch.float32: 2e-3, torch.bfloat16: 0.02}
BACKBONE = {torch.float32: 1e-4, torch.bfloat16: 0.02}
IMAGE_DB = {torch.float32: 50.0, torch.bfloat16: 33.0}  # of atlas-128 on a CPU: 99, and 47 to 56 or 16
BATCH_DB = {torch.float32: 50.0, torch.bfloat16: 35.0}
SAME_CODES = 0.95  # of discrete tokens: rounding may change one, and with it those that are decided later
SYSTEM_LIMIT = 0.05  # relative error of continuous tokens; in raster order 64 follow one from the other
SAME_DB = 99.0  # stands for infinity, which JSON cannot express


def check_philox(args: argparse.Namespace, emit: Emit) -> None:
    """Compare random numbers for every channel count of our tokens, with seeds beyond 32 bits."""
    from fluid_kernels.ops.philox_triton import normal

    for channels in (4, 16, 17):
        seed = torch.arange(1000, device=args.device) * 0x1_2345_6789
        position, step = seed % 4096, seed % 1000
        found, expected = normal(seed, STEP, position, step, channels), normal_ref(seed, STEP, position, step, channels)
        worst = (found - expected).abs().max().item()
        emit({"channels": channels, "worst": worst, "ok": worst <= PHILOX})


def check_ops(args: argparse.Namespace, emit: Emit) -> None:
    """Compare each fused operation at regular and odd shapes, in both dtypes."""
    from fluid_kernels.tools.check import checks

    for check in checks(args.device, args.quick):
        with attempt(emit, {"op": check.name}) as record:
            record["apart"] = check.apart()
            record["ok"] = record["apart"] <= check.most


def check_head(args: argparse.Namespace, emit: Emit) -> None:
    """Compare the head's loop on chains of different lengths, half of the rows guided; float32 by Triton only."""
    for name, rows in itertools.product(args.models, (1, 3) if args.quick else CHECKED_ROWS):
        for path, dtype in itertools.product(paths(args.device, name, args.paths), DTYPES):
            if dtype == torch.bfloat16 or path == "triton" or args.quick:
                compare_head(name, rows, path, dtype, args, emit)


def compare_head(name: str, rows: int, path: str, dtype: torch.dtype, args: argparse.Namespace, emit: Emit) -> None:
    """Emit how far one path is from the definition."""
    about = {"model": name, "rows": rows, "path": path, "dtype": short(dtype)}
    with attempt(emit, about) as record, torch.inference_mode():
        case = head_case(MODELS[name], args.device, rows, (5, 3) if args.quick else (50, 25, 4), guided=0.5)
        exact = head_loop_ref(case.weights, case.rows, case.chains, case.prediction, 3.0)
        found = make_head(case.weights, dtype, path)(case.rows, case.chains, case.prediction, 3.0)
        record["apart"] = relative(found, exact)
        record["ok"] = record["apart"] <= HEAD[dtype]


def check_backbone(args: argparse.Namespace, emit: Emit) -> None:
    """Compare the backbone on rows at different steps, where padding, masks and buckets can go wrong."""
    for name in dict.fromkeys(("mar-small", "fluid-small", *args.models)):
        model, _ = random_model(name, "cpu")
        config = model.config
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randn(5, config.tokens, config.channels, generator=generator)
        share = torch.tensor([0, 0.1, 0.5, 0.5, 0.9])[:, None]
        known = torch.rand(5, config.tokens, generator=generator) < share
        exact = conditioned(copy.deepcopy(model), "cpu", torch.float32, tokens, known, False)
        for dtype, static in itertools.product(DTYPES, (False, True)):
            with attempt(emit, {"model": name, "dtype": short(dtype), "static": static}) as record:
                z = conditioned(copy.deepcopy(model), args.device, dtype, tokens, known, static)
                record["apart"] = relative(z, exact)
                record["ok"] = record["apart"] <= BACKBONE[dtype]


def conditioned(
    model: AutoregressiveModel, device: str, dtype: torch.dtype, tokens: Tensor, known: Tensor, static: bool
) -> Tensor:
    """Return the backbone's output for five rows, computed on `device` and moved to the CPU.

    With `static` it comes from the replay of a graph that was captured for other rows.
    """
    model = model.to(device)
    pack(model, dtype, triton=choose_path("auto", torch.device(device)) != "torch")
    conditioner = engine_over(model, 1, dtype).conditioner
    prompts = ("", *(PROMPTS if model.config.family == "fluid" else ("1", "2", "30", "999")))
    with torch.inference_mode():
        parts, most = [conditioner(prompt) for prompt in prompts], int(known.sum(1).max())
        state = tokens.to(device), known.to(device)
        if not static:
            return PlainPass(model.backbone, *state)(range(5), parts, most).cpu()
        run = StaticPass(model.backbone, *state, parts[0])
        run([4, 3, 2, 1, 0], parts, most)
        return run(range(5), parts, most).cpu()


def check_image(args: argparse.Namespace, emit: Emit) -> None:
    """Check that a seed gives the same image on any device, up to rounding."""
    requests = varied_requests(args.quick)
    if os.environ.get("TRITON_INTERPRET") == "1":  # which takes 50 ms for a program: an image like the others, minutes
        requests = [Request(PROMPTS[0], 5, Sampling(2, 2, guidance_interval=(0.5, 1.0)))]
    expected = generate("cpu", torch.float32, "auto", requests)
    for path, dtype in itertools.product(paths(args.device, "atlas-128", args.paths), DTYPES):
        with attempt(emit, {"path": path, "dtype": short(dtype)}) as record:
            found = generate(args.device, dtype, path, requests)
            values = [decibels(a, b) for a, b in zip(found, expected, strict=True)]
            # A prompt that leaves the place of a thing open may put it elsewhere after bfloat16's rounding: half may.
            decisive = sorted(values)[len(values) // 2 if dtype == torch.bfloat16 else 0]
            record |= {"least_db": min(values), "each_db": values, "ok": decisive >= IMAGE_DB[dtype]}


def check_batch(args: argparse.Namespace, emit: Emit) -> None:
    """Compare one request alone with the same among rows of other settings that join and leave at other steps."""
    request = varied_requests(args.quick)[0]
    for path, dtype in itertools.product(paths(args.device, "atlas-128", args.paths), DTYPES):
        with attempt(emit, {"path": path, "dtype": short(dtype)}) as record:
            engine, tokenizer = shipped(args.device, 6, dtype, path)
            with torch.inference_mode():
                alone = to_uint8(tokenizer.decode(decode(engine, [request])))
                batched = to_uint8(tokenizer.decode(among_others(engine, request)[None]))
            record["db"] = decibels(batched[0], alone[0])
            record["ok"] = record["db"] >= BATCH_DB[dtype]


def check_systems(args: argparse.Namespace, emit: Emit) -> None:
    """Check that each of the paper's four systems decodes the CPU's tokens: cached keys, sampled codes, confidence."""
    device = torch.device(args.device)
    for name in ("random-continuous", "random-discrete", "raster-continuous", "raster-discrete"):
        with attempt(emit, {"system": name}) as record:
            model, _ = random_model(f"compare-{name}", "cpu")
            requests = [system_request(model.config, seed, args.quick) for seed in range(3)]
            with torch.inference_mode():
                expected = decode(engine_over(model, 4, torch.float32, "torch"), requests)
                found = decode(engine_over(copy.deepcopy(model).to(device), 4, torch.float32), requests).cpu()
            if model.config.categorical:
                record["share"] = (found == expected).float().mean().item()
                record["ok"] = record["share"] >= SAME_CODES
            else:
                record["relative"] = relative(found, expected)
                record["ok"] = record["relative"] <= SYSTEM_LIMIT


def system_request(config: ModelConfig, seed: int, quick: bool) -> Request:
    """Return a guided request that this system can decode."""
    kind = orders_of(config)[-1]  # confidence, where there is one
    sampling = Sampling(
        num_inference_steps=config.tokens if config.causal else 4 if quick else 16,
        diffusion_steps=1 if config.categorical else 2 if quick else 8, guidance_scale=1.0 + seed, order=kind,
        top_p=0.9 if config.categorical else None,
    )  # fmt: skip
    return Request(PROMPTS[seed], seed, sampling)


def among_others(engine: Engine, request: Request) -> Tensor:
    """Decode one request while five other rows join, leave and are replaced; return its (N, C) tokens."""
    (row,) = engine.admit([request])
    others: list[int] = []
    number, finished = 0, list[int]()
    while row not in finished:
        while len(others) < 5:
            steps, guidance = 3 + number % 4, 1.0 + number % 3
            sampling = Sampling(steps, 7, guidance, "linear")
            others += engine.admit([Request(PROMPTS[number % 4], 100 + number, sampling)])
            number += 1
        finished = engine.step()
        for done in [index for index in finished if index in others]:
            engine.release(done)
            others.remove(done)
    return engine.peek(row)


def varied_requests(quick: bool) -> list[Request]:
    """Return four requests with different settings."""
    base = Sampling(4, 4) if quick else Sampling(16, 25)
    return [
        Request(PROMPTS[0], 5, base),
        Request(PROMPTS[1], 6, replace(base, order="halton", guidance_schedule="linear")),
        Request(PROMPTS[2], 7, replace(base, guidance_scale=1.0, temperature=0.9)),
        Request(PROMPTS[3], 8, replace(base, diffusion_steps_final=5, guidance_interval=(0.2, 0.8))),
    ]


def generate(device: str, dtype: torch.dtype, path: str, requests: list[Request]) -> Tensor:
    """Generate B images with the shipped model; return (B, H, W, 3) uint8 on the CPU."""
    engine, tokenizer = shipped(device, len(requests), dtype, path)
    with torch.inference_mode():
        return to_uint8(tokenizer.decode(decode(engine, requests))).cpu()


def relative(found: Tensor, exact: Tensor) -> float:
    """Return the mean absolute difference over the mean absolute value; 1e9 if any value is not finite."""
    if not bool(found.isfinite().all()):
        return 1e9
    return ((found.float() - exact.float()).abs().mean() / exact.float().abs().mean()).item()


def decibels(one: Tensor, other: Tensor) -> float:
    """Return the PSNR of two (H, W, 3) uint8 images, at most SAME_DB."""
    value = psnr(to_pixels(one[None]), to_pixels(other[None])).item()
    return round(min(value, SAME_DB), 1)


def short(dtype: torch.dtype) -> str:
    """Return a dtype's name as the settings spell it."""
    return str(dtype).removeprefix("torch.")
