"""Visibility of the seam of an edit, by feather, against images pasted into the same hole. Needs `make data train`.

A box that cuts token cells is regenerated in real images; everything else is kept. *repair* uses the image's own
prompt, *blind* none, *change* that of another concept in the same style. *pasted* is the control of each: an image
generated without its surroundings, put into the same hole. Per kind and feather:

    seam, inside, outside   mean absolute difference of neighbouring pixels (of 255): across the mask's edge, and
                            within BAND pixels on either side of it; row "original" has the values of the real images
    visible                 seam over the mean of inside and outside: 1 is no seam at all
    old                     mean share of the old image in the masked part: the cost of feathering
    psnr                    masked part against the original in dB, except for changes; a feather mixes the original in

It takes a few minutes. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.edits --images 48 --sheet out/edits.png
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.machine import describe_machine, save_result
from model.data.contact_sheet import contact_sheet
from model.data.dataset import Dataset
from model.evaluation.evaluate_emoji import spread
from model.evaluation.generation import default_sampling
from model.inference.load import load_engine
from model.inference.requests import Request
from model.inference.serving import ServingEngine
from server.images.compositing import GENERATED, KnownPixels, Source, blend, feathered, kept_cells

FEATHERS = (0, 2, 4, 8)
BOX = (19, 21, 46, 44)  # left, upper, right, lower: no edge coincides with a cell's
SHOWN = (0, 2, 8)  # feathers on the contact sheet
BAND = 3  # width in pixels of the bands beside the seam that it is compared with


def box_mask(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), fill=GENERATED)
    return mask


def generate(engine: ServingEngine, requests: list[Request]) -> list[bytes]:
    """Generate RGB bytes for each request, as many at a time as the engine has rows."""
    found: list[bytes] = [b""] * len(requests)
    for first in range(0, len(requests), engine.max_rows):
        group = requests[first : first + engine.max_rows]
        place = dict(zip(engine.admit(group), range(first, first + len(group)), strict=True))
        while place:
            for row in engine.step():
                found[place.pop(row)] = engine.image(row)
                engine.release(row)
    return found


def gradients(images: np.ndarray, mask: Image.Image) -> dict[str, float]:
    """Return the mean |difference| of neighbours across the mask's edge and in the bands beside it.

    images: (P, H, W, 3) uint8.
    """
    inside = np.asarray(mask) > 0  # (H, W)
    width = 2 * BAND + 1
    near_in = inside & ~(np.asarray(mask.filter(ImageFilter.MinFilter(width))) > 0)
    near_out = ~inside & (np.asarray(mask.filter(ImageFilter.MaxFilter(width))) > 0)
    sums = {"seam": [0.0, 0], "inside": [0.0, 0], "outside": [0.0, 0]}
    for axis in (1, 2):
        steps = np.abs(np.diff(images.astype(np.int16), axis=axis)).mean((0, 3))  # (H-1, W) or (H, W-1)
        one, two = (slice(None, -1), slice(1, None))
        first, second = (one, two) if axis == 1 else ((slice(None), one), (slice(None), two))
        for name, where in (
            ("seam", inside[first] ^ inside[second]),
            ("inside", near_in[first] & near_in[second]),
            ("outside", near_out[first] & near_out[second]),
        ):
            sums[name][0] += float(steps[where].sum())
            sums[name][1] += int(where.sum())
    found = {name: total / count for name, (total, count) in sums.items()}
    return found | {"visible": found["seam"] / ((found["inside"] + found["outside"]) / 2)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", default="runs/emoji-64/checkpoint", help="folder (%(default)s, of `make train`)"
    )
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"), help="packed data set from `make data`")
    parser.add_argument("--images", type=int, default=240, help="images per kind, at most (default 240)")
    parser.add_argument("--split", default="train", help="train, or heldout: trained concepts in a style never seen")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the checkpoint's own)")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet to this file")
    args = parser.parse_args(argv)

    engine = load_engine(args.checkpoint, 16, "cpu")
    dataset = Dataset.load(args.data)
    rows = spread(dataset.indices(args.split), args.images)
    originals, size = dataset.images[rows], engine.image_size
    mask, settings = box_mask(size), default_sampling(engine)
    if args.guidance is not None:
        settings = replace(settings, guidance_scale=args.guidance)
    kept = kept_cells(mask.tobytes(), size, engine.checkpoint.config.tokens)
    steps = min(settings.num_inference_steps, kept.count(0))
    own = [dataset.items[i].captions[0] for i in rows]
    others = [_other(dataset, int(row), rng) for rng, row in enumerate(rows)]
    sources = [Source(size, o.tobytes(), mask.tobytes(), KnownPixels(o.tobytes(), kept)) for o in originals]

    def requests(prompts: list[str], known: bool) -> list[Request]:
        plain = [Request(prompt, seed, settings) for seed, prompt in enumerate(prompts)]
        if not known:
            return plain
        fewer = replace(settings, num_inference_steps=steps)
        return [replace(request, sampling=fewer, known=s.known) for request, s in zip(plain, sources, strict=True)]

    result: dict[str, Any] = {
        "machine": describe_machine(), "images": len(rows), "split": args.split, "new_tokens": kept.count(0),
        "guidance_scale": settings.guidance_scale,
    }  # fmt: skip
    result["original"] = gradients(originals, mask)
    holes = np.where(np.asarray(mask)[:, :, None] > 0, np.uint8(160), originals)
    shown: list[list[np.ndarray]] = [list(originals), list(holes)]
    kinds = {
        "repair": (own, True), "repair pasted": (own, False),
        "blind": ([""] * len(rows), True), "blind pasted": ([""] * len(rows), False),
        "change": (others, True), "change pasted": (others, False),
    }  # fmt: skip
    for kind, (prompts, known) in kinds.items():
        generated = generate(engine, requests(prompts, known))
        for feather in FEATHERS:
            pairs = zip(generated, sources, strict=True)
            done = np.stack([np.frombuffer(blend(d, s, feather), np.uint8) for d, s in pairs]).reshape(originals.shape)
            share = np.asarray(feathered(mask, feather)).astype(float)[np.asarray(mask) > 0] / GENERATED
            figures = gradients(done, mask) | {"old": float(1 - share.mean())}
            if not kind.startswith("change"):
                error = (done[:, np.asarray(mask) > 0].astype(float) - originals[:, np.asarray(mask) > 0]) ** 2
                figures["psnr"] = float(10 * np.log10(255**2 / error.mean()))
            result[f"{kind}, feather {feather}"] = figures
            if feather in SHOWN and kind in ("repair", "change"):
                shown.append(list(done))
    for name, figures in result.items():
        if isinstance(figures, dict) and "seam" in figures:
            print(f"{name:26s}" + "".join(f"{key:>9s} {value:6.2f}" for key, value in figures.items()))
    if args.sheet:
        _sheet(shown).quantize(256).save(args.sheet)
    suffix = "" if args.guidance is None else f"-guidance-{args.guidance:g}"
    print(f"saved to {save_result(f'edits-{args.split}{suffix}', result)}")
    print(json.dumps(result))


def _other(dataset: Dataset, row: int, seed: int) -> str:
    """Return a prompt of another concept in the style of this row."""
    item, rng = dataset.items[row], np.random.default_rng(seed)
    rows = [i for i in dataset.indices("train") if dataset.items[i].style == item.style]
    return dataset.items[int(rng.choice(rows))].captions[0]


def _sheet(shown: list[list[np.ndarray]], count: int = 8) -> Image.Image:
    """Return a sheet with one column per image (original, hole, repairs, changes), evenly spread, not hand-picked."""
    columns = spread(np.arange(len(shown[0])), count)
    return contact_sheet([line[int(i)] for line in shown for i in columns], columns=len(columns), scale=1)


if __name__ == "__main__":
    main()
