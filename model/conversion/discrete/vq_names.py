"""LlamaGen's image tokenizer, which Janus-Pro has too, as diffusers' VQModel: the same network under other names.

    diffusers           encoder.down_blocks.0.resnets.1   encoder.mid_block.attentions.0   decoder.up_blocks.0.resnets.1
    latent diffusion    encoder.down.0.block.1            encoder.mid.attn_1               decoder.up.4.block.1
    LlamaGen            encoder.conv_blocks.0.res.1       encoder.mid.1                    decoder.conv_blocks.0.res.1
    transformers        encoder.down.0.block.1            encoder.mid.attn_1               decoder.up.0.block.1

Codes are compared and decoded as unit vectors there; here the table itself is normalised, which gives the same nearest
codes and the same pixels.
"""

from __future__ import annotations

import re

import torch.nn.functional as F

from model.config import VqganConfig
from model.conversion.foreign_weights import ForeignWeights
from model.conversion.ldm_names import ldm_name
from model.networks.autoencoders.vqgan_tokenizer import VqganTokenizer

_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}


def official_name(key: str, levels: int, llamagen: bool) -> str:
    """The name of a parameter of VQModel in LlamaGen's files, or in transformers' of Janus."""
    if key.startswith("quant"):
        return key
    name = ldm_name(key, levels)
    # Both number the decoder's levels as they run, latent diffusion from fine to coarse.
    name = re.sub(r"decoder\.up\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", name)
    if not llamagen:
        return name
    name = re.sub(r"\.(down|up)\.(\d+)\.block\.", r".conv_blocks.\2.res.", name)
    name = re.sub(r"\.(down|up)\.(\d+)\.", r".conv_blocks.\2.", name)
    return re.sub(r"\.mid\.(block_1|attn_1|block_2)\.", lambda found: f".mid.{_MIDDLE[found[1]]}.", name)


def read_vq(source: ForeignWeights, prefix: str, llamagen: bool) -> VqganTokenizer:
    """The image tokenizer, with sizes from the tensors' shapes. llamagen: the names are LlamaGen's, not transformers'.

    Raises:
        CheckpointError: names the first key or shape that does not fit.
    """
    levels, blocks = (f"{prefix}encoder.conv_blocks.", "res") if llamagen else (f"{prefix}encoder.down.", "block")
    count = source.count(levels)
    layers = source.count(f"{levels}0.{blocks}.")
    widths = tuple(source.shape(f"{levels}{i}.{blocks}.{layers - 1}.conv2.weight", 4)[0] for i in range(count))
    channels, latent = source.shape(f"{prefix}quant_conv.weight", 4)[:2]
    tokenizer = VqganTokenizer(VqganConfig(
        widths=widths, layers=layers, latent_channels=latent, channels=channels,
        codebook=source.shape(f"{prefix}quantize.embedding.weight", 2)[0], encoder_attention=(count - 1,),
        decoder_attention=(0,),
    ))  # fmt: skip
    for key, own in tokenizer.vq.state_dict().items():
        name = prefix + official_name(key, count, llamagen)
        projection = own.ndim == 2 and ".attentions." in key
        own.copy_(source.take(name, (*own.shape, 1, 1) if projection else own.shape).view(own.shape))
    table = tokenizer.vq.quantize.embedding.weight
    table.data = F.normalize(table.data, dim=-1)
    return tokenizer
