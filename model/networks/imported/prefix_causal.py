"""A Llama that begins with the prompt and continues with image tokens: the backbone of Janus-Pro and LlamaGen.

    x += attention(RMS x);  x += down(SiLU(gate(RMS x)) · up(RMS x))          no biases, rotary positions

The prompt's keys and values are computed once and are the condition, shared by all rows with that prompt. The input of
image position 0 is the prompt's last position (`start`), that of position i is token i - 1; so z_i depends on the
prompt and on tokens 0 to i - 1, as in networks/causal.py, and every row has a cache of N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.discrete_config import JanusConfig, LlamagenConfig, PrefixConfig
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.layers.attention import grid_rotation, rotate
from model.networks.layers.key_values import BlockKeyValues, KeyValues
from model.networks.transformer import TextContext


@dataclass
class PrefixContext(TextContext):
    """The condition of B prompts: keys and values of their positions but the last, and the last one's input."""

    start: Tensor  # (B, D)
    offset: Tensor  # (B,) int64, added to an image position for its place in the table of rotations

    def padded(self, length: int) -> PrefixContext:
        return self._with(super().padded(length))

    def __getitem__(self, rows: slice) -> PrefixContext:
        return replace(self._with(super().__getitem__(rows)), start=self.start[rows], offset=self.offset[rows])

    def _with(self, context: TextContext) -> PrefixContext:
        return PrefixContext(context.keys, context.values, context.mask, self.start, self.offset)

    @property
    def tokens(self) -> int:
        return int(self.mask.sum()) + len(self.mask)

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.start, self.offset]

    @staticmethod
    def stack(parts: Sequence[TextContext]) -> PrefixContext:
        both = TextContext.stack(parts)
        start, offset = (torch.cat([getattr(part, name) for part in parts]) for name in ("start", "offset"))
        return PrefixContext(both.keys, both.values, both.mask, start, offset)


class LlamaBlock(nn.Module):
    """See the module's formula."""

    def __init__(self, config: PrefixConfig):
        super().__init__()
        width, hidden = config.width, config.feed_forward
        self.heads = config.heads
        self.norm1, self.norm2 = nn.RMSNorm(width, config.norm_eps), nn.RMSNorm(width, config.norm_eps)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, (B, H, n, d) each, of x (B, n, D)."""
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return rotate(q, rotation), rotate(k, rotation), v

    def finish(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The rest of the block; mask: which keys a query sees, broadcast to (B, H, n, M)."""
        h = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        y: Tensor = x + self.down(F.silu(gate) * up)
        return y


class PrefixBackbone(nn.Module):
    """Prompt and tokens in raster order in, one vector z per position out; subclasses embed tokens and finish z."""

    packs_known = True  # a step reads as many keys as there are positions behind it

    def __init__(self, config: PrefixConfig, rotation: tuple[Tensor, Tensor]):
        """rotation: (T, d/2) cosines and sines, by place."""
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self.register_buffer("rope_cos", rotation[0], persistent=False)
        self.register_buffer("rope_sin", rotation[1], persistent=False)
        self.rope_cos: Tensor
        self.rope_sin: Tensor

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(…) image tokens -> (…, D); negative ones, which are unknown, may give anything."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """(B, n, D) after the last norm -> z."""
        return x

    def rotation(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n) places -> cosines and sines (B, 1, n, d/2)."""
        return self.rope_cos[places][:, None], self.rope_sin[places][:, None]

    def encode_prefix(self, embedded: Tensor, places: Tensor, offset: int, room: int) -> PrefixContext:
        """The condition of one prompt.

        Args:
            embedded: (1, P + 1, D) input of its positions; the last is that of image position 0.
            places: (1, P) of the others in the table of rotations.
            offset: place of image position 0 in it.
            room: number of positions, at least P, that the condition has room for.
        """
        x, start = embedded[:, :-1].float(), embedded[:, -1].float()
        count = x.shape[1]
        seen = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        keys, values, rotation = [], [], self.rotation(places)
        for block in self.blocks:
            assert isinstance(block, LlamaBlock)
            q, k, v = block.project(x, rotation)
            keys.append(k)
            values.append(v)
            x = block.finish(x, q, k, v, seen) if count else x
        mask = torch.ones(1, count, dtype=torch.bool, device=x.device)
        return PrefixContext(keys, values, mask, start, torch.tensor([offset], device=x.device)).padded(room)

    def forward(
        self, tokens: Tensor, known: Tensor | None, text: PrefixContext, most_known: int | None = None
    ) -> Tensor:
        """All positions at once: the definition of `step`.

        Args:
            tokens: (B, N).
            known, most_known: ignored. z is what `step` gives at every position up to the first unknown one.
        Returns:
            z: (B, N, D)
        """
        return self._all(tokens, text, None)

    def prefill(self, tokens: Tensor, rows: Tensor, text: PrefixContext, cache: KeyValues) -> None:
        """Fill the cache of B rows for the n positions 0 to n - 1.

        Args:
            tokens: (B, n); the last is not read, since it is position n's input.
            rows: (B,) int64, the rows' places in the cache.
        """
        self._all(tokens, text, (cache, rows))

    def _all(self, tokens: Tensor, text: PrefixContext, filled: tuple[KeyValues, Tensor] | None) -> Tensor:
        """(B, n) -> z (B, n, D)."""
        count = tokens.shape[1]
        x = torch.cat([text.start[:, None], self.embed_tokens(tokens[:, :-1]).float()], 1)  # (B, n, D)
        rotation = self.rotation(text.offset[:, None] + torch.arange(count, device=x.device))
        causal = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        before = text.mask[:, None, :].expand(-1, count, -1)  # (B, n, P)
        seen = torch.cat([before, causal.expand(len(x), -1, -1)], 2)[:, None]  # (B, 1, n, P + n)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, LlamaBlock)
            q, k, v = block.project(x, rotation)
            if filled is not None:
                filled[0].prefix(i, filled[1]).extend(k, v)
            x = block.finish(x, q, *_joined(text, i, k, v), seen)
        return self.finish(self.norm(x))

    def step(
        self, tokens: Tensor, rows: Tensor, positions: Tensor, text: PrefixContext, cache: KeyValues, longest: int
    ) -> Tensor:
        """One position of each of B rows, which may all be at different ones; as CausalBackbone.step."""
        previous = tokens[rows % len(tokens), (positions - 1).clamp_min(0)]  # (B,)
        x = torch.where((positions == 0)[:, None], text.start, self.embed_tokens(previous).float())[:, None]
        rotation = self.rotation((text.offset + positions)[:, None])
        for i, block in enumerate(self.blocks):
            assert isinstance(block, LlamaBlock)
            q, k, v = block.project(x, rotation)
            past: BlockKeyValues = cache.next(i, rows, positions, longest)
            k, v, seen = past.extend(k, v)
            assert seen is not None
            x = block.finish(x, q, *_joined(text, i, k, v), torch.cat([text.mask, seen], 1)[:, None, None])
        return self.finish(self.norm(x))


def _joined(text: PrefixContext, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The prompt's keys and values, then the image's."""
    keys, values = text.keys[block], text.values[block]
    return torch.cat([keys.to(k.dtype), k], 2), torch.cat([values.to(v.dtype), v], 2)


class JanusBackbone(PrefixBackbone):
    """Janus-Pro: text positions count on through the image, codes are aligned to the language model by an MLP."""

    def __init__(self, config: JanusConfig):
        most, half = config.text.max_tokens + 2 + config.tokens, config.head_dim // 2
        speed = 1 / config.rope_base ** (torch.arange(half) / half)
        angle = torch.arange(most)[:, None] * speed
        super().__init__(config, (angle.cos(), angle.sin()))
        width = config.width
        self.words = nn.Embedding(config.vocabulary, width)
        self.codes = nn.Embedding(config.codebook, config.channels)
        layers: list[nn.Module] = [nn.Linear(config.channels, width)]
        for _ in range(config.aligner_layers - 1):
            layers += [nn.GELU(), nn.Linear(width, width)]
        for layer in layers[:1]:
            layer.unpacked = True  # type: ignore[assignment]  # its input is narrow
        self.aligner = nn.Sequential(*layers)
        self.head_in = nn.Linear(width, config.image_head)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.aligner(self.codes(tokens.clamp_min(0)))
        return y

    def finish(self, x: Tensor) -> Tensor:
        return F.gelu(self.head_in(x).float())


class Janus(AutoregressiveModel):
    """The image generator of Janus-Pro."""

    backbone: JanusBackbone
    config: JanusConfig

    def __init__(self, config: JanusConfig):
        super().__init__(config, JanusBackbone(config), own_table=config.image_head)


class LlamagenBackbone(PrefixBackbone):
    """LlamaGen: image positions rotate by row and column; text positions by nothing: the released table holds zeros
    there, cosines included, so that queries and keys of the text vanish.
    """

    def __init__(self, config: LlamagenConfig):
        # Image position 0 computes the text's last position; position i has token i - 1, and its place on the grid.
        cos, sin = grid_rotation(config.grid, config.head_dim, 10000.0)
        nothing = torch.zeros(1, config.head_dim // 2)
        super().__init__(config, (torch.cat([nothing, cos]), torch.cat([nothing, sin])))
        width = config.width
        self.codes = nn.Embedding(config.codebook, width)
        self.caption_in = nn.Linear(config.text.dim, width, bias=False)
        self.caption_out = nn.Linear(width, width, bias=False)
        self.no_caption = nn.Parameter(torch.zeros(config.text.max_tokens, config.text.dim))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.codes(tokens.clamp_min(0))
        return y

    def embed_caption(self, states: Tensor) -> Tensor:
        """(1, L, E) text encoder states -> (1, L, D)."""
        y: Tensor = self.caption_out(F.gelu(self.caption_in(states), approximate="tanh"))
        return y


class Llamagen(AutoregressiveModel):
    """LlamaGen's text-to-image models."""

    backbone: LlamagenBackbone
    config: LlamagenConfig

    def __init__(self, config: LlamagenConfig):
        super().__init__(config, LlamagenBackbone(config), own_table=config.width)
