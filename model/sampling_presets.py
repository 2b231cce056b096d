"""Sampling presets of checkpoints that bring none of their own (about["sampling"] in config.json)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.config import FluidConfig, ModelConfig
from model.presets import PAPER_PRESETS

_STEPS = {"low": 8, "medium": 16, "high": 32}
_DIFFUSION = {"low": 12, "medium": 25, "high": 50}
_MEAN_FLOW_DIFFUSION = {"low": 2, "medium": 4, "high": 8}  # more gain nothing
MEAN_FLOW_GUIDANCE = 8.0  #: the largest scale that distillation trains (model/training/few_steps/)
# The paper decodes in 64 steps (raster order: one for each of 256 tokens) with 100 diffusion steps; that is "medium".
_PAPER_STEPS = {"low": 32, "medium": 64, "high": 128}
_PAPER_DIFFUSION = {"low": 50, "medium": 100, "high": 200}


def default_sampling(config: ModelConfig) -> dict[str, Any]:
    """{"presets": parameters by quality, "defaults": all others}, as far as the model's order and head know them."""
    # With any text encoder: training keeps the place of its own.
    paper = isinstance(config, FluidConfig) and any(
        replace(preset, text=config.text) == config for preset in PAPER_PRESETS.values()
    )
    steps, diffusion = (_PAPER_STEPS, _PAPER_DIFFUSION) if paper else (_STEPS, _DIFFUSION)
    diffusion = _MEAN_FLOW_DIFFUSION if config.mean_flow else diffusion
    defaults = {"quality": "medium", "guidance_scale": 3.0, "guidance_schedule": "constant", "temperature": 1.0}
    if config.causal:
        defaults["order"] = "raster"
    return {
        "presets": {
            name: {
                "num_inference_steps": config.tokens if config.causal else min(steps[name], config.tokens),
                "diffusion_steps": 1 if config.categorical else diffusion[name],
            }
            for name in _STEPS
        },
        "defaults": defaults,
    }


def sampling_limits(config: ModelConfig) -> dict[str, float]:
    """Limits of the sampling parameters that requests are checked against; equal ones leave no choice."""
    limits: dict[str, float] = {
        "max_num_inference_steps": config.tokens, "max_diffusion_steps": 250, "max_diffusion_steps_final": 250,
        "max_guidance_scale": MEAN_FLOW_GUIDANCE if config.mean_flow else 20.0, "min_guidance_scale": 0.0,
        "max_temperature": 2.0,
    }  # fmt: skip
    if config.causal:
        limits["min_num_inference_steps"] = config.tokens
    if config.categorical:
        limits |= {"max_diffusion_steps": 1, "max_diffusion_steps_final": 1, "min_diffusion_steps": 1}
        limits |= {"max_top_k": config.codebook, "max_top_p": 1.0}
    return limits
