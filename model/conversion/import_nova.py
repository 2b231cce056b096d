"""Convert a NOVA text-to-image folder, as BAAI publishes it in diffusers' layout, to a checkpoint folder.

    fluid import nova-d48w1024-sdxl1024 nova          reads transformer/, scheduler/ and vae/

The text encoder stays where it is: the checkpoint names the folder, or what --text says. A token's channels are stored
channel by channel here and pixel by pixel there, which concerns the head's last layer alone: a convolution's weights
are channel by channel already.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import CheckpointError, save_checkpoint
from model.config import DdpmConfig, KlConfig, NovaConfig, TextConfig
from model.conversion.diffusers_folders import component_class, read_autoencoder, read_component, read_json
from model.conversion.foreign_weights import ForeignWeights
from model.conversion.options import Licence, Options
from model.networks.imported.nova import Nova

CLASS = "NOVATransformer3DModel"
LOOKS_FOR = f"a folder with transformer/config.json of class {CLASS}"
LICENCE = Licence("Apache-2.0", "https://github.com/baaivision/NOVA")
TEXT_ENCODER = "microsoft/phi-2"  # Phi-2, as NOVA was trained with
PATCH = 2  # latents on a side of a token
STRIP = 8  # rows of latents that are decoded at once in images of LARGE pixels a side and more
LARGE = 1024
# Width -> attention heads, which neither shapes nor the configuration tell.
HEADS = {768: 12, 1024: 16, 1536: 16}

BACKBONE = {
    "text_in": "text_embed.proj", "text_norm": "text_embed.norm", "time.0": "video_pos_embed.time_proj.0",
    "time.2": "video_pos_embed.time_proj.2", "time_norm": "video_pos_embed.norm", "context_norm": "video_encoder.norm",
    "token_in": "image_encoder.patch_embed.proj", "norm": "image_encoder.norm",
}  # fmt: skip
BLOCK = {
    "norm1": "norm1", "norm2": "norm2", "attn.q": "attn.qkv", "attn.kv": "attn.qkv", "attn.out": "attn.proj",
    "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2",
}  # fmt: skip
HEAD = {
    "time.0": "time_cond_embed.timestep_proj.fc1", "time.2": "time_cond_embed.timestep_proj.fc2",
    "condition.0": "time_cond_embed.condition_proj.fc1", "condition.2": "time_cond_embed.condition_proj.fc2",
    "token_in": "patch_embed.proj", "final_modulation": "norm.proj", "out": "head",
}  # fmt: skip
HEAD_BLOCK = {"mlp.0": "proj.fc1", "mlp.2": "proj.fc2", "post_norm": "norm2", "modulation": "norm1.proj"}
# Keys of scheduler_config.json that have no effect on sampling. `clip_sample` has none either: NOVA's DDPM scheduler
# does not clip, and latents of unit variance clipped at 1 would be ruined.
DDPM_FIXED = {
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "num_train_timesteps": 1000,
}


def recognises(source: Path) -> bool:
    """True for a folder whose transformer is NOVA's."""
    return component_class(source / "transformer") == CLASS


def convert(source: Path, folder: Path, options: Options) -> str:
    """Write the checkpoint of a published folder into `folder`; return a prompt to try it with.

    Raises:
        CheckpointError, ConfigError: something does not fit.
    """
    raw = read_json(source / "transformer" / "config.json")
    size = _side(raw, "image_size", source)
    vae = options.vae or source / "vae"
    options.report(f"reading the autoencoder {vae}")
    tokenizer = read_autoencoder(vae, PATCH, STRIP if size >= LARGE else 0)
    options.report(f"reading the model {source / 'transformer'}")
    weights = read_component(source / "transformer")
    model = Nova(nova_config(source, raw, weights, tokenizer.config, options))
    copy_weights(model, weights)
    facts = about(model.config)
    count = sum(p.numel() for p in (*model.parameters(), *tokenizer.parameters()))
    options.report(
        f"writing {facts['name']}, {count / 1e6:.1f}M parameters with the autoencoder; its text encoder is "
        f"{model.config.text.name}"
    )
    save_checkpoint(folder, model, tokenizer, facts, options.dtype)
    return "a red apple on a wooden table"


def nova_config(
    source: Path, raw: dict[str, Any], weights: ForeignWeights, tokenizer: KlConfig, options: Options
) -> NovaConfig:
    """Derive the model's configuration from the folder's and the shapes of its tensors.

    Args:
        raw: the content of transformer/config.json.

    Raises:
        CheckpointError: it is a video model, or another one that is not supported.
    """
    _check(source, raw, tokenizer)
    width = weights.shape("image_encoder.norm.weight", 1)[0]
    heads = options.heads or HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"{weights.file}: width {width} is not one of the released sizes {sorted(HEADS)}; give the number of "
            "attention heads with --heads"
        )
    text = options.text or (str(source.resolve()) if (source / "text_encoder").is_dir() else TEXT_ENCODER)
    chain = _chain(source / "scheduler" / "scheduler_config.json")
    return NovaConfig(
        image_size=_side(raw, "image_size", source), width=width, heads=heads,
        context_depth=weights.count("video_encoder.blocks."), depth=weights.count("image_encoder.blocks."),
        head_width=weights.shape("image_decoder.head.weight", 2)[1],
        head_depth=weights.count("image_decoder.blocks."), tokenizer=tokenizer,
        text=TextConfig("transformers", text, raw["text_token_dim"], raw["text_token_len"]), **chain,
    )  # fmt: skip


def _side(raw: dict[str, Any], key: str, source: Path) -> int:
    """A size that is one number, or the same number twice."""
    value = raw.get(key)
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise CheckpointError(f"{source / 'transformer/config.json'}: {key} is {value!r}; only squares are supported")
    return side


def _check(source: Path, raw: dict[str, Any], tokenizer: KlConfig) -> None:
    """Raise CheckpointError for models other than the four of single images."""
    file = source / "transformer" / "config.json"
    if raw.get("rotary_pos_embed") or raw.get("video_mixer_rank") or (raw.get("video_base_size") or [1])[0] != 1:
        raise CheckpointError(f"{file} describes a video model, or one with rotary positions; neither is supported")
    if not raw.get("text_token_dim"):
        raise CheckpointError(f"{file} describes a model of class labels; only text-to-image models are supported")
    side, tokens = _side(raw, "image_size", source), _side(raw, "image_base_size", source)
    if (raw.get("image_stride"), raw.get("image_dim")) != (tokenizer.stride // PATCH, tokenizer.latent_channels):
        raise CheckpointError(
            f"{file}: image_stride {raw.get('image_stride')} and image_dim {raw.get('image_dim')} do not belong to the "
            f"autoencoder, which has {tokenizer.stride // PATCH} and {tokenizer.latent_channels}"
        )
    if tokens * tokenizer.stride != side:
        raise CheckpointError(f"{file}: image_base_size {tokens} does not fit images of {side} pixels")


def _chain(file: Path) -> dict[str, Any]:
    """The fields of NovaConfig that scheduler_config.json determines."""
    raw = read_json(file)
    name = raw.get("_class_name")
    if name == "FlowMatchEulerDiscreteScheduler":
        if raw.get("use_dynamic_shifting"):
            raise CheckpointError(f"{file}: use_dynamic_shifting is not supported")
        return {"prediction": "flow", "flow_shift": float(raw.get("shift", 1.0))}
    if name != "DDPMScheduler":
        raise CheckpointError(f"{file}: scheduler {name!r} is not supported; DDPM and flow matching are")
    for key, value in DDPM_FIXED.items():
        if raw.get(key, value) != value:
            raise CheckpointError(f"{file}: {key} is {raw[key]!r}; only {value!r} is supported")
    choices = {
        "prediction_type": {"epsilon": "eps", "v_prediction": "v"},
        "variance_type": {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"},
        "beta_schedule": {name: name for name in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")},
        "timestep_spacing": {name: name for name in ("leading", "trailing", "linspace")},
    }
    found = {}
    for key, known in choices.items():
        value = raw.get(key, next(iter(known)))
        if value not in known:
            raise CheckpointError(f"{file}: {key} {value!r} is not supported; there are {', '.join(known)}")
        found[key] = known[value]
    prediction = found.pop("prediction_type")
    numbers = {key: raw[key] for key in ("beta_start", "beta_end", "steps_offset") if key in raw}
    return {"prediction": prediction, "ddpm": DdpmConfig(**found, **numbers)}  # type: ignore[arg-type]


def official_name(key: str, half: int) -> str:
    """Translate the name of a parameter of `Nova` to its key in a published file.

    backbone.second.3.attn.q.weight -> image_encoder.blocks.19.attn.qkv.weight

    Args:
        half: blocks of the first half.
    """
    part, rest = key.split(".", 1)
    module, _, leaf = rest.rpartition(".")
    if part == "head":
        if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
            return f"image_decoder.blocks.{found[1]}.{HEAD_BLOCK[found[2]]}.{leaf}"
        return f"image_decoder.{HEAD[module]}.{leaf}"
    if found := re.fullmatch(r"(context|first|second)\.(\d+)\.(.+)", module):
        stack = "video_encoder" if found[1] == "context" else "image_encoder"
        number = int(found[2]) + half * (found[1] == "second")
        return f"{stack}.blocks.{number}.{BLOCK[found[3]]}.{leaf}"
    single = {"text_fill": "text_embed.weight", "start_token": "mask_embed.bos_token"}
    return f"{BACKBONE[module]}.{leaf}" if module else single.get(leaf, f"mask_embed.{leaf}")


@torch.no_grad()
def copy_weights(model: Nova, source: ForeignWeights) -> None:
    """Fill the model from a published file.

    Raises:
        CheckpointError: names the first tensor that is missing, misshapen or left over.
    """
    for key, own in model.state_dict().items():
        own.copy_(_official_tensor(source, official_name(key, len(model.backbone.first)), key, own, model.config))
    # Reads the previous frame of a video.
    width, channels, patch = model.config.width, model.config.channels // PATCH**2, 2 * PATCH
    source.take("video_encoder.patch_embed.proj.weight", (width, channels, patch, patch))
    source.take("video_encoder.patch_embed.proj.bias", (width,))
    source.finish()


def _official_tensor(source: ForeignWeights, name: str, key: str, own: Tensor, config: NovaConfig) -> Tensor:
    if ".qkv." in name:
        width = config.width
        fused = source.take(name, (3 * width, *own.shape[1:]))  # q, k and v, stacked
        return fused[:width] if ".attn.q." in key else fused[width:]
    if name.endswith("patch_embed.proj.weight"):
        return source.take(name, (len(own), config.channels // PATCH**2, PATCH, PATCH)).flatten(1)
    if name == "text_embed.weight":
        rows = max(source.shape(name, 2)[0], len(own))
        return source.take(name, (rows, own.shape[1]))[: len(own)]
    found = source.take(name, own.shape)
    if name.startswith("image_decoder.head."):  # pixel by pixel -> channel by channel
        return found.unflatten(0, (PATCH**2, -1)).transpose(0, 1).flatten(0, 1)
    if ".norm1.proj." in name:  # scale, shift, gate -> shift, scale, gate
        scale, shift, gate = found.chunk(3)
        return torch.cat([shift, scale, gate])
    if name.startswith("image_decoder.norm.proj."):
        scale, shift = found.chunk(2)
        return torch.cat([shift, scale])
    return found


def about(config: NovaConfig) -> dict[str, Any]:
    """The `about` entry of config.json: names, licence, sampling presets."""
    flow = config.ddpm is None
    # Authors' settings: 64 steps with 25 of flow matching; DDPM needs 100 for the same quality.
    diffusion = {"low": 12, "medium": 25, "high": 25} if flow else {"low": 50, "medium": 100, "high": 100}
    steps = {"low": 32, "medium": 64, "high": 128}
    kind = "sd" if isinstance(config.tokenizer, KlConfig) and config.tokenizer.scale > 0.15 else "sdxl"
    return {
        "name": f"nova-d{config.context_depth + config.depth}w{config.width}-{kind}{config.image_size}",
        "description": f"NOVA, text to image at {config.image_size} px (Deng et al. 2024, arXiv 2412.14169)",
        **LICENCE.about(),
        "sampling": {
            "presets": {
                name: {"num_inference_steps": min(steps[name], config.tokens), "diffusion_steps": diffusion[name]}
                for name in steps
            },
            "defaults": {
                "quality": "medium", "guidance_scale": 5.0, "guidance_schedule": "constant", "temperature": 1.0,
            },
        },
    }  # fmt: skip
