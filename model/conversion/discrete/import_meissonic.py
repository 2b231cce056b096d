"""Convert a pipeline folder of Meissonic (1024 px) or Monetico (512 px) to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from model.config import TextConfig
from model.conversion.diffusers_folders import component_class, read_json
from model.conversion.discrete.parts import about, copy_clip, read_mask_token, read_masked, sized, write
from model.conversion.options import Licence, Options
from model.discrete_config import MeissonicConfig
from model.networks.autoencoders.vqgan_tokenizer import VqganTokenizer
from model.networks.imported.meissonic import Meissonic

#: Keys of the transformer's config.json, with the defaults of the released class.
SIZES = {
    "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "axes_dims_rope": (16, 56, 56), "vocab_size": 8256,
    "codebook_size": 8192, "downsample": False, "upsample": False,
    "in_channels": 64,  # without effect
}  # fmt: skip
FIXED = {"patch_size": 1, "guidance_embeds": False}
LOOKS_FOR = "a pipeline folder with transformer/config.json of Meissonic's Transformer2DModel (it has a codebook_size)"
GRIDS = {True: 64, False: 32}  # tokens on a side, by `downsample`; the config does not say it


def recognises(source: Path) -> bool:
    """True for a folder whose transformer is Meissonic's Transformer2DModel, which has a codebook unlike diffusers'."""
    file = source / "transformer" / "config.json"
    return component_class(source / "transformer") == "Transformer2DModel" and "codebook_size" in read_json(file)


def meissonic_config(source: Path, tokenizer: VqganTokenizer) -> MeissonicConfig:
    """The sizes of a pipeline folder.

    Raises:
        CheckpointError: a file is missing, or describes what is not supported.
        ConfigError: the parts do not fit together.
    """
    file = source / "transformer" / "config.json"
    raw = sized(read_json(file), SIZES, FIXED, file)
    return MeissonicConfig(
        image_size=GRIDS[raw["downsample"]] * tokenizer.config.stride,
        width=raw["num_attention_heads"] * raw["attention_head_dim"], heads=raw["num_attention_heads"],
        double_depth=raw["num_layers"], single_depth=raw["num_single_layers"], axes=tuple(raw["axes_dims_rope"]),
        halved=raw["downsample"], vocabulary=raw["vocab_size"], mask_token=read_mask_token(source),
        pooled=raw["pooled_projection_dim"], tokenizer=tokenizer.config,
        text=TextConfig("clip", "text_encoder", raw["joint_attention_dim"], 77),
    )  # fmt: skip


def convert(source: Path, folder: Path, options: Options) -> str:
    """Write the checkpoint of a pipeline folder into `folder`; return a prompt to try it with.

    Raises:
        CheckpointError, ConfigError: something does not fit.
    """
    options.report(f"reading {source}")
    model, tokenizer = read_masked(source, meissonic_config, Meissonic, "backbone.")
    config = model.config
    copy_clip(source, folder, (config.text.dim, config.pooled), options.encoder_dtype)
    name, publisher = ("meissonic", "MeissonFlow/Meissonic") if config.halved else ("monetico", "Collov-Labs/Monetico")
    facts = about(
        f"{name}-{config.image_size}", "Masked image model of Flux blocks, text to image (arXiv 2410.08261)",
        Licence("Apache-2.0", f"https://huggingface.co/{publisher}"),
        {quality: min(steps, config.tokens) for quality, steps in {"low": 32, "medium": 48, "high": 64}.items()},
        {"guidance_scale": 9.0, "order": "confidence"},
    )  # fmt: skip
    write(folder, model, tokenizer, facts, options)
    return "a racoon in a suit, oil painting"
