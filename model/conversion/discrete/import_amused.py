"""Convert an aMUSEd pipeline folder (amused/amused-256, amused/amused-512) to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from model.config import TextConfig
from model.conversion.diffusers_folders import component_class, read_json
from model.conversion.discrete.parts import about, copy_clip, read_mask_token, read_masked, sized, write
from model.conversion.options import Licence, Options
from model.discrete_config import AmusedConfig
from model.networks.autoencoders.vqgan_tokenizer import VqganTokenizer
from model.networks.imported.amused import Amused

#: Keys of UVit2DModel's config.json, with diffusers' defaults.
SIZES = {
    "hidden_size": 1024, "cond_embed_dim": 768, "encoder_hidden_size": 768, "vocab_size": 8256, "codebook_size": 8192,
    "in_channels": 768, "block_out_channels": 768, "num_res_blocks": 3, "downsample": False, "upsample": False,
    "block_num_heads": 12, "num_hidden_layers": 22, "num_attention_heads": 16, "intermediate_size": 2816,
    "sample_size": 64, "hidden_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
FIXED = {
    "use_bias": False, "micro_cond_encode_dim": 256, "micro_cond_embed_dim": 1280, "layer_norm_eps": 1e-6,
    "ln_elementwise_affine": True,
}  # fmt: skip
LOOKS_FOR = "a pipeline folder with transformer/config.json of UVit2DModel, vqvae, text_encoder, tokenizer, scheduler"
CONDITIONS = "The use restrictions of attachment A of the Open RAIL++-M licence apply, and must be passed on to users."


def recognises(source: Path) -> bool:
    """True for a folder whose transformer is diffusers' UVit2DModel."""
    return component_class(source / "transformer") == "UVit2DModel"


def amused_config(source: Path, tokenizer: VqganTokenizer) -> AmusedConfig:
    """The sizes of a pipeline folder.

    Raises:
        CheckpointError: a file is missing, or describes what is not supported.
        ConfigError: the parts do not fit together.
    """
    file = source / "transformer" / "config.json"
    raw = sized(read_json(file), SIZES, FIXED, file)
    return AmusedConfig(
        image_size=raw["sample_size"] * tokenizer.config.stride, width=raw["hidden_size"],
        heads=raw["num_attention_heads"], depth=raw["num_hidden_layers"], feed_forward=raw["intermediate_size"],
        embedding=raw["in_channels"], block_width=raw["block_out_channels"], block_heads=raw["block_num_heads"],
        block_layers=raw["num_res_blocks"], halved=raw["downsample"], vocabulary=raw["vocab_size"],
        mask_token=read_mask_token(source), pooled=raw["cond_embed_dim"], tokenizer=tokenizer.config,
        text=TextConfig("clip", "text_encoder", raw["encoder_hidden_size"], 77),
    )  # fmt: skip


def convert(source: Path, folder: Path, options: Options) -> str:
    """Write the checkpoint of a pipeline folder into `folder`; return a prompt to try it with.

    Raises:
        CheckpointError, ConfigError: something does not fit.
    """
    options.report(f"reading {source}")
    model, tokenizer = read_masked(source, amused_config, Amused, "backbone.net.")
    config = model.config
    copy_clip(source, folder, (config.text.dim, config.pooled), options.encoder_dtype)
    name = f"amused-{config.image_size}"
    facts = about(
        name, "aMUSEd, text to image by masked tokens (arXiv 2401.01808)",
        Licence("openrail++", f"https://huggingface.co/amused/{name}", CONDITIONS),
        {quality: min(steps, config.tokens) for quality, steps in {"low": 8, "medium": 12, "high": 24}.items()},
        {"guidance_scale": 10.0, "order": "confidence"},
    )  # fmt: skip
    write(folder, model, tokenizer, facts, options)
    return "a photo of an astronaut riding a horse"
