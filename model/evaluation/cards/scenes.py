"""Model card of a scenes checkpoint: purpose, scores beside their ceilings, known failures, credits."""

from __future__ import annotations

from typing import Any

from model.evaluation.cards.facts import score_table, style_table

CARD = """# {name}

{description}

![64 fixed prompts](sheet.webp)

*64 of the evaluation's prompts, evenly spaced, not picked. UNSEEN: a combination that training never showed{of_style}.
[wrong]: the detector did not find what the prompt states.*

## What it is for

The quick start, tests, benchmarks and playground of Fluid Serve: it composes scenes of one to four things with counts, colours,
positions and backgrounds. It knows {concepts} things in {styles} ({pixels} × {pixels} pixels): {vocabulary}.
Prompts read like "a blue apple, twemoji style", "three cats, 3d style on a blue background" or "a rocket above a
castle, noto style". A response's `warnings` name words that it does not know, with the nearest known ones.

## Model

{parameters:,} parameters in backbone and head, {tokenizer_parameters:,} in the image tokenizer; {mib:.1f} MiB. {tokens} tokens of
{channels} channels; {depth} blocks of width {width}; head of {head_depth} blocks of width {head_width}; {prediction} prediction;
text encoder `{text}` (frozen, installed apart). Weights' SHA-256: `{sha256}`.{guidance}

## Training

{command}: {steps:,} steps of {batch} in {minutes:g} minutes{clock}{beginning}.
Every image is composed during training from {pictures:,} captioned facts; tokenizer {psnr_train} dB PSNR, {psnr_unseen} dB on held-out combinations.

![Loss over steps](curve.png)

## Scores

`python -m model.evaluation --suite scenes`, {date}: {prompts} prompts, {images} images, settings {settings}.

| category | score | seen | unseen combinations | ceiling: real renders |
|---|---|---|---|---|
{table}
| mean | | **{score_seen:.1%}** | **{score_unseen:.1%}** | {checker_ceiling:.1%} |
{style_rows}

{unseen}{brackets}

Images are scored by a detector of our own, trained on renders only. It accepts {checker_ceiling:.1%} of real renders
({checker_ceiling_jpeg:.1%} after JPEG at quality 40, which it never trained with) and rejects {checker_reject:.1%} of renders with one fact made false.
Feature distance to renders: {feature_distance:.2f} (render to render: {feature_distance_floor:.2f}).

## Known failures

{failures}- Counts: the commonest mistake is one thing too many, or a piece of one.
- Fine structure is smeared, most of all in one thing that fills the image: training was short.
- Things outside the vocabulary, several styles in one image, more than four things are not followed.

## Data and licences

Scenes are composed from sprites of

{sources}
- names and tags: {captions}, {captions_licence}

Weights and generated images may resemble these works: keep their credits (NOTICE) with either. The weights are Apache-2.0.
"""


def card_text(facts: dict[str, Any], about: dict[str, Any]) -> str:
    """Fill the scenes template with the common facts and those that only scenes have."""
    return CARD.format(
        **facts,
        vocabulary=", ".join(about["vocabulary"]),
        pictures=about["training"]["pictures"],
        table=score_table(facts),
        style_rows=style_table(facts),
    )
