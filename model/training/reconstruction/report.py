"""What is measured of a trained tokenizer: PSNR, visible token borders, use of the codebook; and a sheet to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model.data.contact_sheet import contact_sheet
from model.data.dataset import Dataset
from model.networks.tokenizer import PcaSkipTokenizer, psnr, reconstruct, seam_ratio, to_pixels, to_uint8
from model.networks.vq_tokenizer import VqTokenizer, utilisation
from model.training.trainer import step_generator

MEASURED = 256  # images of each split in the report, at most
CODES_OF = 4096  # images whose codes are counted, at most: enough that an even use would meet each code many times
SEAM_NOISE = (0.0, 0.2)  # standard deviations of the latents' noise at which seams are measured; latents have 1


def measure(tokenizer: PcaSkipTokenizer | VqTokenizer, dataset: Dataset) -> dict[str, float]:
    """Mean reconstruction PSNR, in dB, and seam ratios with noise on the latents, of the splits that the data has.

    Of a discrete tokenizer, whose tokens have no noise: the share of the codebook that the trained images use, and the
    perplexity of that use.
    """
    report = {}
    for split in ("train", "unseen"):
        if not len(rows := dataset.indices(split)[:MEASURED]):
            continue
        originals = to_pixels(torch.from_numpy(dataset.images[rows]))
        copies = reconstruct(tokenizer, originals)
        report[f"psnr_{split}_db"] = round(psnr(copies, originals).mean().item(), 2)
        stride = tokenizer.config.stride
        if isinstance(tokenizer, VqTokenizer):
            report[f"seam_{split}"] = round(seam_ratio(copies, originals, stride), 3)
            continue
        rng, shape = step_generator(0, 0), ((originals.shape[2] // stride) ** 2, tokenizer.config.channels)
        for level in SEAM_NOISE:
            noise = level * torch.randn(len(rows), *shape, generator=rng)
            copies = reconstruct(tokenizer, originals, noise=noise)
            report[f"seam_{split}_noise_{level:g}"] = round(seam_ratio(copies, originals, stride), 3)
    if isinstance(tokenizer, VqTokenizer):
        report |= code_use(tokenizer, torch.from_numpy(dataset.images[dataset.indices("train")[:CODES_OF]]))
    return report


@torch.no_grad()
def code_use(tokenizer: VqTokenizer, images: torch.Tensor) -> dict[str, float]:
    """Use of the codebook by (B, H, W, 3 or 4) uint8 images."""
    codes = torch.cat([tokenizer.encode(to_pixels(part)) for part in images.split(128)])
    share, perplexity = utilisation(codes, tokenizer.config.codebook)
    return {"codes": tokenizer.config.codebook, "codes_used": round(share, 4), "code_perplexity": round(perplexity, 1)}


def save_sheet(tokenizer: PcaSkipTokenizer | VqTokenizer, dataset: Dataset, file: Path) -> None:
    """Write a sheet of up to 16 images, unseen ones if there are any, each before its reconstruction."""
    rows = dataset.indices("unseen")
    rows = rows[np.linspace(0, len(rows) - 1, 16).astype(int)] if len(rows) else dataset.indices("train")[:16]
    originals = torch.from_numpy(dataset.images[rows])
    copies = to_uint8(reconstruct(tokenizer, to_pixels(originals)))
    pairs = [image[..., :3].numpy() for pair in zip(originals, copies, strict=True) for image in pair]
    contact_sheet(pairs, columns=8, scale=2).save(file)
