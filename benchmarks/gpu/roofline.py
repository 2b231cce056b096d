"""Roofline model of the head's loop: the predicted time of a step on a GPU, without measuring.

    python -m benchmarks.gpu.roofline

takes seconds and writes docs/images/roofline.png and the tables of docs/roofline.md, which explains the numbers. If
benchmarks/results/ has a gpu-bench file, its measurements appear beside the predictions.

An operation takes as long as the slowest of three: its products at PRODUCTS of the peak, its bytes at the memory's
bandwidth, and its launch. Operations run one after another, so a step is their sum. Weights and activations of a step
fit the L2 cache, yet all bytes except the persistent kernel's are charged at the memory's bandwidth: the model errs on
the slow side. M: evaluations (rows and guided rows), W: width, L: blocks, C and O: channels in and out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.inference.orders import tokens_per_step
from model.presets import MAR_PRESETS

ROOT = Path(__file__).parents[2]
PAGE, PLOT = ROOT / "docs" / "roofline.md", ROOT / "docs" / "images" / "roofline.png"
RESULTS = ROOT / "benchmarks/results"

# Assumptions until a GPU has measured them; docs/roofline.md explains each.
EAGER_S, NODE_S, WAIT_S, CHAIN_S = 5e-6, 2e-6, 1e-6, 1e-6
L2_BYTES_PER_S = 5.5e12
PRODUCTS = 0.8
TILE_ROWS = 64
HOISTED_ROWS = 1024  # as in fluid_kernels/loops/fused_loop.py

CHANNELS, OUTPUTS = 16, 32
EVALUATIONS = tuple(2**n for n in range(1, 13))
TABLED = (2, 8, 32, 128, 512, 2048, 4096)
VARIANTS = ("eager", "graph", "persistent")
MEASURED_AS = {"eager": "autocast", "graph": "triton", "persistent": "persistent"}


@dataclass(frozen=True)
class Device:
    """A GPU's limits by its datasheet: dense bfloat16 FLOP/s with float32 sums, and memory bandwidth."""

    name: str
    flops: float
    bytes_per_s: float


DEVICES = (
    Device("H200", 989e12, 4.8e12), Device("H100 SXM", 989e12, 3.35e12), Device("A100 80 GB SXM", 312e12, 2.04e12),
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A head's width and number of blocks; token and output channels are MAR's."""

    width: int
    depth: int


# The heads of MAR's three models, and one as wide as MAR-B's backbone.
HEADS = (Head(768, 6), Head(1024, 6), Head(1280, 8), Head(1536, 12))


@dataclass(frozen=True)
class Op:
    """One launch. A multiply-add counts as two FLOPs."""

    flops: float
    bytes: float


def flops(head: Head, m: float) -> float:
    """Return the FLOPs of a step, hoisted products included: the formula of head_loop.py."""
    return 2 * m * head.width * ((5 * head.depth + 2) * head.width + CHANNELS + OUTPUTS)


def least_bytes(head: Head, m: float) -> float:
    """Return the fewest bytes of a step.

    That is the loop's weights once, the modulation's once per chunk of steps, x and noise in, x out.
    """
    square, steps = head.width**2, max(1, HOISTED_ROWS // m)
    weights = 2 * head.depth * square + (3 * head.depth + 2) * square / steps + (CHANNELS + OUTPUTS) * head.width
    return 2 * weights + 12 * m * CHANNELS


def product(m: float, inputs: float, outputs: float, extra: float = 0.0) -> Op:
    """Return a matrix product of (m, inputs) and (inputs, outputs) in bfloat16, with `extra` bytes moved."""
    return Op(2 * m * inputs * outputs, 2 * (inputs * outputs + m * inputs + m * outputs) + extra)


def eager_ops(head: Head, m: float) -> Iterator[Op]:
    """Yield the launches of networks/diffusion_head.py under autocast.

    Modulation is computed in every step, and every elementwise operation is a pass over memory.
    """
    w = head.width
    passes = 4 * m * w  # bytes of one float32 tensor
    yield from (Op(0, 3 * passes), Op(0, 2 * passes), product(m, CHANNELS, w))  # time + condition, silu, token_in
    for _ in range(head.depth):
        yield product(m, w, 3 * w)
        # norm, + 1, · , + , cast, silu, · gate, + : reads and writes
        yield from (Op(0, n * passes) for n in (2, 2, 3, 3, 1.5, 1, 2.5, 3))
        yield from (product(m, w, w), product(m, w, w))
    yield product(m, w, 2 * w)
    yield from (Op(0, n * passes) for n in (2, 2, 3, 3, 1.5))
    yield product(m, w, OUTPUTS)
    yield from (Op(0, 8 * m * CHANNELS) for _ in range(25))  # guidance, posterior, noise


def hoisted_ops(head: Head, m: float) -> tuple[float, Op]:
    """Return the launches per step, and a step's share of the modulation product of a chunk of steps."""
    steps = max(1, HOISTED_ROWS // m)
    columns = (3 * head.depth + 2) * head.width
    whole = product(m * steps, head.width, columns)
    return 2 / steps, Op(whole.flops / steps, whole.bytes / steps)


def graph_ops(head: Head, m: float) -> Iterator[Op]:
    """Yield the fused operations of fluid_kernels/loops/fused_loop.py."""
    w = head.width
    yield Op(2 * m * CHANNELS * w, 4 * m * (CHANNELS + w))
    for _ in range(head.depth):
        yield Op(0, m * w * (4 + 4 + 2))  # h, shift and scale in; n out
        yield product(m, w, w)
        yield product(m, w, w, m * w * (8 + 2 - 2))  # h in and out, gate in, no bfloat16 result
    yield Op(2 * m * w * OUTPUTS, m * (w * 8 + 4 * OUTPUTS))
    yield Op(0, 4 * m * (OUTPUTS + 3 * CHANNELS))


def step_seconds(variant: str, head: Head, m: float, device: Device) -> float:
    """Return the predicted seconds of one diffusion step."""

    def spent(op: Op, start_s: float, bytes_per_s: float) -> float:
        return max(start_s, op.flops / (PRODUCTS * device.flops), op.bytes / bytes_per_s)

    if variant == "eager":
        return sum(spent(op, EAGER_S, device.bytes_per_s) for op in eager_ops(head, m))
    launches, modulation = hoisted_ops(head, m)
    ahead = spent(modulation, launches * NODE_S, device.bytes_per_s)
    if variant == "graph":
        return ahead + sum(spent(op, NODE_S, device.bytes_per_s) for op in graph_ops(head, m))
    tiles = math.ceil(m / TILE_ROWS)
    phase = Op(2 * m * head.width**2, tiles * 2 * head.width**2 + 10 * m * head.width)
    phases = 2 * head.depth * (WAIT_S + CHAIN_S + spent(phase, 0.0, L2_BYTES_PER_S))
    return ahead + phases + WAIT_S + CHAIN_S  # the last phase's products are small


def roof_seconds(head: Head, m: float, device: Device) -> float:
    """Return the roof: FLOPs at the full peak, or the fewest bytes at the memory's bandwidth, whichever is slower.

    Only weights that stay in a cache can beat it.
    """
    return max(flops(head, m) / device.flops, least_bytes(head, m) / device.bytes_per_s)


def image_seconds(variant: str, head: Head, batch: int, device: Device) -> float:
    """Return the head's seconds per image at 64 x 100 guided steps, `batch` images together; "floor" is FLOPs alone."""
    total = 0.0
    for count in tokens_per_step(64, 256):
        m = 2 * count * batch
        one = flops(head, m) / device.flops if variant == "floor" else step_seconds(variant, head, m, device)
        total += 100 * one
    return total / batch


def measured() -> dict[tuple[str, str, int, str], float]:
    """Read {(device, model, evaluations, variant): seconds of a step} from the gpu-bench files; newer ones win."""
    found: dict[tuple[str, str, int, str], float] = {}
    for file in sorted(RESULTS.glob("gpu-bench-*.json")):
        parts = json.loads(file.read_text())["parts"]
        device = parts["machine"]["records"][0]["device"]
        for record in parts.get("head", {"records": []})["records"]:
            if "us_per_step" in record:
                key = (device, record["model"], 2 * record["rows"], record["variant"])
                found[key] = record["us_per_step"] * 1e-6
    return found


def counted_table() -> list[str]:
    """Return table lines of FLOPs, bytes and their ratio."""
    lines = ["| W x blocks | M | GFLOP | MB | FLOP/byte |", "|---|---|---|---|---|"]
    for head in HEADS:
        for m in TABLED:
            total, moved = flops(head, m), least_bytes(head, m)
            cells = (f"{head.width} x {head.depth}", str(m), _short(total / 1e9), _short(moved / 1e6))
            lines.append("| " + " | ".join((*cells, f"{total / moved:.0f}")) + " |")
    return lines


def predicted_table(device: Device) -> list[str]:
    """Return table lines of a step's microseconds by variant, predicted and measured."""
    known = {key[1:]: value for key, value in measured().items() if device.name.split()[0] in key[0]}
    head_line = "| W x blocks | M | roof | " + " | ".join(f"{v}: predicted | measured" for v in VARIANTS) + " |"
    lines = [head_line, "|" + "---|" * (3 + 2 * len(VARIANTS))]
    names = {(c.head_width, c.head_depth): name for name, c in MAR_PRESETS.items()} | {(768, 6): "head-768"}
    for head in HEADS:
        for m in TABLED:
            cells = [f"{head.width} x {head.depth}", str(m), _short(1e6 * roof_seconds(head, m, device))]
            for variant in VARIANTS:
                name = names.get((head.width, head.depth), "")
                seconds = known.get((name, m, MEASURED_AS[variant]))
                cells += [
                    _short(1e6 * step_seconds(variant, head, m, device)),
                    "" if seconds is None else _short(1e6 * seconds),
                ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def images_table() -> list[str]:
    """Return table lines of the head loop's seconds per image."""
    lines = [
        "| head of | device | images together | floor | " + " | ".join(VARIANTS) + " |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, config in MAR_PRESETS.items():
        head = Head(config.head_width, config.head_depth)
        for device in DEVICES:
            for batch in (1, 8, 64, 256):
                cells = [f"{image_seconds(v, head, batch, device):.3g}" for v in ("floor", *VARIANTS)]
                lines.append(f"| {name} | {device.name} | {batch} | " + " | ".join(cells) + " |")
    return lines


def _short(value: float) -> str:
    """Format with three digits, never in scientific notation."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def page(text: str) -> str:
    """Return docs/roofline.md with its tables regenerated, each between <!-- name --> and <!-- end -->."""
    tables = {"counted": counted_table(), "images": images_table()}
    tables |= {f"predicted {device.name}": predicted_table(device) for device in DEVICES}
    for name, lines in tables.items():
        begin, end = text.index(f"<!-- {name} -->"), text.index("<!-- end -->", text.index(f"<!-- {name} -->"))
        text = text[:begin] + f"<!-- {name} -->\n\n" + "\n".join(lines) + "\n\n" + text[end:]
    return text


def plot(file: Path) -> None:
    """Plot TFLOP/s of a step by evaluations for each device, with dots for measurements."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    head, colours = Head(1024, 6), dict(zip(VARIANTS, ("tab:red", "tab:blue", "tab:green"), strict=True))
    known = measured()
    figure, panels = pyplot.subplots(1, len(DEVICES), figsize=(11, 3.4), layout="constrained", sharey=True)
    for panel, device in zip(panels, DEVICES, strict=True):
        panel.loglog(
            EVALUATIONS, [1e-12 * flops(head, m) / roof_seconds(head, m, device) for m in EVALUATIONS],
            color="black", label="roof",
        )  # fmt: skip
        for variant, colour in colours.items():
            rates = [1e-12 * flops(head, m) / step_seconds(variant, head, m, device) for m in EVALUATIONS]
            panel.loglog(EVALUATIONS, rates, "--", color=colour, label=f"{variant}, predicted")
            dots = {
                key[2]: 1e-12 * flops(head, key[2]) / value
                for key, value in known.items()
                if key[1] == "mar-b" and key[3] == MEASURED_AS[variant] and device.name.split()[0] in key[0]
            }
            if dots:
                panel.loglog(list(dots), list(dots.values()), "o", color=colour, label=f"{variant}, measured")
        panel.set(title=device.name, xlabel="evaluations per step")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("TFLOP/s, head 1024 x 6")
    panels[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    plot(PLOT)
    print(f"{PAGE}\n{PLOT}")


if __name__ == "__main__":
    main()
