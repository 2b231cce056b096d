"""Scores of a folder of `fluid eval` that others can compare with: FID by torch-fidelity, CLIP score by transformers.

    python -m model.evaluation.folder_scores out/coco/evaluation.json --fid val2014/ --inception inception.pth < prompts

Both need weights that this project does not have: torch-fidelity's conversion of the original Inception v3 (its release
page has the file), and a CLIP model in transformers' layout. The prompts come by standard input, a line for each image.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch.utils.data import Dataset
from tqdm import tqdm

BATCH = 32
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
EXTRA = "pip install '.[eval]' in a clone"


class ScoreError(ValueError):
    """The images cannot be scored; the message names the remedy."""


class RealImages(Dataset[torch.Tensor]):
    """The images of a folder, and of those in it, cut to the middle and scaled to one size (width, height).

    Those of COCO have many sizes, and torch-fidelity puts images into batches as they are.
    """

    def __init__(self, folder: Path, size: tuple[int, int]):
        self.size = size
        self.files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        """(3, H, W) uint8."""
        with Image.open(self.files[row]) as image:
            fitted = ImageOps.fit(image.convert("RGB"), self.size, Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1)


def frechet_distance(images: Path, real: Path, weights: Path) -> float:
    """FID between two folders of images, by torch-fidelity with the weights of this file.

    Raises:
        ScoreError: torch-fidelity is not installed, or a folder or the file is missing.
    """
    try:
        from torch_fidelity import calculate_metrics  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ScoreError(f"FID needs torch-fidelity ({error}): {EXTRA}") from error
    for path in (real, weights):
        if not path.exists():
            raise ScoreError(f"{path} does not exist: --fid is a folder of real images, --inception a file of weights")
    if not RealImages(real, (1, 1)).files:
        raise ScoreError(f"{real} has no images ({', '.join(sorted(SUFFIXES))}): --fid is a folder of real ones")
    try:  # torch-fidelity unpickles anything, so nothing but tensors may be in the file
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ScoreError(f"{weights} is not a file of weights alone ({type(error).__name__})") from error
    side = Image.open(next(images.glob("*.png"))).size
    found = calculate_metrics(
        input1=str(images), input2=RealImages(real, side), fid=True, samples_find_deep=True, batch_size=BATCH,
        feature_extractor_weights_path=str(weights), cuda=torch.cuda.is_available(), cache=False, verbose=False,
    )  # fmt: skip
    return float(found["frechet_inception_distance"])


@torch.inference_mode()
def clip_score(files: list[Path], prompts: list[str], folder: Path) -> float:
    """Mean of 100 · cosine between each image and its prompt, at least 0, by a CLIP model of transformers.

    CLIPScore as torchmetrics defines it (Hessel et al. 2021, arXiv 2104.08718, without its factor 2.5).

    Raises:
        ScoreError: the folder has no CLIP model, or a damaged one.
    """
    if not (folder / "config.json").exists():
        raise ScoreError(f"{folder} has no config.json: --clip is the folder of a CLIP model in transformers' layout")
    from transformers import CLIPModel, CLIPProcessor

    try:
        model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    except SafetensorError as error:
        raise ScoreError(f"the CLIP model in {folder} is damaged ({error}); download the folder again") from error
    total = 0.0
    for start in tqdm(range(0, len(files), BATCH), desc="CLIP score", unit="batch"):
        images = [Image.open(file).convert("RGB") for file in files[start : start + BATCH]]
        given = processor(
            text=prompts[start : start + BATCH], images=images, return_tensors="pt", padding=True, truncation=True
        )
        out = model(**given)
        cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)  # (B,)
        total += float((100 * cosine).clamp_min(0).sum())
    return total / len(files)


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScoreError(f"{file} is no JSON ({error}): give the evaluation.json of `fluid eval`") from error
    if not isinstance(record, dict):
        raise ScoreError(f"{file} holds no object: give the evaluation.json of `fluid eval`")
    return record


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.evaluation.folder_scores", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("record", type=Path, help="evaluation.json of a folder of `fluid eval`")
    parser.add_argument("--fid", type=Path, metavar="FOLDER", help="real images")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="weights of torch-fidelity's Inception v3")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="CLIP model")
    args = parser.parse_args(argv)
    if (args.fid is None) != (args.inception is None):
        parser.error("--fid needs --inception, and --inception needs --fid")
    prompts = sys.stdin.read().removesuffix("\n").split("\n")
    images = args.record.parent / "images"
    files = sorted(images.glob("*.png"))
    scores: dict[str, Any] = {}
    try:
        record = _record(args.record)
        if len(files) != len(prompts):
            raise ScoreError(
                f"{images} has {len(files)} images, standard input {len(prompts)} prompts: give those of the images, "
                "one in each line"
            )
        if args.fid:
            scores["fid"] = round(frechet_distance(images, args.fid, args.inception), 4)
        if args.clip:
            scores["clip_score"] = round(clip_score(files, prompts, args.clip), 4)
    except (ScoreError, OSError, RuntimeError) as error:
        sys.exit(f"{error}")
    before = record.get("scores", {})
    kept = before if before.get("scored_images") == len(files) else {}  # one of other images is not comparable
    record["scores"] = kept | scores | {"scored_images": len(files)}
    partial = args.record.with_suffix(".partial")  # the folder could not be continued without its record
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(args.record)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
