"""Encode your own images with captions for training, once: `make data SOURCE=photos TOKENIZER=sd-vae`.

    fluid import sd-vae-ft-mse sd-vae
    python -m model.training.latents.build photos --tokenizer sd-vae --size 256 --out data/photos
    python -m model.training --recipe model/recipes/emoji-64.toml --preset 166M --data data/photos --tokenizer sd-vae

The source is a folder of images with captions, or tar files of webdataset (model/training/latents/sources.py). Images
are cut to their centre square. What cannot be read is skipped and listed. A run that was interrupted begins again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.contact_sheet import contact_sheet
from model.data.interrupts import interruptible
from model.data.sources import DataError
from model.networks.factory import AnyTokenizer
from model.networks.tokenizer import decode_tokens, encode_tokens, to_pixels, to_uint8
from model.networks.tokenizer_folder import digest
from model.training.command.flags import whole_number
from model.training.latents.sources import Captioned, captioned_images, square
from model.training.latents.store import ABOUT, CAPTIONS, FORMAT, LATENTS, LatentCache
from model.training.reconstruction.load import find_tokenizer

BATCH = 16
SKIPPED, SHEET = "skipped.txt", "sheet.png"
SHOWN = 16  # images on the sheet


def build(source: Path, tokenizer: AnyTokenizer, size: int, out: Path, limit: int | None = None) -> dict[str, object]:
    """Encode the images and write the folder, which appears once it is complete. Returns its `about`.

    Args:
        size: side of the square images, pixels.
        limit: encode only the first so many.

    Raises:
        DataError: there is nothing to encode, a file cannot be read, or `out` exists.
    """
    if out.exists():
        raise DataError(f"{out} exists; remove it, or choose another --out")
    if size % tokenizer.config.stride:
        raise DataError(f"--size {size} is not a multiple of the tokenizer's stride, {tokenizer.config.stride}")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        about = _encode(source, tokenizer, size, part, limit)
        _save_sheet(tokenizer, part)
        part.chmod(0o755)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return about


def _encode(source: Path, tokenizer: AnyTokenizer, size: int, part: Path, limit: int | None) -> dict[str, object]:
    total = min(sum(1 for _ in captioned_images(source)), limit or sys.maxsize)
    if not total:
        raise DataError(
            f"{source} has no image with a caption: photo.jpg needs photo.txt, or metadata.jsonl names both"
        )
    skipped: list[str] = []
    count = 0
    with (part / "rows.bin").open("wb") as rows, (part / CAPTIONS).open("w", encoding="utf-8") as captions:
        images = _squares(islice(captioned_images(source), limit), size, skipped)
        with tqdm(total=total, desc=f"encode {source.name}", unit="image") as bar:
            while group := list(islice(images, BATCH)):
                tokens = _tokens(tokenizer, np.stack([pixels for pixels, _ in group]))
                rows.write(tokens.tobytes())
                captions.writelines(json.dumps({"caption": caption}, ensure_ascii=False) + "\n" for _, caption in group)
                count += len(group)
                bar.update(len(group))
    if not count:
        raise DataError(f"none of the {total} images of {source} can be read; the first: {skipped[0]}")
    packed = np.lib.format.open_memmap(part / LATENTS, mode="w+", dtype=tokens.dtype, shape=(count, *tokens.shape[1:]))
    flat = np.memmap(part / "rows.bin", dtype=tokens.dtype, mode="r").reshape(packed.shape)
    for start in range(0, count, 1024):
        packed[start : start + 1024] = flat[start : start + 1024]
    packed.flush()
    del flat
    (part / "rows.bin").unlink()
    if skipped:
        (part / SKIPPED).write_text("\n".join(skipped) + "\n", encoding="utf-8")
    about: dict[str, object] = {
        "format": FORMAT, "images": count, "skipped": len(skipped), "size": size, "source": source.name,
        "tokenizer": asdict(tokenizer.config), "tokenizer_sha256": digest(tokenizer),
    }  # fmt: skip
    (part / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _squares(images: Iterator[Captioned], size: int, skipped: list[str]) -> Iterator[tuple[np.ndarray, str]]:
    """Yield (size, size, 3) uint8 and caption of every image that can be read; names of the others go to `skipped`."""
    for image in images:
        try:
            yield np.asarray(square(image.read(), size)), image.caption
        except (OSError, ValueError) as error:
            skipped.append(f"{image.name}: {error}")


@torch.no_grad()
def _tokens(tokenizer: AnyTokenizer, pixels: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, N, C) float16, or (B, N) int32."""
    device = next(tokenizer.parameters()).device
    tokens = encode_tokens(tokenizer, to_pixels(torch.from_numpy(pixels)).to(device)).cpu()
    return (tokens.half() if tokens.is_floating_point() else tokens.int()).numpy()


@torch.no_grad()
def _save_sheet(tokenizer: AnyTokenizer, part: Path) -> None:
    """Write a sheet to check captions and tokenizer by eye: evenly spaced images, decoded from their tokens."""
    cache, device = LatentCache(part), next(tokenizer.parameters()).device
    rows = np.unique(np.linspace(0, len(cache.captions) - 1, min(SHOWN, len(cache.captions))).astype(int))
    images = []
    for row in rows:  # one by one: an image may have a thousand pixels a side
        tokens = torch.from_numpy(cache.latents[[row]]).to(device)
        pixels = decode_tokens(tokenizer, tokens.float() if tokens.is_floating_point() else tokens.long())
        images.append(to_uint8(pixels[:, :3])[0].cpu().numpy())
    contact_sheet(images, [" ".join(cache.captions[row].split()) for row in rows], columns=4).save(part / SHEET)


@interruptible("the same command starts over")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.latents.build", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", type=Path, help="folder of images with captions, .tar, or folder of .tar files")
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer (`fluid import`) or of a checkpoint")
    parser.add_argument("--size", type=whole_number(1), default=256,
                        help="side of the square images, pixels (%(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument("--limit", type=whole_number(1), help="encode only the first so many")
    args = parser.parse_args(argv)
    try:
        tokenizer = find_tokenizer(Path(args.tokenizer))
        tokenizer.to("cuda" if torch.cuda.is_available() else "cpu")
        about = build(args.source, tokenizer, args.size, args.out, args.limit)
    except (DataError, ConfigError, CheckpointError) as error:
        sys.exit(str(error))
    skipped = f", {about['skipped']} skipped ({args.out / SKIPPED})" if about["skipped"] else ""
    print(f"{about['images']} images in {args.out}{skipped}; look at {args.out / SHEET}")


if __name__ == "__main__":
    main()
