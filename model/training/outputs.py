"""Output of a training run besides its state: sample sheets for people, and the checkpoint that serving loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.data.atlas.atlas_bank import AtlasBank
from model.data.contact_sheet import contact_sheet
from model.inference.generate import generate
from model.inference.orders import orders_of
from model.inference.requests import Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.factory import AnyTokenizer
from model.networks.tokenizer import decode_tokens, to_uint8
from model.training.feeds import Feed, SceneFeed, singles_of
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


def exposure(feed: Feed, batch: int, steps: int) -> dict[str, float]:
    """How many rows a feed has and how often each was trained on; of an atlas, scenes and single things apart."""
    if not isinstance(feed, SceneFeed) or not isinstance(feed.scenes, AtlasBank):
        return {"pictures": len(feed), "epochs": round(steps * min(batch, len(feed)) / len(feed), 1)}
    scenes = feed.scenes.scenes
    of_singles = singles_of(batch, feed.batches.breadth)
    known = {"pictures": scenes, "epochs": round(steps * (batch - of_singles) / scenes, 1)}
    if singles := len(feed) - scenes:
        known |= {"singles": singles, "singles_epochs": round(steps * of_singles / singles, 1)}
    return known


def device_name(run: Run) -> str:
    """What a run computes on: "2 CPU threads", or the number and the name of its GPUs."""
    ranks = run.group.size if run.group else 1
    if run.device.type == "cuda":
        return f"{ranks} × {torch.cuda.get_device_name(run.device)}"
    return f"{ranks * torch.get_num_threads()} CPU thread{'s' if ranks * torch.get_num_threads() > 1 else ''}"


def scenes_facts(run: Run) -> dict[str, Any]:
    """The styles of composed scenes, and the steps of relation pretraining: 0 for a run from other weights."""
    scenes = run.recipe.scenes
    if scenes is None:
        return {}
    return {
        "scene_styles": list(scenes.styles), "styles_held_out": scenes.styles_held_out,
        "relation_steps": 0 if run.started_from else scenes.relation_steps,
    }  # fmt: skip


def write_checkpoint(
    run: Run, tokenizer: AnyTokenizer, more: Mapping[str, Any] | None = None, sampling: Mapping[str, Any] | None = None
) -> Path:
    """Write the averaged weights and what is known about them to OUT/checkpoint; return that folder.

    Args:
        more: further entries of about.training.
        sampling: presets of its own, in the form of about.sampling.
    """
    averaged = Fluid(run.config)
    run.learner.ema.copy_to(averaged)
    folder = Path(run.recipe.out) / "checkpoint"
    if not run.leads:
        return folder
    start = {key: value for key, value in run.started_from.items() if key != "folder"}
    about = {
        "name": run.recipe.name or run.recipe.preset,
        "training": {
            "steps": run.clock.step, "minutes": round(run.clock.seconds / 60, 1), "batch": run.recipe.batch,
            **exposure(run.feed, run.recipe.batch, run.clock.step), "device": device_name(run),
            **scenes_facts(run), "final_loss": round(run.history[-1][2], 4) if run.history else None,
            "clock": run.recipe.clock, "halton_masks": run.recipe.halton_masks, "gtr_masks": run.recipe.gtr_masks,
            **({"started_from": start} if start else {}),
            **(more or {}),
        },
        **run.feed.about,
        **({"sampling": sampling} if sampling else {}),
    }  # fmt: skip
    save_checkpoint(folder, averaged, tokenizer, about)
    return folder
