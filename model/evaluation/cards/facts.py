"""What every model card states: sizes, training, settings, credits, and each score under its own name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.checkpoint import load_checkpoint, read_config
from model.config import ConfigError, FluidConfig
from model.data.scenes.facts import SCORED_CATEGORIES
from model.evaluation.scene_questions import percent
from model.networks.transformer import count_parameters

RECIPES = Path(__file__).parents[2] / "recipes"


def common_facts(checkpoint: Path, run: Path, about: dict[str, Any], has_failures: bool) -> dict[str, Any]:
    """Values for the template of any card: sizes, training, settings, credits, and each score under its own name.

    Args:
        about: metadata of the checkpoint with the scores, "metrics".
        has_failures: there is a sheet failures.webp.

    Raises:
        ConfigError: the checkpoint is of another family, or the tokenizer's report.json is missing or damaged.
    """
    raw, loaded = read_config(checkpoint), load_checkpoint(checkpoint)
    config, report = loaded.config, about["metrics"]
    if not isinstance(config, FluidConfig):
        raise ConfigError(f"model cards are written for family 'fluid', not {config.family!r}")
    data, training = about["data"], taught_by_data(about["training"])
    measured = run / "tokenizer" / "report.json"
    if not measured.exists():
        raise ConfigError(f"{measured} is missing: copy report.json of the tokenizer that the run used there")
    psnr = read_json(measured)
    return {
        **{k: v for k, v in report.items() if k != "checkpoint_sha256"},
        "brackets": " In brackets: the number of questions." if any(k.endswith("_questions") for k in report) else "",
        "settings": listed(report["settings"]),
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
        "command": by_recipe(about["name"], training), "steps": training["steps"], "batch": training["batch"],
        "epochs": training["epochs"], "clock": clock(training), "beginning": beginning(training),
        "minutes": training["minutes"],
        "guidance": built_in_guidance(about["training"]) + carried_over(about["training"]) + decoder(about["training"]),
        "of_style": ", also of style" if has_unseen_styles(report) else "", "unseen": unseen_words(report),
        "psnr_train": psnr["psnr_train_db"], "psnr_unseen": psnr["psnr_unseen_db"],
        "failures": "![Incorrect images](failures.webp)\n\n" if has_failures else "",
    }  # fmt: skip


def taught_by_data(training: dict[str, Any]) -> dict[str, Any]:
    """The training on images, of weights that have learned guidance afterwards; others' only one."""
    while "guidance" in training:
        training = training["started_from"]["training"]
    return training


def built_in_guidance(training: dict[str, Any]) -> str:
    """What the weights know of guidance, as a paragraph; "" if nothing."""
    if (known := training.get("guidance")) is None:
        return ""
    scale = known["scale"]
    return (
        f"\n\nGuidance with a scale of {scale:g} is in the weights, by {training['steps']:,} steps of\n"
        f"`python -m model.training.guidance_distillation --scale {scale:g}` in {training['minutes']:g} minutes, which left "
        f"{known['missing']:.0%} of it out: a `guidance_scale`\nof 1, which takes one pass a step, draws nearly as {scale:g} "
        f"did before them, and s as {scale:g} s."
    )


def carried_over(training: dict[str, Any]) -> str:
    """What other trainings had changed and was added to the weights, the first one first, a paragraph each."""
    if (added := training.get("carried")) is None:
        return ""
    share = "" if added["share"] == 1 else f"{added['share']:.0%} of "
    shown = "" if added.get("styles_held_out", True) else ", which showed every thing in every style,"
    on = f" on {added['device']}" if "device" in added else ""
    legs = legs_since(added)
    steps, minutes = (sum(leg[key] for leg in legs) for key in ("steps", "minutes"))
    return carried_over(added) + (
        f"\n\nAdded is {share}what {steps:,} more steps of {added['batch']} images{on} in "
        f"{minutes:g} minutes{shown} changed in\nthe weights before them (`python -m model.training.means --since`)."
    )


def legs_since(added: dict[str, Any]) -> list[dict[str, Any]]:
    """A training, and those before it back to the weights since which its change was taken; itself if none is known."""
    legs, start = [added], added.get("started_from")
    while start and "since" in added:
        if start["sha256"] == added["since"]:
            return legs
        legs.append(start["training"])
        start = start["training"].get("started_from")
    return [added]


def decoder(training: dict[str, Any]) -> str:
    """That the tokenizer's decoder was trained further than the model's own run had it, as a paragraph; "" if not."""
    if (earlier := training.get("other_decoder_than")) is None:
        return ""
    return (
        "\n\nThe tokenizer's decoder was then trained further alone (`python -m model.training.train_tokenizer --decoder-of`), "
        f"so\nthe tokens are those of the weights {earlier['sha256'][:12]}, and the images sharper."
    )


def has_unseen_styles(report: dict[str, Any]) -> bool:
    """True if the scores of scenes tell things in styles that training never showed from others."""
    return any(report.get(f"{name}_unseen") is not None for name in ("style", "r_precision"))


def unseen_words(report: dict[str, Any]) -> str:
    """What is unseen in the table of scenes' scores."""
    words = "Unseen: a pair of things, a count or a colour of a thing that training never showed"
    if has_unseen_styles(report):
        return (
            f"{words}; in the last two lines, a thing in a style that\ntraining never showed, which can only be guessed, "
            "and which counts in the first column alone of all other lines."
        )
    every = ". Every thing\nwas shown in every style." if "style_unseen" in report else "."
    return words + every


def read_json(file: Path) -> Any:
    """The JSON value in a file.

    Raises:
        ConfigError: it is missing or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): correct it, or write it again") from error


def listed(settings: dict[str, Any]) -> str:
    """Sampling settings in words, without those that are not set."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)


def command(name: str, training: dict[str, Any]) -> str:
    """The command that trains a model of this name: by its recipe, if this version has one, of a GPU if one trained it."""
    names = [name] if "CPU" in training.get("device", "CPU") else [f"{name}-gpu", name]
    found = [each for each in names if (RECIPES / f"{each}.toml").is_file()]
    return f"make train RECIPE={found[0]}" if found else "python -m model.training"


def by_recipe(name: str, training: dict[str, Any]) -> str:
    """The command, and that its recipe may have changed since."""
    found = command(name, training)
    return f"`{found}`" + (", as that recipe was then" if "RECIPE" in found else "")


def clock(training: dict[str, Any]) -> str:
    """What the minutes of a training run are of, as far as it was noted."""
    if training.get("clock") == "cpu":
        return " of processor time"
    return f" on {training['device']}" if "device" in training else ""


def score_table(facts: dict[str, Any]) -> str:
    """The rows of the table of scenes' scores; each cell has the number of its questions, where the report has it."""

    return "\n".join(score_row(facts, name, name) for name in SCORED_CATEGORIES)


def style_table(facts: dict[str, Any]) -> str:
    """The rows of scores whose seen and unseen combinations are those of a thing and a style."""
    found = f"R-precision@1 of {facts['candidates']}"
    return "\n".join(score_row(facts, name, label) for name, label in (("style", "style"), ("r_precision", found)))


def score_row(facts: dict[str, Any], name: str, label: str) -> str:
    """A row of scores: of all questions, of seen and of unseen combinations, and the ceiling."""

    def cell(key: str) -> str:
        asked = facts.get(f"{key}_questions")
        return percent(facts.get(key)) + (f" ({asked})" if asked else "")

    return f"| {label} | " + " | ".join(cell(name + c) for c in ("", "_seen", "_unseen", "_ceiling")) + " |"


def beginning(training: dict[str, Any]) -> str:
    """What a training run began with, as a clause with its comma: legs before it, relation pretraining, or nothing."""
    legs, mean = [], ""
    if other := training.get("mean_with"):
        weights = other["sha256"][:12]
        mean = f"; the mean of {1 - other['share']:.0%} of the result and {other['share']:.0%} of the weights {weights}"
    while start := training.get("started_from"):
        training = start["training"]
        legs.append(f"{start['name']} ({training['steps']:,} steps in {training['minutes']:g} minutes)")
    if legs:
        return f", from the weights of {', which began with those of '.join(legs)}{mean}"
    if training.get("relation_steps"):
        return f", after relation pretraining (model/training/auxiliary/relation_pretraining.py){mean}"
    return mean
