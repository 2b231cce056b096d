"""Convert LlamaGen's text-to-image files to a checkpoint folder: t2i_XL_stage1_256.pt or t2i_XL_stage2_512.pt, and
vq_ds16_t2i.pt beside it.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from model.checkpoint import CheckpointError
from model.config import TextConfig
from model.conversion.discrete.parts import about, write
from model.conversion.discrete.vq_names import read_vq
from model.conversion.foreign_weights import ForeignWeights, read_foreign_weights, tensor_names
from model.conversion.options import Licence, Options
from model.discrete_config import LlamagenConfig
from model.networks.autoencoders.vqgan_tokenizer import VqganTokenizer
from model.networks.imported.prefix_causal import Llamagen

LOOKS_FOR = "a .pt or .safetensors file with the tensor cls_embedding.uncond_embedding, and vq_ds16_t2i.pt beside it"
SECTIONS = ("model", "module", "state_dict")
VQ_NAMES = ("vq_ds16_t2i.pt", "vq_ds16_t2i.safetensors")
HEAD_DIM = 64  # of all released text-to-image sizes
IMAGE_SIZES = {"256": 256, "512": 512}  # by a part of the file's name: no tensor depends on it


def recognises(source: Path) -> bool:
    """True for a file with the learned tokens of "no caption"."""
    if not source.is_file() or source.suffix not in (".pt", ".pth", ".safetensors"):
        return False
    try:
        return "cls_embedding.uncond_embedding" in tensor_names(source, *SECTIONS)
    except (CheckpointError, pickle.UnpicklingError):
        return False


def read_llamagen(source: Path, tokenizer: VqganTokenizer, options: Options) -> Llamagen:
    """Read the model; sizes come from the tensors' shapes, and the image's from the file's name.

    Raises:
        CheckpointError, ConfigError: the message names the first key, shape or size that does not fit.
    """
    weights = read_foreign_weights(source, *SECTIONS)
    codes, width = weights.shape("tok_embeddings.weight", 2)
    length, text = weights.shape("cls_embedding.uncond_embedding", 2)
    if codes != tokenizer.config.codebook:
        raise CheckpointError(f"{source} has {codes} codes, its image tokenizer {tokenizer.config.codebook}")
    if width < HEAD_DIM and not options.heads:
        raise CheckpointError(f"{source}: width {width} was never released; give the number of heads with --heads")
    size = next((size for part, size in IMAGE_SIZES.items() if part in source.stem), 256)
    model = Llamagen(LlamagenConfig(
        image_size=size * tokenizer.config.stride // 16, width=width, heads=options.heads or width // HEAD_DIM,
        depth=weights.count("layers."), feed_forward=weights.shape("layers.0.feed_forward.w1.weight", 2)[0],
        tokenizer=tokenizer.config, text=TextConfig("transformers", options.text or "google/flan-t5-xl", text, length),
    ))  # fmt: skip
    for key, own in model.state_dict().items():
        if key != "head.bias":  # the released layer has none; it starts as zero
            own.copy_(_take(weights, key.removeprefix("backbone."), own, model.config.heads))
    weights.finish("freqs_cis")
    return model


def _take(weights: ForeignWeights, key: str, own: torch.Tensor, heads: int) -> torch.Tensor:
    names = {
        "head.weight": "output.weight", "codes.weight": "tok_embeddings.weight", "norm.weight": "norm.weight",
        "caption_in.weight": "cls_embedding.cap_proj.fc1.weight", "no_caption": "cls_embedding.uncond_embedding",
        "caption_out.weight": "cls_embedding.cap_proj.fc2.weight",
    }  # fmt: skip
    if key in names:
        return weights.take(names[key], own.shape)
    _, number, part = key.split(".", 2)
    layer = f"layers.{number}"
    if part == "qkv.weight":
        q, k, v = weights.take(f"{layer}.attention.wqkv.weight", own.shape).chunk(3)
        return torch.cat([halves(q, heads), halves(k, heads), v])
    if part == "gate_up.weight":
        shape = (own.shape[0] // 2, own.shape[1])
        return torch.cat([weights.take(f"{layer}.feed_forward.{name}.weight", shape) for name in ("w1", "w3")])
    blocks = {
        "norm1.weight": "attention_norm", "norm2.weight": "ffn_norm", "out.weight": "attention.wo",
        "down.weight": "feed_forward.w2",
    }  # fmt: skip
    return weights.take(f"{layer}.{blocks[part]}.weight", own.shape)


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a head's rows from pairs of neighbours to pairs (i, i + d/2), which our rotation turns."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def find_vq(source: Path, given: Path | None) -> Path:
    """The file of the image tokenizer.

    Raises:
        CheckpointError: it was not given, and is not beside `source`.
    """
    for file in [given] if given else [source.with_name(name) for name in VQ_NAMES]:
        if file.is_file():
            return file
    raise CheckpointError(
        f"no image tokenizer beside {source}: put {VQ_NAMES[0]} into {source.parent}, or name it with --vae"
    )


def convert(source: Path, folder: Path, options: Options) -> str:
    """Write the checkpoint of a file into `folder`; return a prompt to try it with.

    Raises:
        CheckpointError, ConfigError: something does not fit.
    """
    file = find_vq(source, options.vae)
    options.report(f"reading the image tokenizer {file}")
    weights = read_foreign_weights(file, *SECTIONS)
    tokenizer = read_vq(weights, "", llamagen=True)
    weights.finish("quantize.codebook_used")
    options.report(f"reading the model {source}")
    model = read_llamagen(source, tokenizer, options)
    steps = model.config.tokens
    facts = about(
        f"llamagen-t2i-{model.config.image_size}", "LlamaGen, text to image by raster order (arXiv 2406.06525)",
        Licence("MIT", "https://huggingface.co/peizesun/llamagen_t2i"),
        {"low": steps, "medium": steps, "high": steps}, {"guidance_scale": 7.5, "top_k": 1000, "order": "raster"},
    )  # fmt: skip
    facts["sampling"]["defaults"]["top_k"] = min(1000, model.config.codebook)
    write(folder, model, tokenizer, facts, options)
    return "a blue sports car parked in front of a yellow brick wall"
