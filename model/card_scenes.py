"""The card of a model of composed scenes: what it is, scores beside their ceilings, failures, credits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.checkpoint import load_checkpoint, read_config
from model.data.scenes.facts import SUITE
from model.transformer import count_parameters

CARD = """# {name}

{description}

![64 fixed prompts](sheet.png)

*64 prompts of the suite, evenly spaced, not picked. UNSEEN: a combination that training never showed. [wrong]: the
judge did not find what the prompt states.*

## What it is for

Showing that a small model follows prompts about composed scenes: things, counts, colours, positions, backgrounds.
It knows {things} things in {styles} ({pixels} × {pixels} pixels): {vocabulary}.
Prompts read like "a blue apple, twemoji style", "three cats, 3d style on a blue background" or "a rocket above a
castle, noto style"; other words give guesses.

## Model

{parameters:,} parameters in backbone and head, {tokenizer_parameters:,} in the image tokenizer; bfloat16,
{mib:.1f} MiB. {tokens} tokens of {channels} channels. Weights' SHA-256: `{sha256}`.

## Training

`make train RECIPE=scenes-128`: {steps:,} steps of {batch} in {minutes:g} minutes on two CPU cores,
every picture composed anew from {pictures:,} captioned facts; tokenizer {psnr_train} dB, {psnr_unseen} dB on held-out combinations.

![Loss over steps](curve.png)

## Scores

`python -m model.evaluate --suite scenes`, {date}: {prompts} prompts, {images} pictures, settings {settings}.

| category | score | seen | unseen combinations | ceiling: real renders |
|---|---|---|---|---|
{table}
| mean | | **{score_seen:.1%}** | **{score_unseen:.1%}** | {checker_ceiling:.1%} |

The judge is a detector of our own, trained on renders only. It accepts {checker_ceiling:.1%} of real renders
({checker_ceiling_jpeg:.1%} after JPEG at quality 40, which it never trained with) and rejects {checker_reject:.1%} of renders with one fact made false.
R-precision@1 of {candidates}: {r_precision:.1%} (real renders: {r_precision_ceiling:.1%}).
Feature distance to renders: {feature_distance:.2f} (render to render: {feature_distance_floor:.2f}). Style and size are not judged. Targets were 80 % seen, 60 % unseen.

## Known failures

{failures}- Edges are ragged and flat areas blotchy: training was short, and the loss was still falling when it ended.
- Things outside the vocabulary, several styles in one picture, more than four things are not followed.

## Data and licences

Scenes are composed from sprites of

{sources}
- names and tags: {captions}, {captions_licence}

Weights and drawings may resemble these works: keep their credits (NOTICE) with either. The weights are Apache-2.0.
"""


def card_text(checkpoint: Path, run: Path, report: dict[str, Any]) -> str:
    """Fill the template from what the run and the suite wrote."""
    raw, loaded = read_config(checkpoint), load_checkpoint(checkpoint)
    about, config = raw["about"], loaded.config
    data, training = about["data"], about["training"]
    psnr = json.loads((run / "tokenizer" / "report.json").read_text())
    cells = ("", "_seen", "_unseen", "_ceiling")
    return CARD.format(
        **{k: v for k, v in report.items() if k != "settings"}, name=about["name"], description=about["description"],
        settings=", ".join(f"{k} {v}" for k, v in report["settings"].items()),
        things=len(about["vocabulary"]), vocabulary=", ".join(about["vocabulary"]), styles=", ".join(about["styles"]),
        pixels=config.image_size, parameters=count_parameters(loaded.model), tokens=config.tokens,
        tokenizer_parameters=count_parameters(loaded.tokenizer), channels=config.channels, sha256=raw["sha256"],
        mib=sum(f.stat().st_size for f in checkpoint.glob("*.safetensors")) / 2**20,
        steps=training["steps"], batch=training["batch"], minutes=training["minutes"], pictures=training["pictures"],
        psnr_train=psnr["psnr_train_db"], psnr_unseen=psnr["psnr_unseen_db"],
        table="\n".join(f"| {name} | " + " | ".join(f"{report[name + c]:.1%}" for c in cells) + " |" for name in SUITE),
        failures="![Wrong ones](failures.png)\n\n" if (checkpoint / "failures.png").exists() else "",
        captions=data["captions"]["package"], captions_licence=data["captions"]["licence"],
        sources="\n".join(
            f"- {s['style']}: [{s['title']}]({s['url']}) by {s['author']}, {s['licence']} ({s['package']})"
            for s in data["sources"]
        ),
    )  # fmt: skip
