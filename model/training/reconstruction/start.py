"""Start of a tokenizer's training: from PCA, and for a codebook from clusters of its latents."""

from __future__ import annotations

import torch
from torch import Tensor

from model.networks.tokenizer import PcaSkipTokenizer
from model.networks.vq_tokenizer import VqTokenizer

CLUSTERED = 16384  # latents that a codebook's clusters are of; all would cost memory: latents × codes distances at once


def start_from_pca(tokenizer: PcaSkipTokenizer | VqTokenizer, pixels: Tensor) -> None:
    """Set an untrained tokenizer to the principal components of (B, 3 or 4, H, W) pixels."""
    if isinstance(tokenizer, PcaSkipTokenizer):
        tokenizer.start_from_pca(pixels)
        return
    tokenizer.autoencoder.start_from_pca(pixels)
    tokenizer.autoencoder.fit_normalisation(pixels)  # before the codes, which depend on it
    with torch.no_grad():
        latents = torch.cat([tokenizer.autoencoder.encode(part) for part in pixels.split(128)]).flatten(0, 1)
        chosen = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))[:CLUSTERED]
        tokenizer.train().quantize(latents[chosen][None])


def decoder_names(tokenizer: PcaSkipTokenizer | VqTokenizer) -> set[str]:
    """Names of the parameters on which no token depends."""
    prefix = "autoencoder." if isinstance(tokenizer, VqTokenizer) else ""
    encoder = (f"{prefix}analysis.", f"{prefix}f.")
    return {name for name, _ in tokenizer.named_parameters() if not name.startswith(encoder)}


def freeze_encoder(tokenizer: PcaSkipTokenizer | VqTokenizer) -> None:
    """Leave only the decoder to train, so that models of the tokens keep fitting."""
    decoder = decoder_names(tokenizer)
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(name in decoder)
    if isinstance(tokenizer, VqTokenizer):
        tokenizer.quantizer.eval()  # its codebook moves in training mode only
