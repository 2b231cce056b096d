"""Quality and time of faster decoding settings, against 32 x 50 steps. Needs `make data train`.

Every setting generates the same prompts with the same seeds. Per setting:

    r-precision   share of images whose own concept is the nearest of 100 of its style (evaluation/evaluate_emoji.py)
    paired        mean of 1 − cosine between features of the image and of the prompt's real image; lower is better
    kernel        squared distance of the two sets' features under the cubic kernel (x·y + 1)³, unbiased, × 1000: like
                  the kernel inception distance, but with EfficientNet-lite0's features, so published figures differ
    time          CPU seconds of one thread per image, 16 decoded together, relative to the first setting

Row "real, decoded" is the ceiling: the real images through the image tokenizer and back.

It takes about half an hour for all settings. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.fast --images 60 --only "32 x 50" "8 x 25, halton"
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe_machine, save_result
from model.data.dataset import Dataset
from model.evaluation.evaluate_emoji import hits, spread
from model.evaluation.features import Features
from model.evaluation.generation import default_sampling, generate_images
from model.inference.load import load_engine
from model.inference.requests import Sampling
from model.networks.tokenizer import reconstruct, to_pixels, to_uint8

CHOICES: dict[str, dict[str, Any]] = {
    "32 x 50": {"num_inference_steps": 32, "diffusion_steps": 50},
    "32 x 50 to 5": {"num_inference_steps": 32, "diffusion_steps": 50, "diffusion_steps_final": 5},
    "32 x 25": {"num_inference_steps": 32, "diffusion_steps": 25},
    "16 x 50": {"num_inference_steps": 16, "diffusion_steps": 50},
    "16 x 50 to 5": {"num_inference_steps": 16, "diffusion_steps": 50, "diffusion_steps_final": 5},
    "16 x 25": {"num_inference_steps": 16, "diffusion_steps": 25},
    "16 x 25 to 5": {"num_inference_steps": 16, "diffusion_steps": 25, "diffusion_steps_final": 5},
    "16 x 25, halton": {"num_inference_steps": 16, "diffusion_steps": 25, "order": "halton"},
    "16 x 25, guided first half": {
        "num_inference_steps": 16, "diffusion_steps": 25, "guidance_interval": (0.0, 0.5),
    },
    "16 x 25, guided last half": {
        "num_inference_steps": 16, "diffusion_steps": 25, "guidance_interval": (0.5, 1.0),
    },
    "16 x 25, guided middle": {
        "num_inference_steps": 16, "diffusion_steps": 25, "guidance_interval": (0.2, 0.8),
    },
    "8 x 25": {"num_inference_steps": 8, "diffusion_steps": 25},
    "8 x 25 to 5": {"num_inference_steps": 8, "diffusion_steps": 25, "diffusion_steps_final": 5},
    "8 x 25, halton": {"num_inference_steps": 8, "diffusion_steps": 25, "order": "halton"},
    "8 x 25 to 5, halton": {
        "num_inference_steps": 8, "diffusion_steps": 25, "diffusion_steps_final": 5, "order": "halton",
    },
    "8 x 12": {"num_inference_steps": 8, "diffusion_steps": 12},
    "8 x 12 to 5, halton": {
        "num_inference_steps": 8, "diffusion_steps": 12, "diffusion_steps_final": 5, "order": "halton",
    },
    "4 x 25, halton": {"num_inference_steps": 4, "diffusion_steps": 25, "order": "halton"},
}  # fmt: skip


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of (P, F) and (Q, F) features under the cubic kernel."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T + 1) ** 3

    a, b = a.double(), b.double()
    p, q = len(a), len(b)
    within = (kernel(a, a).sum() - kernel(a, a).trace()) / (p * (p - 1))
    within += (kernel(b, b).sum() - kernel(b, b).trace()) / (q * (q - 1))
    return float(within - 2 * kernel(a, b).mean())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", default="runs/emoji-64/checkpoint", help="folder (%(default)s, of `make train`)"
    )
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"), help="packed data set from `make data`")
    parser.add_argument("--images", type=int, default=240, help="images per setting (default 240)")
    parser.add_argument("--only", nargs="*", default=list(CHOICES), metavar="SETTING", help="run only these settings, "
                        "by name")  # fmt: skip
    args = parser.parse_args(argv)

    engine = load_engine(args.checkpoint, 16, "cpu", 1)
    dataset, extractor = Dataset.load(args.data), Features()
    real = extractor(to_pixels(torch.from_numpy(dataset.images)))
    rows = spread(dataset.indices("train"), args.images)
    prompts = [dataset.items[i].captions[0] for i in rows]
    result: dict[str, Any] = {"machine": describe_machine(), "images": len(rows), "choices": {}}
    print(f"{'setting':30s}{'r-precision':>12s}{'paired':>9s}{'kernel':>9s}{'time':>7s}")

    def score(name: str, pixels: Tensor, seconds: float, first: float) -> float:
        features = extractor(pixels)
        right = hits(features, rows, dataset, real, dataset.concepts("train")).mean()
        paired = float((1 - (features * real[rows]).sum(1)).mean())
        kernel = 1000 * kernel_distance(features, real[rows])
        time_ratio = seconds / first if first else 1.0
        print(f"{name:30s}{right:12.3f}{paired:9.4f}{kernel:9.3f}{time_ratio:7.2f}", flush=True)
        result["choices"][name] = {
            "r_precision": round(float(right), 4), "paired": round(paired, 4), "kernel": round(kernel, 3),
            "cpu_seconds": round(seconds, 4), "time": round(time_ratio, 3),
        }  # fmt: skip
        return seconds

    originals = to_pixels(torch.from_numpy(dataset.images[rows]))
    score("real, decoded", to_pixels(to_uint8(reconstruct(engine.checkpoint.tokenizer, originals))), 0.0, 0.0)
    first = 0.0
    for name in args.only:
        settings: Sampling = replace(default_sampling(engine), **CHOICES[name])
        begin = time.thread_time()
        generated: np.ndarray = generate_images(engine, prompts, settings)
        seconds = (time.thread_time() - begin) / len(rows)
        first = first or seconds
        score(name, to_pixels(torch.from_numpy(generated)), seconds, first)
    print(f"saved to {save_result('fast', result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
