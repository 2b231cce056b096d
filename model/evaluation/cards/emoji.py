"""Model card of an emoji checkpoint: purpose, R-precision beside its ceiling, known failures, credits."""

from __future__ import annotations

from typing import Any

CARD = """# {name}

{description}

![Generated images above the real ones](sheet.webp)

*Rows of generated images, each above its row of real ones: trained pairs, then held-out pairs, then concepts never trained.
Evenly spaced over the data, not picked; the seed is the position in the list.*

## What it is for

The quick start, tests and benchmarks of Fluid Serve. It generates {concepts} emoji concepts in {styles} ({pixels} × {pixels} pixels).
`GET /v1/models` lists the words. Prompts read like "a red apple, 3d style"; without a style it picks one. It knows **only**
those words: others give a guess of likely colour and shape. It does not compose: one thing per image.

## Model

{parameters:,} parameters in the backbone and head, {tokenizer_parameters:,} in the image tokenizer; shipped as bfloat16, {mib:.1f} MiB.
{tokens} tokens of {channels} channels; {depth} blocks of width {width}; head of {head_depth} blocks of width {head_width};
{prediction} prediction; text encoder `{text}` (frozen, installed apart). Weights' SHA-256: `{sha256}`.{guidance}

## Data and licences

{pictures} images; {splits}. Data set SHA-256 `{data_sha256}`. Made by `make data` from

{sources}
- captions: {captions}, {captions_licence}

Weights and generated images may resemble these works: keep their credits (NOTICE) with either. The weights themselves are Apache-2.0.

## Training

{command}: {steps:,} steps of {batch} ({epochs:g} epochs) in {minutes:g} minutes{clock},
after the tokenizer ({psnr_train} dB PSNR on trained images, {psnr_unseen} dB on concepts it never saw).

![Loss over steps](curve.png)

## Scores

`python -m model.evaluation --suite emoji`, {date}, {images} images, settings {settings}.
R-precision@1 among {candidates} concepts of the prompted style, in features of {features}. Chance is {chance:.1%}.

| what | score |
|---|---|
| trained pairs ({images_trained}) | **{r_precision_trained:.1%}** ({by_style}) |
| ceiling: the tokenizer's reconstructions of the real images | {r_precision_ceiling:.1%} |
| held-out pairs ({images_heldout}): concept trained in the other styles only | {r_precision_heldout:.1%} |
| concepts never trained ({images_unseen}) | {r_precision_unseen:.1%} |
| nearest training image (16×16 pixels) is the prompted one | {nearest_training_is_prompted:.1%} |

Read honestly: on trained pairs this is **memory with variation**. The last line says that nearly every generated image is
closest to the very image it was trained on. Held-out pairs show how much transfers between styles, unseen concepts how little
is understood beyond the vocabulary.

## Known failures

{failures}- Fine structure (thin lines, small marks, letters) is smeared; flat areas can show faint blotches.
- Words outside the vocabulary, several objects, counts and positions are not followed.
"""


def card_text(facts: dict[str, Any], about: dict[str, Any]) -> str:
    """Fill the emoji template with the common facts and those that only emoji have."""
    data = about["data"]
    return CARD.format(
        **facts,
        chance=1 / facts["candidates"],
        pictures=data["pictures"],
        splits=", ".join(f"{n} {split}" for split, n in data["splits"].items()),
        by_style=", ".join(f"{style} {facts[f'r_precision_trained_{style}']:.0%}" for style in about["styles"]),
    )
