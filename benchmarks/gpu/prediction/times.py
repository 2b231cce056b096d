"""From counts to seconds: what an image should take on an H100 and an H200.

Operations run one after another. Each takes GAP_S after the one before it, and then the longest of three: SHORTEST_S,
its products at their share of the peak, and its bytes at MEMORY of the bandwidth. The share of a product:

    best of its kind        LIBRARY (cuBLAS) or OURS (Triton), which power and the instructions' issue limit
    x K / (K + RAMP)        filling and draining the pipeline of a tile, K the inner dimension
    x full tiles            rows and columns that are padding, and multiprocessors that wait in the last wave

and no product is faster than its tiles' reads from the L2 cache. M: evaluations (rows and guided rows), W: width of the
head, L: its blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from benchmarks.gpu.cases import MODELS
from benchmarks.gpu.prediction.counts import Shape, Traffic, count_pass
from fluid_kernels.configs import linear_config
from fluid_kernels.loops.fused_loop import HOISTED_ROWS, bucket_size
from fluid_kernels.ops.gated_residual import WIDEST
from fluid_kernels.ops.linear_gelu import LIBRARY_ROWS as LIBRARY_GELU_ROWS
from fluid_kernels.ops.modulation import LIBRARY_ROWS
from model.config import FluidConfig, MarConfig, ModelConfig
from model.inference.backbone_pass import bucket
from model.inference.orders import masked_after, tokens_per_step

# docs/roofline.md says which of these an H200 has measured, and which are assumed. None is fitted to the whole images
# and steps that they are compared with, but for EAGER_S, which is the host's.
LIBRARY, OURS, RAMP, MEMORY = 0.79, 0.55, 256, 0.88
GAP_S, SHORTEST_S, EAGER_S = 1.5e-6, 1.8e-6, 30e-6
L2_BYTES_PER_S, L2_BYTES = 5.5e12, 30e6
PROCESSORS = 132
AROUND = 35  # small kernels of a step beside backbone and loop: plan, embedding, filling a bucket, writing back
DECODE_S = 4e-3  # of one image, by the image tokenizer, one at a time
ENCODER_PARAMETERS, TEXT_TOKENS = 4.76e9, 32  # T5-XXL's encoder, once for each image
STEPS, DIFFUSION_STEPS = 64, 100
LIBRARY_TILES = ((128, 256), (128, 128), (64, 128), (64, 64))


@dataclass(frozen=True)
class Device:
    """A GPU's limits by its datasheet: dense bfloat16 FLOP/s with float32 sums, and memory bandwidth."""

    name: str
    flops: float
    bytes_per_s: float


H100, H200 = Device("H100", 989e12, 3.35e12), Device("H200", 989e12, 4.8e12)
DEVICES = (H100, H200)


def share(kind: str, shape: Shape, wide: bool = False) -> float:
    """The share of the bfloat16 peak that a product reaches.

    Args:
        kind: "library", "ours", or "gated": ours with an epilogue that needs registers.
        wide: in float32, by three TF32 products.
    """
    return 2 * math.prod(shape) * (6 if wide else 1) / (product_seconds(kind, shape, wide) * H200.flops)


def product_seconds(kind: str, shape: Shape, wide: bool = False) -> float:
    """Seconds of a product's arithmetic: the memory's bandwidth apart."""
    rows, columns, _ = shape
    if kind == "library":
        return min(_tile_seconds(shape, tile, LIBRARY, 2.0, False) for tile in LIBRARY_TILES)
    widest = WIDEST if kind == "gated" else 256
    c = linear_config("cuda", rows, columns, torch.float32 if wide else torch.bfloat16, widest)
    return _tile_seconds(shape, (c.m, c.n), OURS, 1.0, wide)


def _tile_seconds(shape: Shape, tile: tuple[int, int], best: float, shared: float, wide: bool) -> float:
    """Waves of tiles, each as long as its arithmetic or its reads, which `shared` programs of a cluster share."""
    (rows, columns, inner), (m, n) = shape, tile
    waves = -(-(-(-rows // m) * -(-columns // n)) // PROCESSORS)
    rate = best * inner / (inner + RAMP) * H200.flops / PROCESSORS
    work = 2 * m * n * inner * (6 if wide else 1) / rate
    read = (m + n) * inner * (4 if wide else 2) / shared / (L2_BYTES_PER_S / PROCESSORS)
    return waves * max(work, read)


def op_seconds(arithmetic: float, moved: float, device: Device, gap_s: float = GAP_S) -> float:
    """Seconds of one launch."""
    return gap_s + max(SHORTEST_S, arithmetic, moved / (MEMORY * device.bytes_per_s))


def product_bytes(shape: Shape, size: int = 2) -> float:
    rows, columns, inner = shape
    return size * (rows * inner + columns * inner + rows * columns)


# ---- the head's loop ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A head's sizes."""

    width: int
    depth: int
    channels: int = 16
    outputs: int = 32

    @classmethod
    def of(cls, config: ModelConfig) -> Head:
        return cls(config.head_width, config.head_depth, config.channels, config.head_out)

    @property
    def loop_bytes(self) -> int:
        """Weights that every step reads; modulation is hoisted."""
        return 2 * 2 * self.depth * self.width**2


def head_flops(head: Head, m: float) -> float:
    """FLOPs of a step, hoisted products included: the formula of head_loop.py."""
    return 2 * m * head.width * ((5 * head.depth + 2) * head.width + head.channels + head.outputs)


def loop_seconds(head: Head, m: int, device: Device, wide: bool = False) -> float:
    """A step of the Triton loop: 3·L + 3 launches, and its share of the hoisted modulation. wide: the exact first."""
    w, size, cached = head.width, 4 if wide else 2, not wide and head.loop_bytes <= L2_BYTES
    square = (m, w, w)
    moved = 0.0 if cached else product_bytes(square, size)
    up, down = (op_seconds(product_seconds(kind, square, wide), moved, device) for kind in ("ours", "gated"))
    elementwise = (
        m * w * (4 + 3 * size),
        m * w * 4,
        m * w * (4 + 2 * size),
        4 * m * (head.outputs + 3 * head.channels),
    )
    norm, first, out, update = (op_seconds(0.0, moved, device) for moved in elementwise)
    steps = 1 if wide else max(1, HOISTED_ROWS // m)
    shape = (m * steps, (3 * head.depth + 2) * w, w)
    kind = "library" if m * steps >= LIBRARY_ROWS and not wide else "ours"
    hoisted = op_seconds(product_seconds(kind, shape, wide), product_bytes(shape, size), device)
    hoisted += op_seconds(0.0, m * steps * w * (8 + size), device)
    return head.depth * (up + down + norm) + first + out + update + hoisted / steps


def eager_seconds(head: Head, m: int, device: Device) -> float:
    """A step as the released code does it under autocast: modulation in every step, elementwise passes over memory."""
    w, tensor = head.width, 4 * m * head.width

    def product(columns: int, inner: int) -> float:
        shape = (m, columns, inner)
        return op_seconds(product_seconds("library", shape), product_bytes(shape), device, 0.0)

    def passes(*sizes: float) -> float:
        return sum(max(EAGER_S, op_seconds(0.0, size * tensor, device, 0.0)) for size in sizes)

    products = [product(w, head.channels), product(2 * w, w), product(head.outputs, w)]
    products += head.depth * [product(3 * w, w), product(w, w), product(w, w)]
    # Of a block: norm, + 1, x, +, cast, silu, x gate, +; then the final layer, guidance, posterior, noise.
    rest = passes(3, 2) + head.depth * passes(2, 2, 3, 3, 1.5, 1, 2.5, 3) + passes(2, 2, 3, 3, 1.5) + 25 * EAGER_S
    return sum(max(EAGER_S, each) for each in products) + rest


def roof_seconds(head: Head, m: float, device: Device) -> float:
    """FLOPs at the full peak, or the fewest bytes at the full bandwidth, whichever is slower."""
    square, steps = head.width**2, max(1, HOISTED_ROWS // m)
    weights = 2 * head.depth * square + (3 * head.depth + 2) * square / steps
    moved = 2 * (weights + (head.channels + head.outputs) * head.width) + 12 * m * head.channels
    return max(head_flops(head, m) / device.flops, moved / device.bytes_per_s)


# ---- the backbone ------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _counted(name: str, known: int, fused: bool) -> Traffic:
    return count_pass(name, 2, known, fused)  # all but the weights' bytes grow with the evaluations


def padded_known(config: ModelConfig) -> Counter[int]:
    """Passes of an image by the number of known tokens that they are padded to."""
    total = config.tokens
    if not isinstance(config, MarConfig):
        return Counter({0: STEPS})
    unit = max(32, -(-total // 4))
    known = (total - masked_after(step - 1, STEPS, total) for step in range(STEPS))
    return Counter(min(-(-count // unit) * unit, total) for count in known)


def pass_flops(name: str, evaluations: int, known: int) -> float:
    found = _counted(name, known, True)
    products = sum(2 * math.prod(shape) * count for shape, count in (found.products + found.ours).items())
    return evaluations / 2 * (products + found.attended)


def pass_seconds(name: str, evaluations: int, known: int, device: Device, fused: bool = True) -> float:
    """One pass: of ours in a CUDA graph, or eagerly by torch's operations."""
    found = _counted(name, known, fused)
    gap, floor = (GAP_S, 0.0) if fused else (0.0, EAGER_S)
    total = 0.0
    for kind, products in (("library", found.products), ("ours", found.ours)):
        for (rows, columns, inner), count in products.items():
            shape = (rows * evaluations // 2, columns, inner)
            by_library = kind == "ours" and shape[0] >= LIBRARY_GELU_ROWS  # and then GELU
            seconds = product_seconds("library" if by_library else kind, shape)
            one = op_seconds(seconds, product_bytes(shape), device, gap)
            total += count * max(floor, one)
            if by_library:
                total += count * op_seconds(0.0, 4 * shape[0] * columns, device, gap)
    others = found.launches - (found.products + found.ours).total()
    moved = sum(found.moved.values()) * evaluations / 2
    # Attention at half of the library's share: heads are narrow, and masks are read.
    attention = found.attended * evaluations / 2 / (LIBRARY / 2 * device.flops)
    between = max(others * max(floor, gap + SHORTEST_S), others * gap + moved / (MEMORY * device.bytes_per_s))
    return total + between + attention


# ---- whole images ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """Seconds of one of `batch` images, with guidance."""

    floor: float  # FLOPs of backbone and head at the peak
    backbone: float
    loop: float
    exact: float  # the first diffusion step of each token
    rest: float  # text, decoding, small kernels between the graphs

    @property
    def total(self) -> float:
        return self.backbone + self.loop + self.exact + self.rest


def image(name: str, batch: int, device: Device) -> Image:
    """Predict an image of 64 x 100 steps."""
    config = MODELS[name]
    head, evaluations, passes = Head.of(config), bucket(2 * batch), padded_known(config)
    backbone = sum(count * pass_seconds(name, evaluations, known, device) for known, count in passes.items())
    floor = sum(count * pass_flops(name, 2 * batch, known) for known, count in passes.items())
    loop = exact = 0.0
    for tokens in tokens_per_step(STEPS, config.tokens):
        m = 2 * bucket_size(tokens * batch)
        loop += (DIFFUSION_STEPS - 1) * loop_seconds(head, m, device)
        exact += loop_seconds(head, m, device, wide=True)
        floor += DIFFUSION_STEPS * head_flops(head, 2 * tokens * batch)
    rest = STEPS * AROUND * (GAP_S + SHORTEST_S) / batch + ends_seconds(config, device)
    return Image(floor / device.flops / batch, backbone / batch, loop / batch, exact / batch, rest)


def ends_seconds(config: ModelConfig, device: Device) -> float:
    """An image's text and its decoding, which no timing of `make gpu-second` contains."""
    if not isinstance(config, FluidConfig):
        return DECODE_S
    encoding = 2 * ENCODER_PARAMETERS * TEXT_TOKENS / (LIBRARY * device.flops)
    return DECODE_S + max(encoding, 2 * ENCODER_PARAMETERS / (MEMORY * device.bytes_per_s))


def eager_image_seconds(name: str, batch: int, device: Device) -> float:
    """Seconds of an image by the method of the released code under autocast."""
    config = MODELS[name]
    passes = padded_known(config)
    total = sum(count * pass_seconds(name, 2 * batch, known, device, False) for known, count in passes.items())
    head = Head.of(config)
    counts: Iterator[int] = iter(tokens_per_step(STEPS, config.tokens))
    total += sum(DIFFUSION_STEPS * eager_seconds(head, 2 * tokens * batch, device) for tokens in counts)
    return total / batch + DECODE_S
