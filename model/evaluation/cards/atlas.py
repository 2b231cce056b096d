"""Model card of an atlas checkpoint: composed scenes of a core of things, and a breadth of single things."""

from __future__ import annotations

from typing import Any

from model.data.atlas.wording import DEFAULT_STYLE
from model.data.scenes.things import STYLES
from model.evaluation.cards.facts import listed, score_table, style_table, taught_by_data
from model.evaluation.scene_questions import percent

CARD = """# {name}

{description}

![64 fixed prompts](sheet.webp)

*64 of the evaluation's prompts, evenly spaced, not picked. UNSEEN: a combination that training never showed{of_style}.
[wrong]: the detector did not find what the prompt states.*

![Single things above the real ones](breadth-sheet.webp)

*Single things, each row above its real images{heldout_rows}. [wrong]: among {breadth_candidates} things, another one is nearer.*

## What it is for

The quick start, tests, benchmarks and playground of Fluid Serve. Two circles of words ({pixels} × {pixels} pixels, also on a transparent
background):

- A **core** of {concepts} things that it composes, one to four at a time, with counts, colours, positions, sizes and backgrounds, in
  {core_styles}: {vocabulary}.
- A **breadth** of {breadth:,} more things {breadth_styles}, one thing at a time.

`GET /v1/models` lists all of them, and a response's `warnings` name words that it does not know, with the nearest known ones. Prompts read like "a blue apple, twemoji
style", "three cats, 3d style on a blue background", "a rocket above a castle" or "an accordion, noto style"; without a style it draws {default_style}.

## Model

{parameters:,} parameters in backbone and head, {tokenizer_parameters:,} in the image tokenizer; {mib:.1f} MiB. {tokens} tokens of
{channels} channels; {depth} blocks of width {width}; head of {head_depth} blocks of width {head_width}; {prediction} prediction{few_steps};
text encoder `{text}` (frozen, installed apart). Weights' SHA-256: `{sha256}`.{guidance}

## Training

{command}: {steps:,} steps of {batch} in {minutes:g} minutes{clock}{beginning}. {exposure}; tokenizer {psnr_train} dB PSNR,
{psnr_unseen} dB on held-out combinations.

![Loss over steps](curve.png)

## Scores: the core

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

## Scores: the breadth

`python -m model.evaluation --suite breadth`, {breadth_date}, settings {breadth_settings}: R-precision@1 among {breadth_candidates} named things in features of {features}; chance is {chance:.1%}.

| what | score |
|---|---|
| trained pairs of thing and style ({breadth_trained_images}) | **{breadth_trained}** |
{heldout}| ceiling: the tokenizer's reconstructions of the real images | {breadth_ceiling} |

Seam ratio of generated images (gradient across token borders over that inside, real images 1.0): {seam_ratio}.

## Known failures

{failures}- Counts: the commonest mistake is one thing too many, or a piece of one.
- Things of the breadth do not compose: one at a time. More than four things, several styles in one image and letters are not followed.
- Fine structure (thin lines, small marks) is smeared.

## Data and licences

Images are composed from cut-outs of

{sources}
- names and tags: {captions}, {captions_licence}

Weights and generated images may resemble these works: keep their credits (NOTICE) with either. The weights are Apache-2.0.
"""


HELDOUT = "| held-out pairs ({breadth_heldout_images}): the thing trained in other styles only | {breadth_heldout} |\n"


def card_text(facts: dict[str, Any], about: dict[str, Any]) -> str:
    """Fill the atlas template with the common facts and those that only an atlas has."""
    distilled = about.get("few_steps")
    facts = facts | {name: percent(facts[name]) for name in ("breadth_trained", "breadth_heldout", "breadth_ceiling")}
    facts |= {"breadth_settings": listed(facts["breadth_settings"])}
    heldout = facts["breadth_heldout_images"] > 0  # chosen styles may draw none of the held-out pairs
    return CARD.format(
        **facts,
        vocabulary=", ".join(about["vocabulary"]),
        core_styles=", ".join(core_styles(about)),
        breadth=len(about["breadth"]),
        breadth_styles=breadth_styles(about),
        default_style=default_style(about),
        heldout=HELDOUT.format(**facts) if heldout else "",
        heldout_rows=": first trained pairs of thing and style, then held-out ones" if heldout else "",
        chance=1 / facts["breadth_candidates"],
        few_steps=f", distilled into a mean flow in {distilled['minutes']:g} minutes" if distilled else "",
        exposure=exposure(taught_by_data(about["training"])),
        table=score_table(facts),
        style_rows=style_table(facts),
    )


def default_style(about: dict[str, Any]) -> str:
    """What a prompt without a style gets, in words."""
    chosen = about.get("breadth_styles") or [DEFAULT_STYLE]
    return DEFAULT_STYLE + (f", and a thing of the breadth in {chosen[0]}" if chosen[0] != DEFAULT_STYLE else "")


def core_styles(about: dict[str, Any]) -> list[str]:
    """The styles of composed scenes; trainings of earlier versions did not note which of the six they were."""
    noted: list[str] = taught_by_data(about["training"]).get("scene_styles", [])
    return noted or [style for style in STYLES if style in about["styles"]]


def exposure(training: dict[str, Any]) -> str:
    """What a training showed, and how often."""
    composed = f"Scenes are composed during training from {training['pictures']:,} captioned facts"
    if "singles" not in training:  # earlier versions counted both kinds as one number
        return f"{composed}, those of single things included"
    singles = f"single things have {training['singles']:,} captions ({training['singles_epochs']:g} epochs)"
    return f"{composed} ({training['epochs']:g} epochs); {singles}"


def breadth_styles(about: dict[str, Any]) -> str:
    """The styles in which a checkpoint draws single things, in words."""
    if chosen := about.get("breadth_styles"):
        return f"in {' and '.join(chosen)} style"
    return f"in two or more styles, and {len(about['breadth_in_one_style']):,} in one"
