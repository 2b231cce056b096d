"""What a backbone's pass does, counted without a GPU: products, bytes between them, launches.

    python -m benchmarks.gpu.prediction.counts [--model mar-b] [--evaluations 128] [--known 128]

runs one pass on the meta device, where tensors have shapes and no values, and adds up what every operation reads and
writes; views are left out, and products and attention are listed by shape. It does so for torch's operations and for
the fused ones of fluid_kernels/ops/add_norm.py and linear_gelu.py, whose kernels count by their formulas.
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

PRODUCTS = ("mm", "addmm")
UNCOUNTED = ("empty", "empty_like", "new_empty", "arange", "zeros", "new_zeros", "_unsafe_view")
TEXT_TOKENS = 32  # of a short prompt's condition
Shape = tuple[int, int, int]  # rows, columns, inner dimension


class Traffic(TorchDispatchMode):
    """Adds up the operations of a pass.

    Attributes:
        moved: bytes that operations other than products read and write, by the operation's name.
        products: number of products by shape; `ours`, those with a kernel of ours.
        attended: FLOPs of attention.
        launches: number of kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()
        self.products: Counter[Shape] = Counter()
        self.ours: Counter[Shape] = Counter()
        self.attended = self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name in UNCOUNTED:
            return out
        self.launches += 1
        if name in PRODUCTS:
            left, right = args[-2:]
            self.products[len(left), right.shape[1], right.shape[0]] += 1
        else:
            self.moved[name] += sum(t.nbytes for t in (*tree_leaves(args), *tree_leaves(out)) if isinstance(t, Tensor))
        return out

    def attention(self, q: Tensor, k: Tensor, *_: object) -> Tensor:
        """Stand in for model.networks.layers.attention.attention."""
        keys = k.shape[2] if k.ndim == 4 else TEXT_TOKENS
        self.attended += 4 * q.numel() * keys
        self.launches += 1
        return q.new_empty(q.shape)

    @contextmanager
    def fused_kernels(self) -> Iterator[None]:
        """Count the kernels instead of launching them.

        GELU in a product moves nothing beside what the product does; behind many rows it is a kernel of its own.
        """
        from fluid_kernels.ops import add_norm, linear_gelu

        def norm(x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, n: Tensor) -> None:
            self.moved["add_norm"] += x.nbytes + n.nbytes + (0 if delta is None else delta.nbytes + x.nbytes)
            self.launches += 1

        def linear(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, activation: str) -> None:
            self.ours[len(x), len(weight), x.shape[1]] += 1
            self.launches += 1
            if len(x) >= linear_gelu.LIBRARY_ROWS:  # which is asked of a GPU's weights alone
                self.moved["gelu"] += 2 * y.nbytes
                self.launches += 1

        with patch.object(add_norm, "add_norm", norm), patch.object(linear_gelu, "linear", linear):
            yield


def count_pass(name: str, evaluations: int, known: int, fused: bool) -> Traffic:
    """Count one pass of a named model in bfloat16, with `known` tokens of each row decided."""
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
    attention = patch("model.networks.layers.blocks.attention", traffic.attention)
    with torch.no_grad(), attention, traffic.fused_kernels(), traffic:
        model.backbone(tokens, mask, condition, known)
    return traffic


def count_bytes(name: str, evaluations: int, known: int, fused: bool) -> Counter[str]:
    """Bytes by operation of one pass, products and attention left out."""
    return count_pass(name, evaluations, known, fused).moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mar-b", choices=MODELS)
    parser.add_argument("--evaluations", type=int, default=128)
    parser.add_argument("--known", type=int, default=128, help="decided tokens of each row")
    args = parser.parse_args()
    for fused in (False, True):
        found = count_pass(args.model, args.evaluations, args.known, fused)
        print(f"{'fused' if fused else 'torch'}: {sum(found.moved.values()) / 1e9:.1f} GB, {found.launches} launches")
        for name, size in found.moved.most_common(8):
            print(f"  {name:<28}{size / 1e9:8.2f} GB")
        for shape, number in [*found.products.items(), *found.ours.items()]:
            print(f"  {number:4d} x {' x '.join(map(str, shape))}")


if __name__ == "__main__":
    main()
