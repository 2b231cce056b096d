"""Convert official MAR weights (a torch .pth, or the safetensors mirror) to a checkpoint folder.

    fluid import checkpoint-last.pth mar-b            with the autoencoder kl16.ckpt beside it
    fluid import mar-large.safetensors mar-l --vae kl16.safetensors

Sizes are read from the shapes of the tensors. Every tensor must fit and none may be left over, so a truncated file, or
one of another model, is an error that names the first key that does not fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoint import CheckpointError, save_checkpoint
from model.config import KlConfig, MarConfig
from model.conversion.foreign_weights import ForeignWeights, read_foreign_weights, tensor_names
from model.conversion.ldm_names import ldm_name
from model.conversion.options import Licence, Options
from model.inference.prompts import imagenet_labels
from model.networks.autoencoders.kl_tokenizer import KlTokenizer
from model.networks.mar import Mar

# Width -> attention heads, the one size that shapes do not reveal.
HEADS = {768: 12, 1024: 16, 1280: 16}
NAMES = {768: "mar-b", 1024: "mar-l", 1280: "mar-h"}
# Width -> guidance scale of the paper's evaluations, with the linear schedule (Appendix B of arXiv 2406.11838).
GUIDANCE = {768: 2.9, 1024: 3.0, 1280: 3.2}
LOOKS_FOR = "an official .pth or .safetensors file of MAR, with the tensor diffloss.net.input_proj.weight"
LICENCE = Licence("MIT", "https://github.com/LTH14/mar")
SECTIONS = ("model_ema", "model", "module", "state_dict")  # of torch files, other kinds' among them
VAE_NAMES = ("kl16.ckpt", "kl16.safetensors")

BLOCK = {
    "norm1": "norm1", "norm2": "norm2", "attn.out": "attn.proj", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2",
    "attn.q": "attn.qkv", "attn.kv": "attn.qkv",
}  # fmt: skip
BACKBONE = {
    "classes.weight": "class_emb.weight", "no_class": "fake_latent", "mask_token": "mask_token",
    "encoder_pos": "encoder_pos_embed_learned", "decoder_pos": "decoder_pos_embed_learned",
    "pos_out": "diffusion_pos_embed_learned", "token_in": "z_proj", "norm_in": "z_proj_ln",
    "encoder_norm": "encoder_norm", "decoder_in": "decoder_embed", "decoder_norm": "decoder_norm",
}  # fmt: skip
HEAD = {
    "time.0": "time_embed.mlp.0", "time.2": "time_embed.mlp.2", "condition": "cond_embed", "token_in": "input_proj",
    "final_modulation": "final_layer.adaLN_modulation.1", "out": "final_layer.linear",
}  # fmt: skip
HEAD_BLOCK = {"norm": "in_ln", "mlp.0": "mlp.0", "mlp.2": "mlp.2", "modulation": "adaLN_modulation.1"}


def official_name(key: str) -> str:
    """Translate the name of a parameter of `Mar` to its key in an official file.

    backbone.encoder.3.attn.q.weight -> encoder_blocks.3.attn.qkv.weight
    """
    part, rest = key.split(".", 1)
    if part == "head":
        if rest.startswith("blocks."):
            _, number, inner = rest.split(".", 2)
            return f"diffloss.net.res_blocks.{number}.{_renamed(inner, HEAD_BLOCK)}"
        return f"diffloss.net.{_renamed(rest, HEAD)}"
    stack, _, inner = rest.partition(".")
    if stack in ("encoder", "decoder"):
        number, inner = inner.split(".", 1)
        return f"{stack}_blocks.{number}.{_renamed(inner, BLOCK)}"
    return _renamed(rest, BACKBONE)


def _renamed(key: str, table: dict[str, str]) -> str:
    """Look up the whole key, or its module with the leaf (weight, bias) kept."""
    if key in table:
        return table[key]
    module, _, leaf = key.rpartition(".")
    return f"{table[module]}.{leaf}"


def mar_config(source: ForeignWeights, tokenizer: KlConfig, heads: int | None) -> MarConfig:
    """Derive the sizes of the model from the shapes of its tensors.

    Raises:
        CheckpointError: a tensor is missing, or the number of heads is unknown.
    """
    width, channels = source.shape("z_proj.weight", 2)
    heads = heads or HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"{source.file}: width {width} is not one of the released sizes {sorted(HEADS)}; give the number of "
            "attention heads with --heads"
        )
    if channels != tokenizer.channels:
        raise CheckpointError(
            f"{source.file}: tokens have {channels} channels, those of the autoencoder {tokenizer.channels}; they do "
            "not belong together"
        )
    tokens = source.shape("diffusion_pos_embed_learned", 3)[1]
    length = source.shape("encoder_pos_embed_learned", 3)[1]
    return MarConfig(
        image_size=round(tokens**0.5) * tokenizer.stride, width=width, heads=heads,
        encoder_depth=source.count("encoder_blocks."), decoder_depth=source.count("decoder_blocks."),
        buffer=length - tokens, classes=source.shape("class_emb.weight", 2)[0],
        head_width=source.shape("diffloss.net.input_proj.weight", 2)[0],
        head_depth=source.count("diffloss.net.res_blocks."), tokenizer=tokenizer,
    )  # fmt: skip


def kl_config(source: ForeignWeights) -> KlConfig:
    """Derive the sizes of the autoencoder from the shapes of its tensors.

    Raises:
        CheckpointError: a tensor is missing.
    """
    levels, layers = source.count("encoder.down."), source.count("encoder.down.0.block.")
    widths = tuple(source.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels))
    return KlConfig(
        widths=widths, layers=layers, latent_channels=source.shape("post_quant_conv.weight", 4)[0],
        attention=f"encoder.down.{levels - 1}.attn.0.q.weight" in source,
    )  # fmt: skip


def read_mar(file: Path, tokenizer: KlConfig, heads: int | None = None) -> Mar:
    """Read the model from an official file, with its averaged weights (`model_ema`) if it has both kinds.

    Raises:
        CheckpointError: the file is not a MAR checkpoint; the message names the first key or shape that does not fit.
    """
    source = read_foreign_weights(file, "model_ema")
    model = Mar(mar_config(source, tokenizer, heads))
    for key, own in model.state_dict().items():  # detached, so that autograd does not record the copy
        own.copy_(_official_tensor(source, key, own))
    source.finish()
    return model


def _official_tensor(source: ForeignWeights, key: str, own: Tensor) -> Tensor:
    name = official_name(key)
    if ".qkv." not in name:
        return source.take(name, own.shape)
    width = own.shape[0] if ".attn.q." in key else own.shape[0] // 2
    fused = source.take(name, (3 * width, *own.shape[1:]))  # q, k and v, stacked
    return fused[:width] if ".attn.q." in key else fused[width:]


def read_kl(file: Path) -> KlTokenizer:
    """Read an autoencoder in the layout of latent diffusion.

    Raises:
        CheckpointError: the file is not an autoencoder; the message names the first key or shape that does not fit.
    """
    return kl_from(read_foreign_weights(file, "model", "state_dict"))


def kl_from(source: ForeignWeights) -> KlTokenizer:
    """The same, of weights that are read."""
    tokenizer = KlTokenizer(kl_config(source))
    levels = len(tokenizer.config.widths)
    for key, own in tokenizer.vae.state_dict().items():
        name = ldm_name(key, levels)
        projection = name.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight"))
        shape = (*own.shape, 1, 1) if projection else own.shape  # 1×1 convolutions in latent diffusion
        own.copy_(source.take(name, shape).view(own.shape))
    source.finish(ignore="loss.")  # some files hold the discriminator of its training
    return tokenizer


def find_vae(source: Path) -> Path:
    """Find kl16 beside the checkpoint, or where the official download puts it.

    Raises:
        CheckpointError: it is in neither place.
    """
    for folder in (source.parent, source.parent.parent.parent / "vae"):
        for name in VAE_NAMES:
            if (folder / name).is_file():
                return folder / name
    raise CheckpointError(
        f"no autoencoder beside {source}: put {' or '.join(VAE_NAMES)} into {source.parent}, or name it with --vae"
    )


def about(model: Mar) -> dict[str, Any]:
    """The `about` entry of config.json: names, licence, labels, sampling presets."""
    width, classes = model.config.width, model.config.classes
    steps = {"low": (32, 50), "medium": (64, 100), "high": (256, 100)}
    return {
        "name": NAMES.get(width, f"mar-{width}"),
        "description": "MAR, class-conditional on ImageNet at 256 px (Li et al. 2024, arXiv 2406.11838)",
        **LICENCE.about(),
        "data": {"name": "ImageNet-1k", "url": "https://image-net.org"},
        "labels": imagenet_labels() if classes == 1000 else [f"class {i}" for i in range(classes)],
        "sampling": {
            "presets": {
                name: {"num_inference_steps": min(ar, model.config.tokens), "diffusion_steps": diffusion}
                for name, (ar, diffusion) in steps.items()
            },
            "defaults": {
                "quality": "medium", "guidance_scale": GUIDANCE.get(width, 3.0), "guidance_schedule": "linear",
                "temperature": 1.0,
            },
        },
    }  # fmt: skip


def recognises(source: Path) -> bool:
    """True for a file with the parameters of MAR's diffusion head."""
    return source.is_file() and "diffloss.net.input_proj.weight" in tensor_names(source, *SECTIONS)


def convert(source: Path, folder: Path, options: Options) -> str:
    """Write the checkpoint of an official file into `folder`; return a prompt to try it with.

    Raises:
        CheckpointError, ConfigError: something does not fit.
    """
    vae = options.vae or find_vae(source)
    options.report(f"reading the autoencoder {vae}")
    tokenizer = read_kl(vae)
    options.report(f"reading the model {source}")
    model = read_mar(source, tokenizer.config, options.heads)
    size = sum(p.numel() for p in (*model.parameters(), *tokenizer.parameters()))
    options.report(f"writing {about(model)['name']}, {size / 1e6:.1f}M parameters with the autoencoder")
    save_checkpoint(folder, model, tokenizer, about(model), options.dtype)
    return "golden retriever"
