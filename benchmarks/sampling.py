"""Seconds per image of the shipped model, by quality preset and batch size, against batch 1.

Expected cost. One image of the shipped model at 16 autoregressive steps, 25 diffusion steps and guidance costs about
    backbone   16 steps × 2 halves × 64 positions × 5.8 M weights × 2 = 24 GFLOP
    head       64 tokens × 25 steps × 2 halves × 1.3 M weights × 2    =  8 GFLOP
so a CPU with 300 GFLOP/s needs 0.1 s. A single image takes longer because of the launch overhead of 400 head steps and
16 backbone passes, which rows decoded together share: seconds per image fall with the batch until arithmetic is the
limit.

Batch sizes alternate within each round, so that a slow moment of the machine affects all of them; figures are medians.

It takes a few minutes, and under 1 with --quick. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.sampling --quick
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

from tqdm import tqdm

from benchmarks.machine import describe_machine, save_result
from model.evaluation.generation import default_sampling
from model.inference.load import find_checkpoint, load_engine
from model.inference.requests import Request, Sampling
from model.inference.serving import ServingEngine

PROMPTS = ("a red apple, 3d style", "cat, flat style", "rocket, noto style", "a castle, twemoji style")


def seconds_per_image(engine: ServingEngine, settings: Sampling, batch: int) -> float:
    """Decode `batch` images together, pixels included; return wall seconds divided by `batch`."""
    requests = [Request(PROMPTS[i % len(PROMPTS)], i, settings) for i in range(batch)]
    start = time.perf_counter()
    rows = engine.admit(requests)
    finished: set[int] = set()
    while len(finished) < batch:
        finished |= set(engine.step())
    for row in rows:
        engine.image(row)
        engine.release(row)
    return (time.perf_counter() - start) / batch


def fast_over_exact(quick: bool) -> dict[str, float]:
    """Measure the time of 32 x 50 steps in random order over that of the default preset, 8 images together.

    The two are equal in quality by the figures of benchmarks.fast (docs/log.md).
    """
    engine = load_engine("atlas-128", 8, "cpu")
    default = default_sampling(engine)
    exact = replace(default, num_inference_steps=32, diffusion_steps=50, diffusion_steps_final=None, order="random")
    for settings in (default, exact):
        seconds_per_image(engine, settings, 8)
    ratios = []
    for _ in range(1 if quick else 5):
        slow = seconds_per_image(engine, exact, 8)
        ratios.append(slow / seconds_per_image(engine, default, 8))
    ratio = statistics.median(ratios)
    print(f"32 x 50, random order, over the default preset: {ratio:.2f}x the time")
    return {"fast_over_exact": round(ratio, 2)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="atlas-128", help="folder or name of a shipped checkpoint "
                        "(default atlas-128)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one round instead of five; nothing is saved")
    args = parser.parse_args(argv)

    batches = (1, 4, 16)
    engine = load_engine(str(find_checkpoint(args.checkpoint)), max(batches), "auto", 0)
    cases = [(quality, batch) for quality in ("low", "medium", "high") for batch in batches]
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    seconds_per_image(engine, default_sampling(engine, "low"), 2)  # first use of each shape is slower
    for _ in tqdm(range(1 if args.quick else 5), desc="rounds"):
        for quality, batch in cases:
            times[quality, batch].append(seconds_per_image(engine, default_sampling(engine, quality), batch))

    result: dict[str, object] = {"machine": describe_machine(), "checkpoint_sha256": engine.checkpoint.sha256}
    print(f"{'quality':10s}{'steps':>8s}{'batch':>8s}{'s/image':>12s}{'vs batch 1':>12s}")
    for quality, batch in cases:
        median = statistics.median(times[quality, batch])
        preset = default_sampling(engine, quality)
        ratio = statistics.median(times[quality, 1]) / median
        steps = f"{preset.num_inference_steps}x{preset.diffusion_steps}"
        print(f"{quality:10s}{steps:>8s}{batch:8d}{median:12.3f}{ratio:11.1f}x")
        result[f"seconds_per_image_{quality}_b{batch}"] = round(median, 4)
    if not args.quick:
        print(f"saved to {save_result('sampling', result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
