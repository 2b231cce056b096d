"""Validation loss of a checkpoint on a data set: `python -m model.evaluation --loss CHECKPOINT --data FOLDER`.

The loss is the one that the model was trained with: of eps, v or flow, the mean square error per channel (eps adds its
variance term); of discrete tokens, the cross-entropy in nats per token. So losses of two heads cannot be compared, nor
those over the tokens of two tokenizers. Masks, timesteps, noise and scenes are functions of the seed: two runs on one
machine agree to the bit. The reconstruction of the same images is measured too, with the use of a codebook.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from model.checkpoint import Checkpoint, load_checkpoint
from model.config import ConfigError, NovaConfig
from model.data.dataset import SPLITS, Dataset
from model.data.fixed_sample import load_images
from model.data.scenes.dataset import is_scene_folder
from model.diffusion import Schedule, make_schedule
from model.discrete_config import MeissonicConfig
from model.inference.load import find_checkpoint
from model.inference.orders import training_masks
from model.inference.prompts import build_conditioner
from model.networks.condition import Condition
from model.networks.tokenizer import decode_tokens, encode_tokens, psnr, to_pixels
from model.networks.transformer import count_parameters
from model.networks.vq_tokenizer import utilisation
from model.training.loop import diffusion_draws
from model.training.trainer import step_generator

BATCH = 32  # images; a constant, because masks are stratified over it
DRAWS = 8  # diffusion losses per masked token
SAMPLE_SEED = 20261130  # of scenes: a seed that no training has


@dataclass
class Totals:
    """Sums over the images of one split."""

    loss: float = 0.0  # of all predicted tokens
    tokens: int = 0  # predicted
    psnr: float = 0.0
    images: int = 0


class LossMeter:
    """The loss of one checkpoint, batch by batch."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, seed: int):
        self.checkpoint, self.device, self.seed = checkpoint, device, seed
        self.model, self.config = checkpoint.model, checkpoint.config
        self.conditioner = build_conditioner(self.model, checkpoint.about, checkpoint.folder)
        self.schedule: Schedule = make_schedule().to(device)
        self.codes: list[Tensor] = []  # of all images so far, if tokens are discrete

    @torch.inference_mode()
    def add(self, images: np.ndarray, captions: list[str], batch: int, totals: Totals) -> None:
        """Add the losses of one batch, whose number `batch` chooses its masks, timesteps and noise.

        Args:
            images: (B, H, W, 3 or 4) uint8, of any size. captions: B of them.

        Raises:
            PromptError: the model cannot be conditioned on a caption.
        """
        config, rng = self.config, step_generator(self.seed, batch)
        pixels = self._fitted(to_pixels(torch.from_numpy(images))).to(self.device)
        tokens = encode_tokens(self.checkpoint.tokenizer, pixels)  # (B, N, C) or (B, N)
        copies = decode_tokens(self.checkpoint.tokenizer, tokens)[:, : pixels.shape[1]]
        totals.psnr += float(psnr(copies, pixels[:, : copies.shape[1]]).sum())
        if config.categorical:
            self.codes.append(tokens.cpu())
        conditions = [self.conditioner(caption) for caption in captions]
        longest = max(condition.length for condition in conditions)
        condition = type(conditions[0]).stack([condition.padded(longest) for condition in conditions])
        masked = self._predicted(len(tokens), rng)
        index, noise = diffusion_draws(config, int(masked.sum()), DRAWS, rng, self.device)
        loss = self._loss(tokens, masked.to(self.device), condition, index, noise)
        totals.loss += float(loss) * int(masked.sum())
        totals.tokens += int(masked.sum())
        totals.images += len(images)

    def _loss(
        self, tokens: Tensor, masked: Tensor, condition: Condition, index: Tensor | None, noise: Tensor | None
    ) -> Tensor:
        return self.model.loss(self.schedule, tokens, masked, condition, index, noise)

    def _predicted(self, batch: int, rng: torch.Generator) -> Tensor:
        """(B, N) bool: the tokens that are predicted. In raster order all are, each from those before it."""
        if self.config.causal:
            return torch.ones(batch, self.config.tokens, dtype=torch.bool)
        return training_masks(batch, self.config.tokens, rng)

    def _fitted(self, pixels: Tensor) -> Tensor:
        """The images at the model's size, with as many channels as its tokenizer reads."""
        channels = self.config.image_channels
        size = self.config.image_size
        if pixels.shape[2:] != (size, size):
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        return pixels[:, :channels]  # a tokenizer with alpha takes images without it as opaque


def validation_loss(
    checkpoint: Checkpoint, splits: dict[str, Dataset], images: int, device: torch.device, seed: int = 0
) -> dict[str, Any]:
    """The report: loss, predicted tokens and reconstruction of up to `images` images of each split, evenly spaced.

    `splits` maps the name of a split to the images of that split alone. The first one's loss is also reported as
    "loss".

    Raises:
        ConfigError: the head is a mean flow, which never trains steps of no length, those of the other heads' loss; or
            the family's loss is not the one that is computed here.
        PromptError: the model cannot be conditioned on a caption of the data.
    """
    if checkpoint.config.mean_flow:
        raise ConfigError(
            f"{checkpoint.folder} has a mean-flow head, whose loss does not compare with that of other heads: measure "
            "the checkpoint that it was distilled from, and its own error by `python -m model.training.few_steps`"
        )
    if isinstance(checkpoint.config, NovaConfig | MeissonicConfig):
        raise ConfigError(
            f"{checkpoint.folder} is of family {checkpoint.config.family!r}, whose training loss is not restated here: "
            "its chain of noise, or its time that follows from the masks, is another. Measure a checkpoint of family "
            "fluid, mar, amused, janus or llamagen"
        )
    meter, config = LossMeter(checkpoint, device, seed), checkpoint.config
    report: dict[str, Any] = {
        "system": config.system,
        "loss_of": "cross-entropy, nats per token" if config.categorical else config.prediction,
        "parameters": count_parameters(checkpoint.model),
    }
    for split, dataset in splits.items():
        rows = np.unique(np.linspace(0, len(dataset.items) - 1, min(images, len(dataset.items))).astype(int))
        totals = Totals()
        for start in tqdm(range(0, len(rows), BATCH), desc=f"loss, {split}", unit="batch"):
            chosen = rows[start : start + BATCH]
            captions = [dataset.items[row].captions[0] for row in chosen]
            meter.add(dataset.images[chosen], captions, start // BATCH, totals)
        report |= {
            f"loss_{split}": round(totals.loss / totals.tokens, 6),
            f"tokens_{split}": totals.tokens,
            f"images_{split}": totals.images,
            f"psnr_{split}_db": round(totals.psnr / totals.images, 3),
        }
    if meter.codes:
        used, perplexity = utilisation(torch.cat(meter.codes), config.codebook)
        report |= {"codes": config.codebook, "codes_used": round(used, 4), "code_perplexity": round(perplexity, 1)}
    return {"loss": report[f"loss_{next(iter(splits))}"], **report, "seed": seed}


def open_splits(
    data: Path, images: int, things: int | None, snap: int, about: Mapping[str, Any] | None = None
) -> dict[str, Dataset]:
    """The data set by splits, those that tell most about generalisation first.

    Scenes have "seen", new scenes of trained combinations, and "unseen", held-out combinations, in one mix of
    categories; single things of an atlas only where some of them are held out. Packed images have their own splits,
    held-out ones first.

    Args:
        things: the first things of scenes that may appear; None: those that the checkpoint knows.
        about: the checkpoint's metadata, which names its words and styles.

    Raises:
        DataError: the folder holds no data.
    """
    dataset = load_images(data, things, snap, train=images, unseen=images, about=about or {}, seed=SAMPLE_SEED)
    if is_scene_folder(data):
        return {name: _only(dataset, split) for name, split in (("seen", "train"), ("unseen", "unseen"))}
    order = ("heldout", "unseen", "train", "tokenizer")
    assert set(order) == set(SPLITS)
    return {split: _only(dataset, split) for split in order if len(dataset.indices(split))}


def _only(dataset: Dataset, split: str) -> Dataset:
    rows = dataset.indices(split)
    return Dataset(dataset.images[rows], [dataset.items[row] for row in rows], dataset.about)


def run_loss(
    name: str, data: Path, images: int, things: int | None, snap: int, seed: int, out: Path
) -> dict[str, Any]:  # fmt: skip
    """Measure, write loss.json to `out`, and print the report; its last line is JSON.

    Raises:
        CheckpointError, ConfigError, DataError, PromptError: checkpoint or data cannot be used, or not together.
    """
    if things and not is_scene_folder(data):
        raise ConfigError(f"--things {things} is only for data of scenes, which {data} does not hold: leave it out")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = load_checkpoint(find_checkpoint(name), device)
    splits = open_splits(data, images, things, snap, checkpoint.about)
    report = validation_loss(checkpoint, splits, images, device, seed)
    report |= {"checkpoint": Path(name).name, "checkpoint_sha256": checkpoint.sha256, "data": str(data)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "loss.json").write_text(json.dumps(report, indent=1) + "\n")
    for key, value in report.items():
        print(f"{key:24s} {value}")
    print(json.dumps(report))
    return report
