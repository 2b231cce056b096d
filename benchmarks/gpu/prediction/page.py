"""The tables and the plot of docs/roofline.md.

    python -m benchmarks.gpu.prediction.page

takes seconds. If benchmarks/results/ has results of `make gpu-first` or `make gpu-second`, their measurements appear
beside the predictions.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path

from benchmarks.gpu.cases import MODELS
from benchmarks.gpu.decide import age
from benchmarks.gpu.prediction import times
from benchmarks.gpu.prediction.times import DEVICES, H100, H200, MEMORY, Device, Head, share
from model.presets import MAR_PRESETS

ROOT = Path(__file__).parents[3]
PAGE, PLOT = ROOT / "docs" / "roofline.md", ROOT / "docs" / "images" / "roofline.png"
RESULTS = ROOT / "benchmarks" / "results"
NAMES = ("mar-b", "mar-l", "mar-h", "166M", "369M", "665M", "1.1B", "3.1B", "10.5B")
BATCHES = (1, 8, 64, 256)
EVALUATIONS = (2, 8, 32, 128, 512, 2048, 4096)
LOOPS = {"autocast": times.eager_seconds, "triton": times.loop_seconds}


def measured(device: Device) -> dict[tuple[str, str, int], float]:
    """Read (what, model, evaluations or images) -> seconds from the results of this kind of GPU; newer ones win.

    `what` is a path of the loop, for the seconds of a step, "image by SIDE", or "pass" of the backbone in a CUDA graph.
    """
    found: dict[tuple[str, str, int], float] = {}
    for file in sorted(RESULTS.rglob("gpu-*.json"), key=age):
        parts = json.loads(file.read_text())["parts"]
        machine = parts.get("machine", {"records": []})["records"]
        if not machine or device.name not in machine[0]["device"]:
            continue
        for record in (record for part in parts.values() for record in part["records"]):
            if "us_per_step" in record:
                found[record["path"], record["model"], 2 * record["rows"]] = record["us_per_step"] * 1e-6
            if "side" in record and "seconds_per_image" in record:
                found[f"image by {record['side']}", record["model"], record["batch"]] = record["seconds_per_image"]
            if record.get("static") and "ms" in record:
                found["pass", record["model"], record["rows"]] = record["ms"] * 1e-3
    return found


def compared() -> list[str]:
    """Everything that was measured on an H200 beside what is predicted for it."""
    rows, order = [], ("image by engine", "image by autocast", "pass", *LOOPS)
    found = {key: seconds for key, seconds in measured(H200).items() if key[0] in order}
    for (what, model, count), seconds in sorted(
        found.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:])
    ):
        config = MODELS[model]
        if what == "image by engine":
            name = f"image of {model}, each of {count}"
            predicted = times.image(model, count, H200).total - times.ends_seconds(config, H200)
        elif what == "image by autocast":
            name = f"image of {model} by the released code's method, each of {count}"
            predicted = times.eager_image_seconds(model, count, H200) - times.DECODE_S
        elif what == "pass":
            known = config.tokens // 2 if model in MAR_PRESETS else 0
            name = f"backbone of {model}, {count} evaluations"
            predicted = times.pass_seconds(model, count, known, H200)
        else:
            name = f"step of the loop by {what}, {model}, {count} evaluations"
            predicted = LOOPS[what](Head.of(config), count, H200)
        rows.append([name, _short(1e3 * predicted), _short(1e3 * seconds), f"{seconds / predicted:.2f}"])
    return _table(["ms on an H200", "predicted", "measured", "measured / predicted"], rows)


def counted() -> list[str]:
    """What an image of each model costs, without its text and its decoding."""
    rows = []
    for name in NAMES:
        config, passes = MODELS[name], times.padded_known(MODELS[name])
        per_pass = Counter({known: times._counted(name, known, True).launches for known in passes})
        moved = sum(n * sum(times._counted(name, known, True).moved.values()) for known, n in passes.items())
        torch_moved = sum(n * sum(times._counted(name, known, False).moved.values()) for known, n in passes.items())
        head = Head.of(config)
        backbone = sum(n * times.pass_flops(name, 2, known) for known, n in passes.items())
        loop = times.DIFFUSION_STEPS * times.head_flops(head, 2 * config.tokens)
        rows.append([
            name, f"{config.width}", f"{head.width} x {head.depth}", _short(backbone / 1e12), _short(loop / 1e12),
            _short(moved / 1e9), _short(torch_moved / 1e9), f"{max(per_pass.values())}", f"{3 * head.depth + 3}",
        ])  # fmt: skip
    return _table(
        ["model", "width", "head", "backbone, TFLOP", "head, TFLOP", "GB between products", "by torch",
         "launches of a pass", "of a diffusion step"], rows,
    )  # fmt: skip


def shares() -> list[str]:
    """The share of the peak that is assumed for each kind of product of MAR-B, and its time."""
    rows = []
    for what, kind, shape, wide in (
        *[(f"queries, keys and values; {m} evaluations", "library", (m * 320, 2304, 768), False) for m in (2, 128)],
        *[(f"MLP up and GELU, ours; {m} evaluations", "ours", (m * 320, 3072, 768), False) for m in (2, 128)],
        ("the same by cuBLAS, then GELU, as it runs", "library and GELU", (128 * 320, 3072, 768), False),
        *[(f"MLP down; {m} evaluations", "library", (m * 320, 768, 3072), False) for m in (2, 128)],
        *[(f"head, up or down; {m} evaluations", "gated", (m, 1024, 1024), False) for m in (2, 32, 128, 512, 2048)],
        ("head, hoisted modulation", "library", (1024, 20480, 1024), False),
        *[(f"head, exact first step; {m} evaluations", "gated", (m, 1024, 1024), True) for m in (2, 512)],
    ):
        reached = share(kind.split()[0], shape, wide)
        arithmetic = times.product_seconds(kind.split()[0], shape, wide)
        if kind.endswith("GELU"):
            arithmetic += 4 * shape[0] * shape[1] / (MEMORY * H100.bytes_per_s)
            reached = 2 * math.prod(shape) / (arithmetic * H100.flops)
        rows.append([what, " x ".join(map(str, shape)), f"{100 * reached:.1f} %", _short(1e6 * arithmetic)])
    return _table(["product of MAR-B", "rows x columns x inner", "share of the peak", "us"], rows)


def images() -> list[str]:
    """Seconds of an image, predicted and measured."""
    rows = []
    for device in DEVICES:
        known = measured(device)
        for name in NAMES:
            for batch in BATCHES:
                found = times.image(name, batch, device)
                cells = [found.floor, found.backbone, found.loop, found.exact, found.rest, found.total]
                seconds = known.get(("image by engine", name, batch))
                rows.append([
                    device.name, name, str(batch), *(_short(1e3 * cell) for cell in cells),
                    f"{found.total / found.floor:.1f}", "" if seconds is None else _short(1e3 * seconds),
                ])  # fmt: skip
    return _table(
        ["device", "model", "together", "FLOP floor", "backbone", "loop", "exact step", "rest", "image", "x floor",
         "measured"], rows,
    )  # fmt: skip


def peers() -> list[str]:
    """The method of the released code beside ours, on an H200."""
    rows, known = [], measured(H200)
    for name in MAR_PRESETS:
        for batch in (1, 64):
            ours, theirs = times.image(name, batch, H200).total, times.eager_image_seconds(name, batch, H200)
            cells = [_short(1e3 * theirs), _short(1e3 * ours), f"{theirs / ours:.1f}"]
            both = [known.get((f"image by {side}", name, batch)) for side in ("autocast", "engine")]
            if both[0] is not None and both[1] is not None:
                cells += [_short(1e3 * both[0]), _short(1e3 * both[1]), f"{both[0] / both[1]:.1f}"]
            rows.append([name, str(batch), *cells, *[""] * (6 - len(cells))])
    columns = ("released code's method", "ours", "ratio")
    return _table(["model", "together", *columns, *(f"measured: {what}" for what in columns)], rows)


def steps() -> list[str]:
    """Microseconds of a diffusion step by path, predicted and measured."""
    rows = []
    for device in DEVICES:
        known = measured(device)
        for name in MAR_PRESETS:
            head = Head.of(MODELS[name])
            for m in EVALUATIONS:
                cells = [device.name, f"{head.width} x {head.depth}", str(m)]
                cells.append(_short(1e6 * times.roof_seconds(head, m, device)))
                for path, predicted in LOOPS.items():
                    seconds = known.get((path, name, m))
                    cells.append(_short(1e6 * predicted(head, m, device)))
                    cells.append("" if seconds is None else _short(1e6 * seconds))
                rows.append(cells)
    return _table(
        ["device", "W x blocks", "M", "roof", *(cell for path in LOOPS for cell in (path, "measured"))], rows
    )  # fmt: skip


def page(text: str) -> str:
    """Return docs/roofline.md with its tables regenerated, each between <!-- name --> and <!-- end -->."""
    for name, make in {
        "compared": compared, "counted": counted, "shares": shares, "images": images, "peers": peers, "steps": steps
    }.items():  # fmt: skip
        begin, end = text.index(f"<!-- {name} -->"), text.index("<!-- end -->", text.index(f"<!-- {name} -->"))
        text = text[:begin] + f"<!-- {name} -->\n\n" + "\n".join(make()) + "\n\n" + text[end:]
    return text


def plot(file: Path) -> None:
    """Plot milliseconds of an image by images together, predicted in parts, beside the FLOP floor and measurements."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = ("mar-b", "mar-h", "3.1B")
    figure, panels = pyplot.subplots(1, len(names), figsize=(11, 3.4), layout="constrained", sharey=True)
    for panel, name in zip(panels, names, strict=True):
        found = [times.image(name, batch, H200) for batch in BATCHES]
        below = [0.0] * len(BATCHES)
        for part in ("backbone", "loop", "exact", "rest"):
            heights = [1e3 * getattr(each, part) for each in found]
            panel.bar(range(len(BATCHES)), heights, bottom=below, label=part)
            below = [a + b for a, b in zip(below, heights, strict=True)]
        panel.axhline(1e3 * found[0].floor, color="black", label="FLOP floor")
        known = {key[2]: 1e3 * s for key, s in measured(H200).items() if key[:2] == ("image by engine", name)}
        if known:
            panel.plot([BATCHES.index(n) for n in known], list(known.values()), "kD", label="measured")
        panel.set(title=name, xlabel="images together", yscale="log", xticks=range(len(BATCHES)))
        panel.set_xticklabels(BATCHES)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ms of an image, H200")
    panels[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _short(value: float) -> str:
    """Format with three digits, never in scientific notation."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    plot(PLOT)
    print(f"{PAGE}\n{PLOT}")


if __name__ == "__main__":
    main()
