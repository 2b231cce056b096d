"""Output of a training run besides its state: sample sheets for people, and the checkpoint that serving loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.checkpoint import read_config, save_checkpoint
from model.config import ModelConfig
from model.data.contact_sheet import contact_sheet
from model.inference.generate import generate
from model.inference.orders import orders_of
from model.inference.requests import Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.factory import AnyTokenizer
from model.networks.tokenizer import decode_tokens, to_uint8
from model.training.recipe import Recipe
from model.training.run import Run


def sheet_sampling(config: ModelConfig) -> Sampling:
    """Settings of sample sheets: the defaults, as far as the model's order and head know them."""
    return Sampling(
        num_inference_steps=config.tokens if config.causal else min(Sampling.num_inference_steps, config.tokens),
        diffusion_steps=1 if config.categorical else Sampling.diffusion_steps,
        order=orders_of(config)[0],
    )


@torch.no_grad()
def save_sheet(run: Run, tokenizer: AnyTokenizer, file: Path) -> None:
    """Write a sheet of 32 fixed training prompts: images of the averaged weights above those of the training data."""
    averaged, captions = Fluid(run.config).to(run.device).eval(), run.feed.captions
    run.learner.ema.copy_to(averaged)  # on every rank: each has a part
    if not run.leads:
        return
    rows = torch.linspace(0, len(run.feed) - 1, 32).long()
    states, mask = captions.states[rows, 0].float().to(run.device), captions.mask[rows, 0].to(run.device)
    text = averaged.backbone.encode_text(states, mask)
    null = averaged.backbone.encode_text(captions.null_states.to(run.device), captions.null_mask.to(run.device))
    tokens = generate(averaged, text, null, torch.arange(32, device=run.device), sheet_sampling(run.config))
    pixels = decode_tokens(tokenizer, tokens.to(next(tokenizer.parameters()).device))
    generated = to_uint8(pixels[:, :3]).cpu()
    images, labels = [], []
    for start in range(0, 32, 8):
        real = [run.feed.example(row) for row in rows[start : start + 8].tolist()]
        images += [*generated[start : start + 8].numpy(), *(image for image, _ in real)]
        labels += [caption for _, caption in real] + ["(training image)"] * 8
    contact_sheet(images, labels, columns=8, scale=max(1, 128 // run.config.image_size)).save(file)


def started_from(recipe: Recipe) -> dict[str, Any]:
    """Name, weights and training of the checkpoint that a run started from, and of those before it."""
    if not recipe.start_from:
        return {}
    raw = read_config(Path(recipe.start_from))
    about = raw["about"]
    return {"started_from": {"name": about["name"], "sha256": raw["sha256"], "training": about.get("training", {})}}


def write_checkpoint(run: Run, tokenizer: AnyTokenizer) -> Path:
    """Write the averaged weights and what is known about them to OUT/checkpoint; return that folder."""
    averaged = Fluid(run.config)
    run.learner.ema.copy_to(averaged)
    folder = Path(run.recipe.out) / "checkpoint"
    if not run.leads:
        return folder
    about = {
        "name": run.recipe.name or run.recipe.preset,
        "training": {
            "steps": run.clock.step, "minutes": round(run.clock.seconds / 60, 1), "batch": run.recipe.batch,
            "pictures": len(run.feed), "epochs": round(run.clock.step * run.recipe.batch / len(run.feed), 1),
            "final_loss": round(run.history[-1][2], 4) if run.history else None,
            "clock": run.recipe.clock, **started_from(run.recipe),
        },
        **run.feed.about,
    }  # fmt: skip
    save_checkpoint(folder, averaged, tokenizer, about)
    return folder
