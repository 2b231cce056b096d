"""What every model card states: sizes, training, settings, credits, and each score under its own name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.checkpoint import load_checkpoint, read_config
from model.config import ConfigError, FluidConfig
from model.networks.transformer import count_parameters


def common_facts(checkpoint: Path, run: Path, about: dict[str, Any], has_failures: bool) -> dict[str, Any]:
    """Values for the template of any card: sizes, training, settings, credits, and each score under its own name.

    Args:
        about: metadata of the checkpoint with the scores, "metrics".
        has_failures: there is a sheet failures.webp.

    Raises:
        ConfigError: the checkpoint is of another family, or the tokenizer's report.json is missing.
    """
    raw, loaded = read_config(checkpoint), load_checkpoint(checkpoint)
    config, report = loaded.config, about["metrics"]
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
        "clock": " of processor time" if training.get("clock") == "cpu" else " on two CPU cores",
        "beginning": beginning(training), "minutes": training["minutes"],
        "psnr_train": psnr["psnr_train_db"], "psnr_unseen": psnr["psnr_unseen_db"],
        "failures": "![Incorrect images](failures.webp)\n\n" if has_failures else "",
    }  # fmt: skip


def beginning(training: dict[str, Any]) -> str:
    """What a training run began with: legs before it, or relation pretraining."""
    legs = []
    while start := training.get("started_from"):
        training = start["training"]
        legs.append(f"{start['name']} ({training['steps']:,} steps in {training['minutes']:g} minutes)")
    if legs:
        return f"from the weights of {', which began with those of '.join(legs)}"
    return "after relation pretraining (model/training/auxiliary/relation_pretraining.py)"
