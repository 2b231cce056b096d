"""Publish a training run: its checkpoint and a model card with loss curve, scores, sheets, in one folder.

    python -m model.evaluation --checkpoint runs/emoji-64/checkpoint --out out/evaluate
    python -m model.evaluation.model_card --run runs/emoji-64 --evaluation out/evaluate --out model/checkpoints/emoji-64

Every figure of the card is read from the files of the run and of the evaluation; only the words are fixed. The text for
scenes is in model_card_scenes.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from model.checkpoint import load_checkpoint, read_config
from model.config import ConfigError, FluidConfig
from model.evaluation import model_card_scenes
from model.networks.transformer import count_parameters

SHEET_SCALE, SHEET_QUALITY = 0.75, 25  # of WebP: small for a repository, and good enough to see what was generated

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
{prediction} prediction; text encoder `{text}` (frozen, installed apart). Weights' SHA-256: `{sha256}`.

## Data and licences

{pictures} images; {splits}. Data set SHA-256 `{data_sha256}`. Made by `make data` from

{sources}
- captions: {captions}, {captions_licence}

Weights and generated images may resemble these works: keep their credits (NOTICE) with either. The weights themselves are Apache-2.0.

## Training

`make train` with [model/recipes/{name}.toml](../../recipes/{name}.toml): {steps:,} steps of {batch} ({epochs:g} epochs) in {minutes:g} minutes,
after the tokenizer ({psnr_train} dB PSNR on trained images, {psnr_unseen} dB on concepts it never saw).

![Loss over steps](curve.png)

## Scores

`python -m model.evaluation`, {date}, {images} images, settings {settings}.
R-precision@1 among {candidates} concepts of the prompted style, in features of {features}. Chance is 1 %.

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


def common_facts(checkpoint: Path, run: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Values for the template of either card: sizes, training, settings, credits, and each score under its own name.

    Raises:
        ConfigError: the checkpoint is of another family, or the tokenizer's report.json is missing.
    """
    raw, loaded = read_config(checkpoint), load_checkpoint(checkpoint)
    config, about = loaded.config, raw["about"]
    if not isinstance(config, FluidConfig):
        raise ConfigError(f"model cards are written for family 'fluid', not {config.family!r}")
    data, training = about["data"], about["training"]
    measured = run / "tokenizer" / "report.json"
    if not measured.exists():
        raise ConfigError(f"{measured} is missing: copy report.json of the tokenizer that the run used there")
    psnr = json.loads(measured.read_text())
    return {
        **{k: v for k, v in report.items() if k != "checkpoint_sha256"},
        "settings": ", ".join(f"{k} {v}" for k, v in report["settings"].items()),
        "name": about["name"], "description": about["description"], "styles": ", ".join(about["styles"]),
        "concepts": len(about["vocabulary"]), "pixels": config.image_size, "tokens": config.tokens,
        "channels": config.channels, "depth": config.depth, "width": config.width, "head_depth": config.head_depth,
        "head_width": config.head_width, "prediction": config.prediction, "text": config.text.name,
        "parameters": count_parameters(loaded.model), "tokenizer_parameters": count_parameters(loaded.tokenizer),
        "mib": sum(f.stat().st_size for f in checkpoint.glob("*.safetensors")) / 2**20, "sha256": raw["sha256"],
        "data_sha256": data["sha256"], "captions": data["captions"]["package"],
        "captions_licence": data["captions"]["licence"],
        "sources": "\n".join(
            f"- {s['style']}: [{s['title']}]({s['url']}) by {s['author']}, {s['licence']} ({s['package']})"
            for s in data["sources"]
        ),
        "steps": training["steps"], "batch": training["batch"], "epochs": training["epochs"],
        "minutes": training["minutes"], "psnr_train": psnr["psnr_train_db"], "psnr_unseen": psnr["psnr_unseen_db"],
        "failures": "![Incorrect images](failures.webp)\n\n" if (checkpoint / "failures.webp").exists() else "",
    }  # fmt: skip


def card_text(facts: dict[str, Any], about: dict[str, Any]) -> str:
    """Fill the emoji template with the common facts and those that only emoji have."""
    data = about["data"]
    return CARD.format(
        **facts,
        pictures=data["pictures"],
        splits=", ".join(f"{n} {split}" for split, n in data["splits"].items()),
        by_style=", ".join(f"{style} {facts[f'r_precision_trained_{style}']:.0%}" for style in about["styles"]),
    )


def plot_curve(run: Path, file: Path) -> None:
    """Plot the training loss over steps from the run's history.json."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    history = json.loads((run / "history.json").read_text())
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot([h[0] for h in history], [h[2] for h in history])
    axes.set(xlabel="step", ylabel="loss (mean square error of v)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _compress(sheet: Path, file: Path) -> None:
    """Save a sheet as a WebP file of a tenth of its bytes, for the card in the repository."""
    with Image.open(sheet) as image:
        smaller = ImageOps.scale(image.convert("RGB"), SHEET_SCALE, Image.Resampling.LANCZOS)
        smaller.save(file, quality=SHEET_QUALITY, method=6)


def publish(run: Path, evaluation: Path, out: Path, sampling: dict[str, Any], description: str) -> None:
    """Copy the run's checkpoint to `out`, add its sampling presets and scores, and write the card beside it.

    Args:
        evaluation: folder that `python -m model.evaluation` wrote.
        sampling: presets and defaults that the service will use (model/recipes/*-sampling.json).
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in (run / "checkpoint").iterdir():
        shutil.copyfile(file, out / file.name)
    raw, report = read_config(out), json.loads((evaluation / "report.json").read_text())
    raw["about"] |= {"description": description, "license": "Apache-2.0", "sampling": sampling, "metrics": report}
    (out / "config.json").write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in ("sheet", "failures"):
        (out / f"{name}.webp").unlink(missing_ok=True)
        if (evaluation / f"{name}.png").exists():  # an evaluation without failures leaves no sheet of them
            _compress(evaluation / f"{name}.png", out / f"{name}.webp")
    plot_curve(run, out / "curve.png")
    text = model_card_scenes.card_text if "score_seen" in report else card_text
    (out / "README.md").write_text(text(common_facts(out, run, report), raw["about"]), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.evaluation.model_card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/emoji-64"), help="folder of the training run (%(default)s)"
    )
    parser.add_argument(
        "--evaluation", type=Path, default=Path("out/evaluate"), help="folder of its evaluation (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("model/checkpoints/emoji-64"), help="folder to publish to (%(default)s)"
    )
    parser.add_argument("--sampling", type=Path, default=Path("model/recipes/emoji-64-sampling.json"),
                        help="JSON with presets and defaults for the service (%(default)s)")  # fmt: skip
    parser.add_argument("--description", default="A Fluid-style model of 7 million parameters that generates emoji.",
                        help="one sentence, for the card and GET /v1/models")  # fmt: skip
    args = parser.parse_args(argv)
    publish(args.run, args.evaluation, args.out, json.loads(args.sampling.read_text()), args.description)
    print(f"published {args.out}; look at {args.out / 'README.md'}")


if __name__ == "__main__":
    main()
