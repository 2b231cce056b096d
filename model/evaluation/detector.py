"""Object detector for composed scenes: which things an image shows, where, in which colour and style.

A small CenterNet (arXiv 1904.07850): it predicts a heat map of object centres on a grid of 8 pixels and, at each
centre, the thing in its style and its colour. Thing and style are predicted jointly, because a style is a way to draw a
thing. It is trained on composed renders only (train_detector.py), never on generated images, so it cannot learn to
overlook generator flaws. Its own error rate is measured with every score (evaluate_scenes.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.data.scenes.things import COLOURS
from model.networks.tokenizer import Residual

STRIDE = 8  # pixels per cell of the grid
WIDTHS = (24, 48, 96, 128)  # channels at strides 2, 4, 8, and at 16 and above
PEAK_RADIUS = 2  # cells: centres of the smallest things lie at least 48 pixels = 6 cells apart in one direction
THRESHOLD = 0.5  # probability above which a peak of the heat map is a detection
WEIGHTS, ABOUT = "detector.safetensors", "detector.json"  # files of a saved detector


class DetectorError(RuntimeError):
    """The detector cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected thing: its name, the names of its most likely colour and style, its centre (x, y) in pixels."""

    thing: str
    colour: str
    style: str
    centre: tuple[float, float]


class Logits(NamedTuple):
    """Outputs of the detector on a grid of (G, G) cells, for T things, 7 colours and S styles."""

    centre: Tensor  # (B, G, G)
    drawing: Tensor  # (B, T, S, G, G): the thing in the style
    colour: Tensor  # (B, 7, G, G)

    @property
    def thing(self) -> Tensor:
        """(B, T, G, G): the thing in any style."""
        return self.drawing.logsumexp(2)


class Detector(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> Logits."""

    def __init__(self, things: tuple[str, ...], styles: tuple[str, ...]):
        super().__init__()
        self.things, self.styles = things, styles
        a, b, c, d = WIDTHS
        self.fine = nn.Sequential(
            nn.Conv2d(3, a, 3, 2, 1), nn.SiLU(), nn.Conv2d(a, b, 3, 2, 1), nn.SiLU(), nn.Conv2d(b, c, 3, 2, 1),
            Residual(c),
        )  # fmt: skip
        self.down1 = nn.Sequential(nn.Conv2d(c, d, 3, 2, 1), Residual(d))  # stride 16
        self.down2 = nn.Sequential(nn.Conv2d(d, d, 3, 2, 1), Residual(d))  # stride 32: sees a thing of 128 px whole
        self.lift2, self.lift1 = nn.Conv2d(d, d, 1), nn.Conv2d(d, c, 1)
        self.out = nn.Sequential(Residual(c), nn.GroupNorm(8, c), nn.SiLU())
        self.heads = nn.Conv2d(c, 1 + len(COLOURS) + len(things) * len(styles), 1)
        nn.init.constant_(self.heads.bias[0], -4.0)  # type: ignore[index]  # centres are rare

    def forward(self, pixels: Tensor) -> Logits:
        fine = self.fine(pixels)  # (B, c, G, G)
        middle = self.down1(fine)
        coarse = self.down2(middle)
        middle = middle + F.interpolate(self.lift2(coarse), scale_factor=2.0)
        joined = fine + F.interpolate(self.lift1(middle), scale_factor=2.0)
        out = self.heads(self.out(joined)).float()
        centre, colour, drawing = out.split([1, len(COLOURS), len(self.things) * len(self.styles)], dim=1)
        return Logits(centre[:, 0], drawing.unflatten(1, (len(self.things), len(self.styles))), colour)

    @torch.inference_mode()
    def detect(self, pixels: Tensor, batch: int = 64) -> list[list[Detection]]:
        """Detections in each of (N, 3, H, W) images: local maxima of the heat map above THRESHOLD."""
        return [detections for part in pixels.split(batch) for detections in self._detect(part)]

    def _detect(self, pixels: Tensor) -> list[list[Detection]]:
        logits = self(pixels)
        centre, things = logits.centre, logits.thing
        window = 2 * PEAK_RADIUS + 1
        peak = centre == F.max_pool2d(centre[:, None], window, 1, PEAK_RADIUS)[:, 0]
        peak &= centre.sigmoid() > THRESHOLD
        colours = tuple(COLOURS)
        out: list[list[Detection]] = [[] for _ in pixels]
        for b, y, x in peak.nonzero().tolist():
            thing, colour = int(things[b, :, y, x].argmax()), int(logits.colour[b, :, y, x].argmax())
            style = int(logits.drawing[b, thing, :, y, x].argmax())
            position = ((x + 0.5) * STRIDE, (y + 0.5) * STRIDE)
            out[b].append(Detection(self.things[thing], colours[colour], self.styles[style], position))
        return out


def save_detector(detector: Detector, folder: Path, about: dict[str, object]) -> None:
    """Write weights in float16, things and styles to `folder`, with `about` beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in detector.state_dict().items()}, folder / WEIGHTS)
    (folder / ABOUT).write_text(
        json.dumps({"things": detector.things, "styles": detector.styles, **about}) + "\n", encoding="utf-8"
    )


def load_detector(folder: Path) -> Detector:
    """Read what `save_detector` wrote.

    Raises:
        DetectorError: `folder` holds no detector, a damaged one, or one that does not tell styles.
    """
    if not (folder / ABOUT).exists():
        raise DetectorError(
            f"no detector in {folder}: run `python -m model.evaluation.train_detector --out {folder}` first"
        )
    remedy = "remove the folder and train another"
    try:
        about = dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
        if "styles" in about:
            detector = Detector(tuple(about["things"]), tuple(about["styles"]))
            detector.load_state_dict(load_file(folder / WEIGHTS))
            return detector.eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DetectorError(
            f"the detector in {folder} is damaged, or of an earlier version ({reason}): {remedy}"
        ) from error
    raise DetectorError(f"the detector in {folder} does not tell styles: {remedy}")
