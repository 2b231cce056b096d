"""Which things are in a picture, where, and in which colour: a small detector that judges drawings of scenes.

Trained on composed renders only (evaluation/train_detector.py), never on a drawing, so that it cannot learn to excuse a
generator's habits. It marks centres on a grid of 8 pixels, as CenterNet (arXiv 1904.07850) does, with the thing and,
for recoloured ones, the colour at each centre. How far to trust it is measured with every score
(scene_questions.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.data.scenes.things import COLOURS
from model.networks.tokenizer import Residual

STRIDE = 8
WIDTHS = (24, 48, 96, 128)  # at strides 2, 4, 8 and from 16 on
PEAK_RADIUS = 2  # cells: centres of the smallest things lie at least 48 pixels = 6 cells apart in one direction
THRESHOLD = 0.5


class CheckerError(RuntimeError):
    """The checker cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Found:
    """One detected thing: its name, its most likely colour name, its centre in pixels."""

    thing: str
    colour: str
    centre: tuple[float, float]


class Checker(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> centre logits (B, G, G), thing logits (B, T, G, G), colour logits (B, 7, G, G)."""

    def __init__(self, things: tuple[str, ...]):
        super().__init__()
        self.things = things
        a, b, c, d = WIDTHS
        self.fine = nn.Sequential(
            nn.Conv2d(3, a, 3, 2, 1), nn.SiLU(), nn.Conv2d(a, b, 3, 2, 1), nn.SiLU(), nn.Conv2d(b, c, 3, 2, 1),
            Residual(c),
        )  # fmt: skip
        self.down1 = nn.Sequential(nn.Conv2d(c, d, 3, 2, 1), Residual(d))  # stride 16
        self.down2 = nn.Sequential(nn.Conv2d(d, d, 3, 2, 1), Residual(d))  # stride 32: sees a thing of 128 px whole
        self.lift2, self.lift1 = nn.Conv2d(d, d, 1), nn.Conv2d(d, c, 1)
        self.out = nn.Sequential(Residual(c), nn.GroupNorm(8, c), nn.SiLU())
        self.heads = nn.Conv2d(c, 1 + len(things) + len(COLOURS), 1)
        nn.init.constant_(self.heads.bias[0], -4.0)  # type: ignore[index]  # centres are rare

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.fine(pixels)  # (B, c, G, G)
        middle = self.down1(fine)
        coarse = self.down2(middle)
        middle = middle + F.interpolate(self.lift2(coarse), scale_factor=2.0)
        joined = fine + F.interpolate(self.lift1(middle), scale_factor=2.0)
        out = self.heads(self.out(joined)).float()
        return out[:, 0], out[:, 1 : 1 + len(self.things)], out[:, 1 + len(self.things) :]

    @torch.inference_mode()
    def find(self, pixels: Tensor, batch: int = 64) -> list[list[Found]]:
        """What is in each of (B, 3, H, W) pictures: local maxima of the centre map above THRESHOLD."""
        return [found for part in pixels.split(batch) for found in self._find(part)]

    def _find(self, pixels: Tensor) -> list[list[Found]]:
        centre, thing, colour = self(pixels)
        window = 2 * PEAK_RADIUS + 1
        peak = centre == F.max_pool2d(centre[:, None], window, 1, PEAK_RADIUS)[:, 0]
        peak &= centre.sigmoid() > THRESHOLD
        names, colours = list(self.things), list(COLOURS)
        out: list[list[Found]] = [[] for _ in pixels]
        for b, y, x in peak.nonzero().tolist():
            place = ((x + 0.5) * STRIDE, (y + 0.5) * STRIDE)
            which = names[int(thing[b, :, y, x].argmax())]
            out[b].append(Found(which, colours[int(colour[b, :, y, x].argmax())], place))
        return out


def save_checker(checker: Checker, folder: Path, about: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in checker.state_dict().items()}, folder / "checker.safetensors")
    (folder / "checker.json").write_text(json.dumps({"things": checker.things, **about}) + "\n", encoding="utf-8")


def load_checker(folder: Path) -> Checker:
    """What `save_checker` wrote.

    Raises:
        CheckerError: nothing is there.
    """
    if not (folder / "checker.json").exists():
        raise CheckerError(
            f"no checker in {folder}: run `python -m model.evaluation.train_detector --out {folder}` first"
        )
    about = json.loads((folder / "checker.json").read_text(encoding="utf-8"))
    checker = Checker(tuple(about["things"]))
    checker.load_state_dict(load_file(folder / "checker.safetensors"))
    return checker.eval()
