"""Memory that a worker on a GPU needs for a preset, by count: no weights are loaded and no GPU is asked.

Shapes are those of the classes in networks/, dtypes those of bfloat16 serving: the backbone's products in bfloat16, the
head's weights in float32 (module, stacked, and the modulation of exact first steps) and again in bfloat16. With int8
the backbone's linear layers take a byte a value. What libraries keep for themselves, about a gigabyte, is in RESERVED.

Peaks of 64 rows on an H200, beside this count without RESERVED and what those runs had not (text encoder, autoencoder,
cached conditions), in GiB: MAR-B 1.6 and 1.4, 369M 2.2 and 2.1, MAR-H 5.4 and 4.4, 3.1B 10.0 and 10.5. RESERVED covers
the missing fifth of MAR-H.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import FluidConfig, KlConfig, MarConfig, ModelConfig, NovaConfig, VqganConfig
from model.discrete_config import LlamagenConfig, PrefixConfig
from model.presets import IMPORTED_PRESETS, PRESETS

GB = 10**9
RESERVED = 2 * GB  # CUDA's context, cuBLAS, compiled kernels, fragmentation
CONDITION_CACHE = 256 << 20  # inference/prompts.py
TEXT_ROOM = 32  # text tokens of a short prompt's condition, inference/prompts.py; longer ones have 64, 128, …
# Of T5's encoder half; of Phi-2 without the layer that predicts words.
ENCODER_PARAMETERS = {
    "google/t5-v1_1-xxl": 4_762_310_656, "google/flan-t5-xl": 1_223_527_424, "microsoft/phi-2": 2_648_560_640,
}  # fmt: skip
# A checkpoint may name a folder: the width of its encoder's states tells which it is.
T5, PHI_2 = {4096: "google/t5-v1_1-xxl", 2048: "google/flan-t5-xl"}, {2560: "microsoft/phi-2"}
TOKENIZER_BYTES = 4 * 84_000_000  # Stable Diffusion's autoencoder and kl16 have about as many parameters
CPU_RESERVED = 500_000_000  # of a process on a CPU: Python, torch, a small text encoder
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of the backbone's linear layers, by the dtype of products
# On a CPU, of the process' own at the peak: weights are float32 first, and go layer by layer. Measured with 331 M
# values, bytes a value at the peak and then, without all else: float32 3.9, 4.0; bfloat16 4.9, 2.1; int8 4.9, 1.0.
# Beside them lies the mapped file (2 in bfloat16), whose pages the kernel can drop.
CPU_VALUE_BYTES = {"float32": 4, "bfloat16": 5, "int8": 5}
HEAD_TOKENS = 8  # that one row decides in a step, at 64 steps of 256 tokens
# Activations of an autoencoder's decoder at once, in those of the finest level's input: whole images and strips
# (measured: 3.9 at 512 pixels, 2.1 at 1024).
DECODED, DECODED_IN_STRIPS = 4.0, 2.2


@dataclass(frozen=True)
class Memory:
    """Bytes of each part, for a number of rows that all have guidance."""

    weights: int
    text_encoder: int
    rows: int  # conditions and tokens at fixed addresses, and the cache of conditions
    key_values: int  # of past positions, with a causal backbone
    graphs: int  # activations of the largest step, which all graphs share, and the head's buffers

    @property
    def total(self) -> int:
        return self.weights + self.text_encoder + self.rows + self.key_values + self.graphs + RESERVED


def backbone_parameters(config: ModelConfig) -> int:
    """Number of values in the backbone."""
    d, n, c, r = config.width, config.tokens, config.channels, config.mlp_ratio
    block = 4 * d + _attention(d, d) + _mlp(d, r)  # of SelfBlock
    if isinstance(config, MarConfig):
        length = config.buffer + n
        blocks = (config.encoder_depth + config.decoder_depth) * block
        norms = 3 * 2 * d  # before the encoder, behind it, behind the decoder
        tables = (config.classes + 1 + 2 * length + n + 1) * d  # classes, none, positions, mask token
        return blocks + norms + tables + (c * d + d) + (d * d + d)
    if isinstance(config, NovaConfig):
        blocks = (config.context_depth + config.depth) * block
        text = config.text.max_tokens * config.text.dim + (config.text.dim * d + d)
        time = (256 * d + d) + (d * d + d)
        return blocks + text + time + (c * d + d) + 2 * d + 4 * 2 * d  # start and mask token; four norms
    assert isinstance(config, FluidConfig)
    w, e = config.aligner_width or d, config.text.dim
    aligner = 2 * e + e * w + w + config.text.max_tokens * w + 2 * w
    aligner += config.aligner_depth * (4 * w + _attention(w, w) + _mlp(w, r))
    blocks = config.depth * (6 * d + _attention(d, d) + _attention(d, w) + _mlp(d, r))
    token_in = config.codebook * d if config.categorical else c * d + d
    return aligner + blocks + token_in + d + 2 * n * d + 2 * d


def block_parameters(config: ModelConfig) -> int:
    """Number of values in the projections of attention and the MLPs of all blocks, which int8 quantises."""
    d, r = config.width, config.mlp_ratio
    if isinstance(config, MarConfig):
        return (config.encoder_depth + config.decoder_depth) * (_attention(d, d) + _mlp(d, r))
    if isinstance(config, NovaConfig):
        return (config.context_depth + config.depth) * (_attention(d, d) + _mlp(d, r))
    assert isinstance(config, FluidConfig)
    w = config.aligner_width or d
    blocks = config.depth * (_attention(d, d) + _attention(d, w) + _mlp(d, r))
    return blocks + config.aligner_depth * (_attention(w, w) + _mlp(w, r))


def parameters_of_rank(config: ModelConfig, shards: int) -> int:
    """Number of values of the backbone on each of `shards` devices."""
    shared = 0 if isinstance(config, NovaConfig) else block_parameters(config)  # NOVA's is never shared
    return backbone_parameters(config) - shared + shared // shards


def estimate_on_cpu(
    config: ModelConfig, rows: int, shards: int = 1, leads: bool = True, dtype: str = "bfloat16"
) -> int:
    """Bytes of a process on a CPU at its peak, while it loads: weights for products beside some in float32."""
    weights = CPU_VALUE_BYTES[dtype] * parameters_of_rank(config, shards)
    keys = key_value_bytes(config, rows, dtype, shards)
    encoder = 4 * encoder_parameters(config) + _decoding(config)
    stacked = 8 if dtype == "float32" else 10  # the head's module, its stacked weights, and those for products
    own = stacked * head_parameters(config) + encoder + CONDITION_CACHE // 4 + sampling_bytes(config, rows)
    own = own + TOKENIZER_BYTES * isinstance(config.tokenizer, KlConfig | VqganConfig) if leads else 0
    return CPU_RESERVED + weights + keys + own


def key_value_bytes(config: ModelConfig, rows: int, dtype: str, shards: int = 1) -> int:
    """Bytes of the cache of a causal backbone for this many rows and their unconditional halves; 0 for others."""
    if not isinstance(config, FluidConfig | PrefixConfig) or not config.causal:
        return 0
    product = 4 if dtype == "float32" else 2
    return 2 * product * 2 * rows * config.depth * config.tokens * config.heads * config.head_dim // shards


def sampling_bytes(config: ModelConfig, rows: int) -> int:
    """Bytes at the peak of sampling discrete tokens, of the most that rows sample in a step; 0 for continuous ones.

    Measured: 23.5 bytes for each token and code, with guidance.
    """
    return 24 * rows * (1 if config.causal else config.tokens) * config.codebook if config.categorical else 0


def encoder_parameters(config: ModelConfig) -> int:
    """Number of values in the text encoder; 0 for those that are small, or not known."""
    if not isinstance(config, FluidConfig | NovaConfig | LlamagenConfig) or config.text.kind != "transformers":
        return 0
    widths = PHI_2 if isinstance(config, NovaConfig) else T5
    return ENCODER_PARAMETERS.get(widths.get(config.text.dim, ""), 0)


def _decoding(config: ModelConfig) -> int:
    """Bytes of the activations while NOVA's autoencoder decodes one image; of smaller images they are in RESERVED."""
    if not isinstance(config, NovaConfig) or not isinstance(config.tokenizer, KlConfig):
        return 0
    kept = DECODED_IN_STRIPS if config.tokenizer.strip else DECODED
    return int(kept * 4 * config.image_size**2 * config.tokenizer.widths[1])


def head_parameters(config: ModelConfig) -> int:
    """Number of values in the token head; the table of a categorical one belongs to the backbone."""
    if config.categorical:
        return config.codebook
    w, c = config.head_width, config.channels
    block = 2 * w + 2 * (w * w + w) + _modulation(config) // (3 * config.head_depth + 2) * 3
    outer = (256 * w + w) + (w * w + w) + (config.width * w + w) + (c * w + w)
    outer += (w * w + w) * config.post_norm_head  # z goes through two layers
    outer += (2 * (256 * w + w) + 3 * (w * w + w)) * config.mean_flow  # length of a step, guidance scale
    return outer + config.head_depth * block + 2 * (w * w + w) + (w + 1) * config.head_out


def estimate(
    config: ModelConfig,
    rows: int,
    text: int = TEXT_ROOM,
    shards: int = 1,
    leads: bool = True,
    dtype: str = "bfloat16",
) -> Memory:
    """Memory of a worker with this many rows (FLUID_MAX_ROWS), for prompts of up to `text` tokens.

    Args:
        shards: devices that share the backbone; the memory is that of one of them.
        leads: of the one that has head, text encoder and tokenizer as well.
        dtype: of the backbone's weights in products, a key of VALUE_BYTES.
    """
    d, n, evaluations = config.width, config.tokens, 2 * rows
    product = 4 if dtype == "float32" else 2  # bytes of a value in products, and of keys and values
    weights = VALUE_BYTES[dtype] * parameters_of_rank(config, shards)
    if dtype == "int8":  # all but the blocks stays float32
        weights += (4 - VALUE_BYTES[dtype]) * (backbone_parameters(config) - block_parameters(config))
    if leads:
        weights += 10 * head_parameters(config)
        weights += 2 * config.codebook * d if config.categorical else 4 * _modulation(config)
    encoder, fixed, own = 2 * encoder_parameters(config) * leads, 4 * d, 4 * d
    if isinstance(config, NovaConfig):
        fixed = own = 4 * d * (n // 4)  # context tokens
    if isinstance(config, FluidConfig):
        token = 2 * product * config.depth * d // shards  # keys and values of every block
        fixed, own = (token * count for count in _text_tokens(text, config.text.max_tokens))
    # Fixed conditions, and the rows' own: theirs and the empty one's are shared.
    conditions = evaluations * fixed + rows * own + CONDITION_CACHE
    key_values = key_value_bytes(config, rows, dtype, shards)
    # In raster order a step computes one position, and attention gathers one block's past.
    beside = config.buffer if isinstance(config, MarConfig) else n // 4 if isinstance(config, NovaConfig) else 0
    length = 1 if config.causal else n + beside
    # Stream in float32; normalised stream, the MLP's hidden values and its result as products; z at a fixed address.
    activations = evaluations * length * d * (4 + product * (config.mlp_ratio + 2)) + evaluations * length * d * 4
    if config.causal:
        activations += 2 * product * evaluations * n * d
    if config.categorical:
        head = sampling_bytes(config, rows)
    else:  # buffers of all buckets: 1.5 times the largest, twice
        tokens = HEAD_TOKENS * (n // 256 if isinstance(config, NovaConfig) else 1)
        head = 12 * config.head_width * 3 * evaluations * tokens
        head += 2 * 1024 * (3 * config.head_depth + 3) * config.head_width  # hoisted modulation
    if not leads:
        return Memory(weights, 0, conditions, key_values, activations)
    return Memory(weights + TOKENIZER_BYTES, encoder, conditions, key_values, activations + head + _decoding(config))


def _text_tokens(text: int, most: int) -> tuple[int, int]:
    """Text tokens of the inputs at fixed addresses, one for each length up to that of `text` tokens; and of a row."""
    rooms = [min(most, TEXT_ROOM)]
    while rooms[-1] < min(text, most):
        rooms.append(min(most, 2 * rooms[-1]))
    return sum(rooms), rooms[-1]


def largest_rows(config: ModelConfig, limit: int, text: int = TEXT_ROOM, dtype: str = "bfloat16") -> int:
    """The most rows whose memory stays under `limit` bytes; 0 if not even one does."""
    if estimate(config, 1, text, dtype=dtype).total > limit:
        return 0
    low, high = 1, 1 << 16
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if estimate(config, middle, text, dtype=dtype).total <= limit else (low, middle)
    return low


def report(name: str, rows: int = 64, dtype: str = "auto") -> list[str]:
    """Lines about a preset, by its name in any case, with weights of this dtype; "auto" is bfloat16.

    Raises:
        KeyError: there is no such preset; the message lists them.
    """
    known = {key.lower(): (key, config) for key, config in {**PRESETS, **IMPORTED_PRESETS}.items()}
    if name.lower() not in known:
        raise KeyError(f"no preset {name!r}; there are {', '.join(key for key, _ in known.values())}")
    key, config = known[name.lower()]
    dtype = "bfloat16" if dtype == "auto" else dtype
    found = estimate(config, rows, dtype=dtype)
    parameters = backbone_parameters(config) + head_parameters(config)
    lines = [f"{key}: {parameters / 1e9:.2f} billion parameters in {dtype}; memory by count"]
    for what, size in (
        ("weights", found.weights), ("text encoder", found.text_encoder), (f"{rows} guided rows", found.rows),
        ("keys and values", found.key_values), ("graphs", found.graphs), ("reserved", RESERVED),
        ("in all", found.total),
    ):  # fmt: skip
        lines.append(f"  {what:<16}{size / GB:8.2f} GB")
    longest = config.text.max_tokens if isinstance(config, FluidConfig) else 0
    for limit in (80, 141):
        most, fewer = (largest_rows(config, limit * GB, text, dtype) for text in (TEXT_ROOM, longest))
        more = f", {fewer} with prompts of {longest} tokens" if longest > TEXT_ROOM else ""
        lines.append(f"  {limit} GB: " + (f"up to {most} rows at once{more}" if most else "does not fit"))
    for shards in () if isinstance(config, NovaConfig) or dtype == "int8" else (2, 4, 8):
        if config.heads % shards == 0:
            both = (estimate(config, rows, shards=shards, leads=leads, dtype=dtype) for leads in (True, False))
            first, other = (each.total / GB for each in both)
            lines.append(
                f"  FLUID_TENSOR_PARALLEL={shards}: {first:.2f} GB on the first device, {other:.2f} GB on others"
            )
    return lines


def _attention(width: int, source: int) -> int:
    return (width * width + width) + (source * 2 * width + 2 * width) + (width * width + width)


def _mlp(width: int, ratio: int) -> int:
    return 2 * ratio * width * width + (ratio + 1) * width


def _modulation(config: ModelConfig) -> int:
    w = config.head_width
    return (3 * config.head_depth + 2) * (w * w + w)
