"""Sizes of the imported families of discrete tokens: aMUSEd, Meissonic (random order); Janus, LlamaGen (raster)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.config import AnyTokenizerConfig, ConfigError, ModelConfig, TextConfig, VqganConfig

VQ_F16 = VqganConfig(
    widths=(128, 256, 256, 512, 768), latent_channels=64, channels=64, codebook=8192, middle_attention=False,
    unit_pixels=True,
)  # fmt: skip
VQ_LLAMAGEN = VqganConfig(
    widths=(128, 128, 256, 256, 512), latent_channels=256, channels=8, codebook=16384, encoder_attention=(4,),
    decoder_attention=(0,),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(ModelConfig):
    """What aMUSEd and Meissonic share: CLIP's text states and pooled embedding, micro-conditioning, a mask token.

    Attributes:
        vocabulary: entries of the embedding table; more than the codebook, for the mask token.
        mask_token: its entry.
        halved: the transformer runs at half the grid's resolution.
        pooled: dimension of the pooled text embedding.
        aesthetic_score: the value of the micro-conditioning that the pipelines set to 6.
    """

    head: Literal["diffusion", "categorical"] = "categorical"
    unmasking: Literal["maskgit", "amused"] = "amused"
    vocabulary: int = 8256
    mask_token: int = 8255
    halved: bool = False
    pooled: int = 768
    aesthetic_score: int = 6
    tokenizer: AnyTokenizerConfig = VQ_F16
    text: TextConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.system != "random-discrete":
            raise ConfigError(f"family {self.family!r} has head categorical and order random, not {self.system}")
        if not self.codebook <= self.mask_token < self.vocabulary:
            raise ConfigError(
                f"mask_token {self.mask_token} is not between the codebook's {self.codebook} codes and the "
                f"vocabulary's {self.vocabulary} entries"
            )
        if self.halved and self.grid % 2:
            raise ConfigError(f"a grid of {self.grid} tokens a side cannot be halved; image_size must give an even one")


@dataclass(frozen=True, kw_only=True)
class AmusedConfig(MaskedConfig):
    """The family `amused` (arXiv 2401.01808): the module is diffusers' UVit2DModel; the defaults are amused-256's.

    Attributes:
        feed_forward: hidden width of the transformer's MLPs.
        block_width, block_heads, block_layers: of the convolutional ends.
        embedding: width of a token's embedding, and of z.
    """

    depth: int = 22
    feed_forward: int = 2816
    embedding: int = 768
    block_width: int = 768
    block_heads: int = 12
    block_layers: int = 3
    text: TextConfig = field(default_factory=lambda: TextConfig("clip", "text_encoder", 768, 77))
    family: Literal["amused"] = "amused"


@dataclass(frozen=True, kw_only=True)
class MeissonicConfig(MaskedConfig):
    """The family `meissonic` (arXiv 2410.08261): diffusers' Flux blocks in a masked image model; also Monetico.

    Attributes:
        double_depth, single_depth: blocks with separate weights for text and image, then blocks with shared ones.
        axes: channels of a head that rotate by text position (always 0), row and column.
    """

    image_size: int = 1024
    heads: int = 8
    halved: bool = True
    pooled: int = 1024
    double_depth: int = 14
    single_depth: int = 28
    axes: tuple[int, int, int] = (16, 56, 56)
    text: TextConfig = field(default_factory=lambda: TextConfig("clip", "text_encoder", 1024, 77))
    family: Literal["meissonic"] = "meissonic"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "axes", tuple(self.axes))  # a list after a round trip through JSON
        if sum(self.axes) != self.head_dim:
            raise ConfigError(f"axes {list(self.axes)} rotate {sum(self.axes)} channels; a head has {self.head_dim}")
        if self.pooled != self.width:
            raise ConfigError(f"pooled {self.pooled} must equal width {self.width}: their embeddings are added")


@dataclass(frozen=True, kw_only=True)
class PrefixConfig(ModelConfig):
    """What Janus and LlamaGen share: a causal Llama whose first positions are the prompt.

    Attributes:
        feed_forward: hidden width of the MLPs (SwiGLU).
        norm_eps: of the RMS norms.
    """

    head: Literal["diffusion", "categorical"] = "categorical"
    order: Literal["random", "raster"] = "raster"
    depth: int = 24
    feed_forward: int = 5632
    norm_eps: float = 1e-6
    tokenizer: AnyTokenizerConfig = VQ_LLAMAGEN
    text: TextConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.system != "raster-discrete":
            raise ConfigError(f"family {self.family!r} has head categorical and order raster, not {self.system}")


@dataclass(frozen=True, kw_only=True)
class JanusConfig(PrefixConfig):
    """The image generator of Janus-Pro (arXiv 2501.17811); the defaults are the 1B model's.

    Attributes:
        vocabulary: of the language model.
        image_head: width of the hidden layer between the language model and the logits.
        aligner_layers: linear layers between a code's vector and the language model.
        rope_base: of the rotary positions.
        template: what the language model reads between the first and the last token of the prompt.
        bos_token, pad_token, boi_token: that first token, the one that stands for no prompt, and "begin of image".
    """

    image_size: int = 384
    width: int = 2048
    vocabulary: int = 102400
    aligner_layers: int = 2
    image_head: int = 2048
    rope_base: float = 10000.0
    template: str = "<|User|>: {prompt}\n\n<|Assistant|>:"
    bos_token: int = 100000
    pad_token: int = 100015
    boi_token: int = 100003
    # No encoder: the language model reads the prompt's tokens, with the tokenizer of this folder.
    text: TextConfig = field(default_factory=lambda: TextConfig("tokenizer", "tokenizer", 2048, 512))
    family: Literal["janus"] = "janus"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bos_token", "pad_token", "boi_token"):
            if not 0 <= getattr(self, name) < self.vocabulary:
                raise ConfigError(f"{name} {getattr(self, name)} is not in the vocabulary of {self.vocabulary} tokens")
        if self.template.count("{prompt}") != 1:
            raise ConfigError(f"template {self.template!r} must have one place for the prompt, {{prompt}}")


@dataclass(frozen=True, kw_only=True)
class LlamagenConfig(PrefixConfig):
    """LlamaGen's text-to-image models (arXiv 2406.06525); the defaults are those of stage 1 at 256 px."""

    width: int = 1280
    heads: int = 20
    depth: int = 36
    feed_forward: int = 3584
    norm_eps: float = 1e-5
    text: TextConfig = field(default_factory=lambda: TextConfig("transformers", "google/flan-t5-xl", 2048, 120))
    family: Literal["llamagen"] = "llamagen"
