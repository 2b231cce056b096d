"""Composes scenes on a device, as `compose.render_with_alpha` does on the CPU, from tables that it keeps there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.data.scenes.bank import SceneBank
from model.data.scenes.compose import SIZE, side_of
from model.data.scenes.things import BACKGROUNDS, TRANSPARENT
from model.training.auxiliary.layout_loss import classes_of, tokens_within
from model.training.composer.layouts import all_layouts

Key = tuple[str, str, str, int]  # thing, style, colour, pixels: what `Sprites.scaled` takes
NOTHING = SIZE  # corner of a thing that is not there


@dataclass(frozen=True)
class Tables:
    """What composes the scenes of a bank; T is the most things of a row, K the number of different cut-outs.

    Attributes:
        pixels: (Q,) int32, every cut-out's pixels in reading order, red in the lowest byte, alpha in the highest.
        offsets, sides: (K,) place of a cut-out in `pixels`, and pixels along each of its sides.
        sprites: (P, T) cut-outs of a row's things. classes: (P, T + 1, 2) thing and colour, 0 first: the background.
        grounds: (P,) row of `colours` (G, 3); the last, a white one, is transparent.
        kinds: (P,) kind of a row's layouts. lasts: (P,) the last layout of that kind.
        edges: (Λ,) float64, kind + cumulative probability of a layout among those of its kind, in order.
        corners: (Λ, T, 2) of its cut-outs, x and y. covers: (Λ, N) number of the thing that covers a token, from 1.
    """

    pixels: Tensor
    offsets: Tensor
    sides: Tensor
    sprites: Tensor
    classes: Tensor
    grounds: Tensor
    colours: Tensor
    kinds: Tensor
    lasts: Tensor
    edges: Tensor
    corners: Tensor
    covers: Tensor

    def to(self, device: torch.device) -> Tables:
        return Tables(**{name: value.to(device) for name, value in vars(self).items()})


class Composer:
    """Draws a layout for each row and pastes its things, all rows at once."""

    def __init__(self, tables: Tables, device: torch.device, fuse: bool = False):
        """fuse: paste by one kernel (torch.compile)."""
        self.tables = tables.to(device)
        self._paste: Callable[..., Tensor] = torch.compile(paste, dynamic=False) if fuse else paste

    @torch.no_grad()
    def compose(self, rows: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
        """The scenes of B rows.

        Args:
            rows: (B,) of the bank. chances: (B,) float64 in [0, 1), which choose the layouts.
        Returns:
            (B, SIZE, SIZE, 4) uint8 as `render_with_alpha` has them, and (B, N, 2) as `cell_classes` has them.
        """
        t = self.tables
        layout = torch.searchsorted(t.edges, t.kinds[rows] + chances, right=True)  # (B,)
        layout = torch.minimum(layout, t.lasts[rows])  # rounding may lead to the next kind
        sprites, covers = t.sprites[rows], t.covers[layout].long()  # (B, T), (B, N)
        cells = t.classes[rows].gather(1, covers[..., None].expand(-1, -1, 2))
        ground = t.grounds[rows]
        images = self._paste(
            t.pixels, t.offsets[sprites], t.sides[sprites], t.corners[layout], t.colours[ground],
            ground == len(t.colours) - 1,
        )  # fmt: skip
        return images, cells


def paste(
    pixels: Tensor, offsets: Tensor, sides: Tensor, corners: Tensor, colours: Tensor, transparent: Tensor
) -> Tensor:
    """Paste T cut-outs, one above the other, on B pages.

    Args:
        pixels: as `Tables` has them. offsets, sides: (B, T) of the cut-outs. corners: (B, T, 2).
        colours: (B, 3) of the pages. transparent: (B,) bool, pages whose alpha is that of the cut-outs.
    Returns:
        (B, SIZE, SIZE, 4) uint8
    """
    along = torch.arange(SIZE, dtype=torch.int32, device=pixels.device)
    page = [colours[:, band, None, None].expand(-1, SIZE, SIZE) for band in range(3)]  # (B, SIZE, SIZE) int32 each
    cover = torch.where(transparent, 0, 255).int()[:, None, None].expand(-1, SIZE, SIZE)
    for thing in range(offsets.shape[1]):
        side = sides[:, thing, None]  # (B, 1)
        x, y = (along - corners[:, thing, axis, None] for axis in (0, 1))  # (B, SIZE) in the cut-out
        inside = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None, :]
        place = offsets[:, thing, None, None] + (y * side)[:, :, None] + x[:, None, :]
        found = torch.where(inside, pixels[torch.where(inside, place, 0)], 0)  # (B, SIZE, SIZE)
        alpha = (found >> 24) & 255
        page = [blend(under, (found >> (8 * band)) & 255, alpha) for band, under in enumerate(page)]
        cover = torch.maximum(cover, alpha)
    return torch.stack([*page, cover], -1).to(torch.uint8)


def blend(under: Tensor, over: Tensor, alpha: Tensor) -> Tensor:
    """(under · (255 - alpha) + over · alpha) / 255, rounded as Pillow rounds it; all of them int32, 0 to 255."""
    total = under * (255 - alpha) + over * alpha + 128
    return ((total >> 8) + total) >> 8


def build_tables(bank: SceneBank, grid: int) -> Tables:
    """The tables of a bank's rows, for images of grid² tokens."""
    keys, plan = plan_rows(bank)
    scaled = [
        np.asarray(bank.sprites.scaled(*key)) for key in tqdm(keys, desc="cut-outs", unit="cut-out", disable=None)
    ]
    return join_tables(scaled, plan, grid, bank.snap)


def plan_rows(bank: SceneBank) -> tuple[list[Key], dict[str, Any]]:
    """Which cut-outs a bank's rows need, and arrays (P, …) of what each shows; without any pixel."""
    most = max(len(facts.objects) for facts in bank.facts)
    numbers: dict[Key, int] = {}
    kinds: dict[tuple[int, int, str], int] = {}
    sprites = np.zeros((len(bank.facts), most), np.int64)
    classes = np.zeros((len(bank.facts), most + 1, 2), np.int64)
    grounds, kind = np.zeros(len(bank.facts), np.int64), np.zeros(len(bank.facts), np.int64)
    names = [*BACKGROUNDS, TRANSPARENT]
    for row, facts in enumerate(bank.facts):
        side = side_of(facts)
        for thing, group in enumerate(facts.objects):
            key = (group.thing, facts.style, group.colour, side - 2 * (side // 16))
            sprites[row, thing] = numbers.setdefault(key, len(numbers))
            classes[row, thing + 1] = classes_of(group.thing, group.colour)
        grounds[row] = names.index(facts.background)
        kind[row] = kinds.setdefault((len(facts.objects), side, facts.relation), len(kinds))
    plan = {"sprites": sprites, "classes": classes, "grounds": grounds, "kinds": kind, "layouts": list(kinds)}
    return list(numbers), plan


def join_tables(scaled: list[np.ndarray], plan: dict[str, Any], grid: int, snap: int) -> Tables:
    """The tables of `plan_rows`' plan and its cut-outs, (side, side, 4) uint8 each."""
    sides = np.array([len(sprite) for sprite in scaled])
    flat = np.concatenate([np.ascontiguousarray(sprite).view("<i4").ravel() for sprite in scaled])
    most = plan["sprites"].shape[1]
    edges, corners, covers = [], [], []
    for kind, (things, side, relation) in enumerate(plan["layouts"]):
        layouts = all_layouts(things, side, snap, relation)
        edges.append(kind + np.minimum(np.cumsum(layouts.chances), 1.0))
        inner = np.full((len(layouts.chances), most, 2), NOTHING)
        inner[:, :things] = layouts.corners + side // 16
        corners.append(inner)
        covers.append(_covers(layouts.corners, side, grid))
    lasts = np.cumsum([len(part) for part in edges]) - 1
    white = [*BACKGROUNDS.values(), BACKGROUNDS["white"]]
    return Tables(
        pixels=torch.from_numpy(flat), offsets=_int32(np.cumsum(sides**2) - sides**2), sides=_int32(sides),
        sprites=torch.from_numpy(plan["sprites"]), classes=torch.from_numpy(plan["classes"]),
        grounds=torch.from_numpy(plan["grounds"]), colours=_int32(np.array(white)),
        kinds=torch.from_numpy(plan["kinds"]), lasts=torch.from_numpy(lasts[plan["kinds"]]),
        edges=torch.from_numpy(np.concatenate(edges)),
        corners=_int32(np.concatenate(corners)), covers=torch.from_numpy(np.concatenate(covers)),
    )  # fmt: skip


def _int32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))


def _covers(corners: np.ndarray, side: int, grid: int) -> np.ndarray:
    """(L, n, 2) corners -> (L, N) uint8: number of the thing on each token's centre, from 1, or 0."""
    within = tokens_within(corners, side, grid)  # (L, n, 2, g): along x, along y
    both = within[:, :, 1, :, None] & within[:, :, 0, None, :]  # (L, n, g, g)
    numbers = np.arange(1, corners.shape[1] + 1, dtype=np.uint8)[:, None, None]
    found: np.ndarray = (both * numbers).max(1).reshape(len(corners), -1)
    return found
