"""Key names of a KL autoencoder, translated from those of diffusers to those of the latent diffusion code."""

from __future__ import annotations

import re

_MODULES = {
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "group_norm": "norm",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip


def ldm_name(key: str, levels: int) -> str:
    """Translate one key. levels: number of resolutions, the length of the config's `widths`.

    decoder.up_blocks.0.resnets.2.conv1.weight -> decoder.up.4.block.2.conv1.weight, for 5 levels: diffusers
    numbers the decoder's levels in the order they run, latent diffusion from fine to coarse.
    """
    key = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key)
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
    key = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1")
    key = key.replace(".resnets.", ".block.").replace(".attentions.", ".attn.")
    key = key.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    for ours, theirs in _MODULES.items():
        key = key.replace(f".{ours}.", f".{theirs}.")
    return key
