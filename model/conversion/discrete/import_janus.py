"""Convert a Janus-Pro folder to a checkpoint folder: the layout of transformers, or the original one of DeepSeek.

Only what generates images is read: the vision tower and the language model's own output layer are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from model.checkpoint import CheckpointError
from model.config import TextConfig
from model.conversion.discrete.parts import about, copy_tokenizer, read_folder, read_json, write
from model.conversion.discrete.vq_names import read_vq
from model.conversion.foreign_weights import ForeignWeights
from model.conversion.options import Licence, Options
from model.discrete_config import JanusConfig
from model.networks.autoencoders.vqgan_tokenizer import VqganTokenizer
from model.networks.imported.prefix_causal import Janus
from model.networks.text_encoder import reading

LOOKS_FOR = "a folder with config.json of model_type janus (deepseek-community) or multi_modality (deepseek-ai)"
CONDITIONS = "The use restrictions of attachment A of the DeepSeek Model License apply, and must be passed on to users."
HEAD_DIM = 128  # of both released sizes, where the config does not say the number of heads
MOST_TEXT = 512  # tokens of a prompt
UNUSED = (
    "model.vision_model.", "model.aligner.", "lm_head.", "vision_model.", "aligner.", "language_model.lm_head.",
    "gen_vision_model.quantize.codebook_used", "model.vqmodel.quantize.codebook_used",
)  # fmt: skip
#: Names of the parameters of `Janus` in transformers, and in DeepSeek's files.
TRANSFORMERS = {
    "words": "model.language_model.embed_tokens", "norm": "model.language_model.norm",
    "layers": "model.language_model.layers", "codes": "model.generation_embeddings",
    "aligner.0": "model.generation_aligner.fc1", "aligner": "model.generation_aligner.hidden_layers",
    "head_in": "model.generation_head.proj_out", "head": "model.generation_head.vision_head", "vq": "model.vqmodel.",
}  # fmt: skip
ORIGINAL = {
    "words": "language_model.model.embed_tokens", "norm": "language_model.model.norm",
    "layers": "language_model.model.layers", "codes": "gen_embed", "aligner.0": "gen_aligner.layers.0",
    "aligner": "gen_aligner.layers", "head_in": "gen_head.output_mlp_projector", "head": "gen_head.vision_head",
    "vq": "gen_vision_model.",
}  # fmt: skip


def recognises(source: Path) -> bool:
    """True for a folder whose config.json is Janus's, in either layout."""
    try:
        kind = read_json(source / "config.json").get("model_type")
    except CheckpointError:
        return False
    return kind in ("janus", "multi_modality")


def read_janus(source: Path) -> tuple[Janus, VqganTokenizer]:
    """Read model and image tokenizer; sizes come from the tensors' shapes, and the rest from the JSON files.

    Raises:
        CheckpointError, ConfigError: the message names the first key, shape or size that does not fit.
    """
    weights = read_folder(source)
    original = "gen_embed.weight" in weights
    names = ORIGINAL if original else TRANSFORMERS
    tokenizer = read_vq(weights, names["vq"], llamagen=original)
    model = Janus(janus_config(source, weights, names, tokenizer))
    state = model.state_dict()
    for key, own in state.items():
        if key.startswith("head."):
            own.copy_(weights.take(f"{names['head']}.{key.removeprefix('head.')}", own.shape))
        else:
            own.copy_(_take(weights, names, key.removeprefix("backbone."), own, original))
    weights.finish(UNUSED)
    return model, tokenizer


def _take(weights: ForeignWeights, names: dict[str, str], key: str, own: torch.Tensor, original: bool) -> torch.Tensor:
    """A parameter of the backbone; fused ones are put together."""
    if key.startswith("blocks."):
        _, number, part = key.split(".", 2)
        return take_block(weights, f"{names['layers']}.{number}", part, own)
    if key.startswith("aligner.") and not key.startswith("aligner.0."):
        index = int(key.split(".")[1])  # in a sequence with an activation before each layer
        place = index if original else index // 2 - 1
        return weights.take(f"{names['aligner']}.{place}.{key.rsplit('.', 1)[1]}", own.shape)
    module, leaf = key.rsplit(".", 1)
    return weights.take(f"{names[module]}.{leaf}", own.shape)


def take_block(weights: ForeignWeights, layer: str, part: str, own: torch.Tensor) -> torch.Tensor:
    """A parameter of a LlamaBlock from transformers' names."""
    several = {
        "qkv.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "gate_up.weight": ("mlp.gate_proj", "mlp.up_proj"),
    }  # fmt: skip
    single = {
        "norm1.weight": "input_layernorm", "norm2.weight": "post_attention_layernorm", "out.weight": "self_attn.o_proj",
        "down.weight": "mlp.down_proj",
    }  # fmt: skip
    if part in single:
        return weights.take(f"{layer}.{single[part]}.weight", own.shape)
    shape = (own.shape[0] // len(several[part]), own.shape[1])
    return torch.cat([weights.take(f"{layer}.{name}.weight", shape) for name in several[part]])


def janus_config(
    source: Path, weights: ForeignWeights, names: dict[str, str], tokenizer: VqganTokenizer
) -> JanusConfig:
    """The sizes of a folder.

    Raises:
        CheckpointError: a file or tensor is missing.
        ConfigError: the parts do not fit together.
    """
    raw = read_json(source / "config.json")
    text = raw.get("text_config") or raw.get("language_config") or {}
    vocabulary, width = weights.shape(f"{names['words']}.weight", 2)
    if text.get("num_key_value_heads", text.get("num_attention_heads")) != text.get("num_attention_heads"):
        raise CheckpointError(f"{source / 'config.json'}: grouped key and value heads are not supported")
    image = raw.get("vq_config", {}).get("num_patches", 24) * tokenizer.config.stride
    special = special_tokens(source)
    pairs = [key for key in weights.names() if re.fullmatch(re.escape(names["aligner"]) + r"\.\d+\.weight", key)]
    aligner_layers = len(pairs) + (0 if names is ORIGINAL else 1)
    rope = text.get("rope_parameters") or {}
    return JanusConfig(
        image_size=image, width=width, heads=text.get("num_attention_heads", width // HEAD_DIM),
        depth=weights.count(f"{names['layers']}."),
        feed_forward=weights.shape(f"{names['layers']}.0.mlp.gate_proj.weight", 2)[0],
        norm_eps=text.get("rms_norm_eps", 1e-6), rope_base=float(text.get("rope_theta") or rope.get("rope_theta", 1e4)),
        vocabulary=vocabulary, aligner_layers=aligner_layers,
        image_head=weights.shape(f"{names['head_in']}.weight", 2)[0], tokenizer=tokenizer.config,
        text=TextConfig("tokenizer", "tokenizer", width, MOST_TEXT), bos_token=special["bos_token"],
        pad_token=special["pad_token"], boi_token=special["boi_token"],
    )  # fmt: skip


def special_tokens(source: Path) -> dict[str, int]:
    """Ids of the first token, of the padding, and of "begin of image": from generation_config.json if it has them,
    else from the tokenizer.

    Raises:
        CheckpointError: the tokenizer lacks one. ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        found = read_json(source / "generation_config.json")
        extra = found.get("generation_kwargs", {})
        return {
            "bos_token": int(found["bos_token_id"]), "pad_token": int(found["pad_token_id"]),
            "boi_token": int(extra["boi_token_id"]),
        }  # fmt: skip
    except (CheckpointError, KeyError, TypeError, ValueError):
        pass  # the tokenizer knows them
    with reading(f"tokenizer {str(source)!r}"):
        words = AutoTokenizer.from_pretrained(str(source)).get_vocab()
    tokens = {
        "bos_token": "<｜begin▁of▁sentence｜>", "pad_token": "<｜▁pad▁｜>", "boi_token": "<begin_of_image>",
    }  # fmt: skip
    for token in tokens.values():
        if token not in words:
            raise CheckpointError(f"{source}: the tokenizer has no token {token!r}, and generation_config.json no id")
    return {name: words[token] for name, token in tokens.items()}


def convert(source: Path, folder: Path, options: Options) -> str:
    """Write the checkpoint of a folder into `folder`; return a prompt to try it with.

    Raises:
        CheckpointError, ConfigError: something does not fit.
    """
    options.report(f"reading {source}")
    model, tokenizer = read_janus(source)
    copy_tokenizer(source, folder / "tokenizer")
    size = {2048: "1b", 4096: "7b"}.get(model.config.width, str(model.config.width))
    steps = model.config.tokens
    facts = about(
        f"janus-pro-{size}", "Janus-Pro's image generator, text to image (arXiv 2501.17811)",
        Licence("DeepSeek Model License", f"https://huggingface.co/deepseek-ai/Janus-Pro-{size.upper()}", CONDITIONS),
        {"low": steps, "medium": steps, "high": steps}, {"guidance_scale": 5.0, "order": "raster"},
    )  # fmt: skip
    write(folder, model, tokenizer, facts, options)
    return "a photo of a red fox in the snow"
