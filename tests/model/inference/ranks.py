"""A rank of a tensor-parallel group, for test_tensor_parallel.py; arguments are checkpoints.

Rank 0 decodes the same rows alone and with the group, and prints a line of JSON for each checkpoint.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from model.inference.devices.follower import follow
from model.inference.devices.sharding import local_values
from model.inference.load import load_engine
from model.inference.requests import Request, Sampling
from model.inference.serving import ServingEngine
from tests.model.conftest import fitted

STEPS = 4


def decode(engine: ServingEngine) -> list[torch.Tensor]:
    """Tokens of three rows, one of which joins late and one of which is restored from a snapshot."""
    config = engine.checkpoint.config
    prompts = engine.checkpoint.about.get("labels") or ["a red apple", "two blue cars", ""]
    first, second, third = (
        fitted(Request(prompt, seed, Sampling(STEPS, 4)), config) for seed, prompt in enumerate(prompts[:3])
    )
    rows = engine.admit([first, second])
    engine.step()
    rows += engine.admit([third])
    engine.step()
    state = engine.snapshot(rows[0])
    engine.release(rows[0])
    rows[0] = engine.restore(first, state)
    done: set[int] = set()
    while len(done) < 3:
        done |= set(engine.step())
    tokens = [engine.engine.peek(row) for row in rows]
    for row in rows:
        engine.release(row)
    return tokens


def main() -> None:
    if int(os.environ["RANK"]):
        follow("cpu", 2, 1)
        return
    for folder in sys.argv[1:]:
        options = {"max_rows": 3, "device": "cpu", "threads": 1, "dtype": os.environ.get("DTYPE", "float32")}
        alone, led = load_engine(folder, **options), load_engine(folder, **options, ranks=2)  # type: ignore[arg-type]
        pairs = list(zip(decode(alone), decode(led), strict=True))
        apart = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
        again = max(float((a - b[1]).abs().max()) for a, b in zip(decode(led), pairs, strict=True))
        blocks = [name for name in ("blocks", "encoder", "decoder") if hasattr(led.checkpoint.model.backbone, name)]
        part, whole = (
            sum(local_values(getattr(engine.checkpoint.model.backbone, name)) for name in blocks)
            for engine in (led, alone)
        )
        largest = max(float(a.double().abs().max()) for a, _ in pairs)
        print(
            json.dumps({"apart": apart, "again": again, "part": part, "whole": whole, "largest": largest}), flush=True
        )


if __name__ == "__main__":
    main()
