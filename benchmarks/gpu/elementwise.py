"""Bytes that the backbone moves between its products, counted without a GPU.

    python -m benchmarks.gpu.elementwise [--model mar-b] [--evaluations 128] [--known 128]

runs one pass on the meta device, where tensors have shapes and no values, and adds up what every operation reads and
writes; products, attention and views are left out. It does so for torch's operations and for the fused ones of
fluid_kernels/ops/add_norm.py and linear_gelu.py, whose kernels count by their formulas. It takes seconds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu.cases import MODELS
from model.inference.precision import pack
from model.networks.factory import build_model
from model.networks.mar import ClassContext, Mar
from model.networks.transformer import TextContext

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "empty", "empty_like", "new_empty", "arange", "zeros", "new_zeros")


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name not in PRODUCTS and not func.is_view and name != "_unsafe_view":
            self.moved[name] += sum(t.nbytes for t in (*tree_leaves(args), *tree_leaves(out)) if isinstance(t, Tensor))
        return out


@contextmanager
def fused_kernels(traffic: Traffic) -> Iterator[None]:
    """Count the kernels instead of launching them. The product with GELU moves nothing beside what a product does."""
    from fluid_kernels.ops import add_norm, linear_gelu

    def count(x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, n: Tensor) -> None:
        traffic.moved["add_norm"] += x.nbytes + n.nbytes + (0 if delta is None else delta.nbytes + x.nbytes)

    with patch.object(add_norm, "add_norm", count), patch.object(linear_gelu, "linear", lambda *_: None):
        yield


def count_bytes(name: str, evaluations: int, known: int, fused: bool) -> Counter[str]:
    """Bytes by operation of one pass of a named model in bfloat16, with `known` tokens of each row decided."""
    with torch.device("meta"):
        model = build_model(MODELS[name]).eval().requires_grad_(False)
        config = model.config
        tokens = torch.zeros(evaluations, config.tokens, config.channels)
        mask = torch.zeros(evaluations, config.tokens, dtype=torch.bool)
    pack(model, torch.bfloat16, fuse=True, triton=fused)
    condition: ClassContext | TextContext
    if isinstance(model, Mar):
        condition = ClassContext(torch.zeros(evaluations, config.width, device="meta"))
    else:
        keys = [torch.zeros(1, device="meta")] * len(model.backbone.blocks)  # type: ignore[arg-type]
        condition = TextContext(keys, keys, mask)
    traffic = Traffic()
    attention = patch("model.networks.layers.blocks.attention", lambda q, *_: q.new_empty(q.shape))
    with torch.no_grad(), attention, fused_kernels(traffic), traffic:
        model.backbone(tokens, mask, condition, known)
    return traffic.moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mar-b", choices=MODELS)
    parser.add_argument("--evaluations", type=int, default=128)
    parser.add_argument("--known", type=int, default=128, help="decided tokens of each row")
    args = parser.parse_args()
    for fused in (False, True):
        moved = count_bytes(args.model, args.evaluations, args.known, fused)
        print(f"{'fused' if fused else 'torch'}: {sum(moved.values()) / 1e9:.1f} GB")
        for name, size in moved.most_common(8):
            print(f"  {name:<28}{size / 1e9:8.2f} GB")


if __name__ == "__main__":
    main()
