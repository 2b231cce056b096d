"""Does an image show the prompted thing? `python -m model.evaluation --suite breadth` asks among a thousand others.

R-precision@1: an image is correct when, among the real cut-outs of CANDIDATES things, the nearest in feature space
(model/evaluation/features.py) is the prompted one. The others are drawn in the prompted style as far as it has them, so
style does not give the thing away. Things are asked that training shows alone, in two styles or more; held-out pairs
are things in a style that training never shows. The things of scenes, which the breadth leaves to the scenes, are among
the candidates only. The report also gives
  - the score of the tokenizer's reconstructions of the real images: the ceiling that tokenizer and features allow;
  - the seam ratio of the generated images (model/networks/tokenizer.py): 1 where token borders do not show.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.config import ConfigError
from model.data.atlas.atlas_bank import names_of
from model.data.atlas.store import AtlasSprites, Entry, in_styles
from model.data.atlas.wording import entry_prompt
from model.data.contact_sheet import contact_sheet
from model.data.scenes.compose import SIZE, arrange, render
from model.data.scenes.facts import SINGLE, Facts, Group
from model.data.scenes.things import THINGS
from model.data.sources import DataError
from model.evaluation.features import FEATURES_NAME, Features
from model.evaluation.generation import check_size, generate_images
from model.inference.requests import Sampling
from model.inference.serving import ServingEngine
from model.networks.tokenizer import reconstruct, seam_ratio, to_pixels, to_uint8

CANDIDATES = 1000  # real cut-outs among which the nearest is sought
SEED = 20251128
INK = "black"  # of one-colour cut-outs, in prompts and in real images


@dataclass(frozen=True)
class BreadthBenchmark:
    """Cut-outs of things that several styles draw, their renders' features, and those that are asked for.

    Attributes:
        entries: one for each thing and style.
        features: (E, F) unit vectors of the entries' renders.
        trained, heldout: positions in `entries` of the prompts.
    """

    atlas: AtlasSprites
    entries: list[Entry]
    features: Tensor
    trained: list[int]
    heldout: list[int]

    @classmethod
    def load(
        cls, data: Path, things: int, styles: Sequence[str] = (), composed: Sequence[str] = ()
    ) -> BreadthBenchmark:
        """Read the atlas, choose at most `things` trained things, and extract the features of all candidates.

        Args:
            styles: `breadth_styles` of the training; (): all.
            composed: things of scenes, which are not asked for.

        Raises:
            DataError: `data` holds no atlas, or no things in these styles.
        """
        atlas = AtlasSprites.load(data)
        known = in_styles(atlas.entries, styles)
        entries = distinct([entry for entry in known if entry.styles > 1 and not entry.sentence])
        if not entries:
            wanted = f"the styles {', '.join(styles)}" if styles else "styles"
            raise DataError(f"{data} has no single things that two of {wanted} draw: give the --data of the training")
        trained, heldout = choose(entries, things, names_of(composed))
        return cls(atlas, entries, render_features(entries, atlas), trained, heldout)

    def images(self, positions: Sequence[int]) -> np.ndarray:
        """Renders of these entries, (P, SIZE, SIZE, 3) uint8."""
        return render_entries([self.entries[i] for i in positions], self.atlas)

    def hits(self, features: Tensor, positions: Sequence[int]) -> np.ndarray:
        """Return, for each query, whether the nearest of its candidates is the entry at its own position; (Q,) bool.

        Args:
            features: (Q, F) unit vectors of images of the entries at `positions`.
        """
        found = [
            int((self.features[candidates(self.entries, own)] @ features[query]).argmax()) == 0
            for query, own in enumerate(positions)
        ]
        return np.array(found, bool)


def distinct(entries: Sequence[Entry]) -> list[Entry]:
    """The first entry of each noun and style: others are further drawings of the same."""
    return list({(entry.noun, entry.style): entry for entry in reversed(entries)}.values())[::-1]


def choose(entries: Sequence[Entry], things: int, unasked: Set[str] = frozenset()) -> tuple[list[int], list[int]]:
    """Positions of the prompts: one trained style of each of at most `things` nouns, and every held-out pair."""
    rng = np.random.default_rng(SEED)
    by_noun: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        if entry.split == "train" and entry.noun not in unasked:
            by_noun.setdefault(entry.noun, []).append(position)
    nouns = sorted(by_noun)
    asked = sorted(rng.choice(len(nouns), min(things, len(nouns)), replace=False).tolist())
    trained = [int(rng.choice(by_noun[nouns[i]])) for i in asked]
    heldout = [i for i, entry in enumerate(entries) if entry.split == "heldout" and entry.noun not in unasked]
    return trained, heldout


def candidates(entries: Sequence[Entry], own: int) -> list[int]:
    """Positions of the prompted entry, first, and of CANDIDATES - 1 other nouns, in its style as far as it has them."""
    rng = np.random.default_rng((SEED, own))
    asked = entries[own]
    out, nouns = [own], {asked.noun}
    order = rng.permutation(len(entries)).tolist()
    for in_style in (True, False):
        for position in order:
            entry = entries[position]
            if (entry.style == asked.style) == in_style and entry.noun not in nouns and len(out) < CANDIDATES:
                out.append(position)
                nouns.add(entry.noun)
    return out


def prompt_of(entry: Entry) -> str:
    """The plainest prompt for an entry; a one-colour thing is asked for in INK."""
    return entry_prompt(entry, INK if entry.one_colour else "")


def render_entries(entries: Sequence[Entry], atlas: AtlasSprites) -> np.ndarray:
    """Entries as training shows them, on white; (E, SIZE, SIZE, 3) uint8."""
    out = np.zeros((len(entries), SIZE, SIZE, 3), np.uint8)
    for position, entry in enumerate(entries):
        facts = Facts(SINGLE, entry.style, (Group(entry.key, 1, INK if entry.one_colour else ""),), "white")
        out[position] = render(arrange(facts, np.random.default_rng(0), snap=SIZE), atlas)
    return out


def render_features(entries: Sequence[Entry], atlas: AtlasSprites, batch: int = 256) -> Tensor:
    """Features of the entries' renders, (E, F) unit vectors."""
    extractor, parts = Features(), []
    starts = range(0, len(entries), batch)
    for start in tqdm(starts, desc="real images", unit=f"{batch} images", disable=len(entries) <= 2 * batch):
        images = render_entries(entries[start : start + batch], atlas)
        parts.append(extractor(to_pixels(torch.from_numpy(images))))
    return torch.cat(parts)


def evaluate_breadth(
    engine: ServingEngine, benchmark: BreadthBenchmark, settings: Sampling, seed: int = 0
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Generate one image per prompt and score them.

    Returns:
        The report, and the images (P, H, W, 3) and which are correct (P,) of "trained" and "heldout".
    """
    extractor = Features()
    report: dict[str, Any] = {"breadth_candidates": min(CANDIDATES, len({e.noun for e in benchmark.entries}))}
    kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    seconds = 0.0
    for split, positions in (("trained", benchmark.trained), ("heldout", benchmark.heldout)):
        start = time.perf_counter()
        prompts = [prompt_of(benchmark.entries[i]) for i in positions]
        generated = generate_images(engine, prompts, settings, seed)
        seconds += time.perf_counter() - start
        pixels = to_pixels(torch.from_numpy(generated))
        correct = benchmark.hits(extractor(pixels), positions)
        kept[split] = generated, correct
        report |= {f"breadth_{split}": mean(correct), f"breadth_{split}_images": len(positions)}
        if split == "trained":
            real = to_pixels(torch.from_numpy(benchmark.images(positions)))
            copies = reconstruct(engine.checkpoint.tokenizer, real.to(engine.engine.device))[:, :3].cpu()
            ceiling = benchmark.hits(extractor(to_pixels(to_uint8(copies))), positions)
            stride = engine.checkpoint.config.tokenizer.stride
            report |= {"breadth_ceiling": mean(ceiling), "seam_ratio": round(seam_ratio(pixels, real, stride), 3)}
    images = sum(len(correct) for _, correct in kept.values())
    report |= {
        "features": FEATURES_NAME, "seconds_per_image": round(seconds / max(images, 1), 4), "images": images,
        "date": datetime.date.today().isoformat(), "settings": asdict(settings),
        "checkpoint_sha256": engine.checkpoint.sha256,
    }  # fmt: skip
    return report, kept


def mean(correct: np.ndarray) -> float | None:
    """Share of what is correct; None of nothing."""
    return round(float(correct.mean()), 4) if len(correct) else None


def save_sheets(benchmark: BreadthBenchmark, kept: dict[str, tuple[np.ndarray, np.ndarray]], out: Path) -> None:
    """Write sheet.png: 32 trained and 32 held-out prompts, evenly spaced, each row above its real images."""
    images: list[np.ndarray] = []
    labels: list[str] = []
    for split, positions in (("trained", benchmark.trained), ("heldout", benchmark.heldout)):
        generated, correct = kept[split]
        shown = np.unique(np.linspace(0, len(positions) - 1, min(32, len(positions))).astype(int))
        for row in [shown[i : i + 8] for i in range(0, len(shown), 8)]:
            blank = [np.full((SIZE, SIZE, 3), 255, np.uint8)] * (8 - len(row))
            images += [*generated[row], *blank, *benchmark.images([positions[i] for i in row]), *blank]
            labels += [
                ("" if correct[i] else "[wrong] ")
                + ("HELD OUT: " if split == "heldout" else "")
                + prompt_of(benchmark.entries[positions[i]])
                for i in row
            ] + [""] * len(blank)
            labels += ["(real)"] * len(row) + [""] * len(blank)
    contact_sheet(images, labels, columns=8).save(out / "sheet.png")


def run_breadth(engine: ServingEngine, data: Path, settings: Sampling, things: int, seed: int, out: Path) -> None:
    """Score the checkpoint, write sheet.png and report.json to `out`, and print the report; JSON comes last.

    Raises:
        ConfigError: the checkpoint's images are of another size, or it lists no single things.
        DataError: `data` holds no atlas.
    """
    check_size(engine, SIZE, "the suite breadth")
    about = engine.checkpoint.about
    if not about.get("breadth"):
        raise ConfigError(
            f"{engine.checkpoint.folder} lists no single things (about.breadth in its config.json), so that none would "
            "count as trained: score it with --suite scenes or emoji"
        )
    composed = [thing for thing in about.get("vocabulary", ()) if thing in THINGS]
    benchmark = BreadthBenchmark.load(data, things, about.get("breadth_styles", ()), composed)
    report, kept = evaluate_breadth(engine, benchmark, settings, seed)
    out.mkdir(parents=True, exist_ok=True)
    save_sheets(benchmark, kept, out)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, value in report.items():
        print(f"{name:24s} {value}")
    print(f"{'look at':24s} {out / 'sheet.png'}")
    print(json.dumps(report))
