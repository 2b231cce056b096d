"""Text states of every caption of a data set, encoded once: the frozen text encoder does not run in training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from fluid_kernels.transfers import send
from model.config import ConfigError
from model.networks.text_encoder import TextEncoder

# Probability of each wording of model/data/captions.py: name and style first, no style last.
WORDING_WEIGHTS = (0.4, 0.3, 0.2, 0.1)


class CaptionCache:
    """Text states (bfloat16) and masks of every wording of every image, and of the empty caption."""

    def __init__(self, states: Tensor, mask: Tensor, null_states: Tensor, null_mask: Tensor):
        self.states, self.mask = states, mask  # (P, V, L, E), (P, V, L): images × wordings
        self.null_states, self.null_mask = null_states, null_mask  # (1, L, E), (1, L)

    def to(self, device: torch.device) -> CaptionCache:
        """A copy on `device`, so that no step has to transfer its states."""
        return CaptionCache(*(t.to(device) for t in (self.states, self.mask, self.null_states, self.null_mask)))

    def sample(
        self, rows: Tensor, drop: float, generator: torch.Generator, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Choose a random wording of each image, or with probability `drop` the empty caption.

        Args:
            rows: (B,) positions of the images.
            part: of the B images, those whose states are wanted; choices do not depend on it.

        Returns:
            (B', L, E) float32 states and (B', L) mask of the part, on the cache's device.
        """
        weights = torch.tensor(WORDING_WEIGHTS[: self.states.shape[1]])
        wording = torch.multinomial(weights, len(rows), replacement=True, generator=generator)
        dropped = torch.rand(len(rows), generator=generator) < drop
        rows, wording, dropped = (send(t[part], self.states.device) for t in (rows, wording, dropped))
        states = torch.where(dropped[:, None, None], self.null_states, self.states[rows, wording].float())
        return states, torch.where(dropped[:, None], self.null_mask, self.mask[rows, wording])


def _identity(encoder: TextEncoder) -> str:
    """What decides an encoder's states: its settings, and the beginning of each of its tensors."""
    weighted = isinstance(encoder, nn.Module)  # then its weights count, not where they lie
    config = replace(encoder.config, name="") if weighted else encoder.config
    digest = hashlib.sha256(repr(config).encode())
    if isinstance(encoder, nn.Module):
        for name, value in encoder.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.flatten()[:64].float().tolist()}".encode())
    return digest.hexdigest()


def build_caption_cache(encoder: TextEncoder, wordings: Sequence[Sequence[str]], folder: Path) -> CaptionCache:
    """Encode all wordings of all images (the same number for each), or read them from `folder` if that was done before.

    Captions of about the same length are encoded together, so that little time goes into padding. L is the longest
    caption's number of tokens, not the encoder's maximum.

    Raises:
        ConfigError: the file that was written before is damaged.
    """
    captions = [caption for image in wordings for caption in image]
    key = hashlib.sha256("\n".join([_identity(encoder), *captions]).encode()).hexdigest()[:16]
    file = folder / f"text-{key}.safetensors"
    if not file.exists():
        null_states, null_mask = (t.cpu() for t in encoder.encode([""]))
        states = torch.zeros(len(captions), *null_states.shape[1:], dtype=torch.bfloat16)
        mask = torch.zeros(len(captions), null_mask.shape[1], dtype=torch.bool)
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
        for start in tqdm(range(0, len(order), 128), desc="captions", unit="batch"):
            rows = order[start : start + 128]
            part, part_mask = encoder.encode([captions[row] for row in rows], tight=True)
            states[rows, : part.shape[1]], mask[rows, : part.shape[1]] = part.bfloat16().cpu(), part_mask.cpu()
        length = int(mask.any(0).sum())
        tensors = {
            "states": states[:, :length].contiguous(),
            "mask": mask[:, :length].contiguous(),
            "null_states": null_states[:, :length].contiguous(),
            "null_mask": null_mask[:, :length].contiguous(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")  # a kill in the middle leaves no file that looks complete
        save_file(tensors, partial)
        partial.replace(file)
    shape = (len(wordings), -1)
    try:
        t = load_file(file)
        states, mask = t["states"].unflatten(0, shape), t["mask"].unflatten(0, shape)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{file} is damaged ({error}): remove it, and its captions are encoded again") from error
    return CaptionCache(states, mask, t["null_states"], t["null_mask"])
