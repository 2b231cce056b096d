"""Rank 0 of a tensor-parallel group: its backbone tells the followers about each pass, then computes its own part.

It alone has the text encoder, the head, the tokenizer, the rows and, in a worker, Redis. Conditions are sharded: rank 0
holds its heads of each, and followers hold theirs under the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.config import ConfigError
from model.inference.devices.channel import Channel
from model.inference.devices.sharding import shard_backbone
from model.networks.causal import CausalBackbone
from model.networks.layers.key_values import KeyValues
from model.networks.mar import ClassContext, MarBackbone
from model.networks.transformer import Backbone, TextContext
from model.process_group import join_group


@dataclass
class LedContext(TextContext):
    """Rank 0's heads of a text condition."""

    channel: Channel
    number: int  # under which followers hold theirs

    @classmethod
    def of(cls, own: TextContext, channel: Channel, number: int) -> LedContext:
        led = cls(own.keys, own.values, own.mask, channel, number)
        channel.tie(led, number)
        return led

    def padded(self, length: int) -> TextContext:
        """Room for `length` tokens, on every rank."""
        return self if length == self.length else self._stacked([self], length)

    def __getitem__(self, rows: slice) -> TextContext:
        raise NotImplementedError("fixed inputs of CUDA graphs are not sharded")

    @staticmethod
    def stack(parts: Sequence[TextContext]) -> TextContext:
        """Concatenate contexts along B, on every rank."""
        led = cast(Sequence[LedContext], parts)
        return led[0]._stacked(led, max(part.length for part in led))

    def _stacked(self, parts: Sequence[LedContext], length: int) -> LedContext:
        number = self.channel.number()
        own = self.channel.lead(
            "stack",
            [],
            lambda: stack(parts, length),
            number=number,
            parts=[part.number for part in parts],
            length=length,
        )
        return LedContext.of(own, self.channel, number)


def stack(parts: Sequence[TextContext], length: int) -> TextContext:
    """What every rank does to stack conditions with room for `length` tokens."""
    return TextContext.stack([TextContext.padded(TextContext(p.keys, p.values, p.mask), length) for p in parts])


class _Leading(nn.Module):
    """What leading backbones share."""

    channel: Channel
    number: int  # of the engine

    def lead(self, kind: str, tensors: Sequence[Tensor], work: Any, **fields: Any) -> Any:
        return self.channel.lead(kind, tensors, work, engine=self.number, **fields)


class LeadingBackbone(_Leading, Backbone):
    """A bidirectional backbone of text."""

    def encode_text(self, hidden: Tensor, mask: Tensor) -> TextContext:
        return _encode_text(self, hidden, mask)

    def forward(self, tokens: Tensor, known: Tensor, text: TextContext, most_known: int | None = None) -> Tensor:
        assert isinstance(text, LedContext)
        own = super().forward
        z: Tensor = self.lead("forward", [tokens, known], lambda: own(tokens, known, text), context=text.number)
        return z


class LeadingCausalBackbone(_Leading, CausalBackbone):
    """A causal backbone; each rank caches the keys and values of its own heads."""

    def encode_text(self, hidden: Tensor, mask: Tensor) -> TextContext:
        return _encode_text(self, hidden, mask)

    def prefill(self, tokens: Tensor, rows: Tensor, text: TextContext, cache: KeyValues) -> None:
        assert isinstance(text, LedContext)
        own = super().prefill
        self.lead("prefill", [tokens, rows], lambda: own(tokens, rows, text, cache), context=text.number)

    def advance(
        self, previous: Tensor, rows: Tensor, positions: Tensor, text: TextContext, cache: KeyValues, longest: int
    ) -> Tensor:
        assert isinstance(text, LedContext)
        own = super().advance
        z: Tensor = self.lead(
            "advance", [previous, rows, positions], lambda: own(previous, rows, positions, text, cache, longest),
            context=text.number, longest=longest,
        )  # fmt: skip
        return z


class LeadingMarBackbone(_Leading, MarBackbone):
    """MAR's backbone; its condition is one vector per row, which is sent with each pass."""

    def forward(self, tokens: Tensor, known: Tensor, condition: ClassContext, most_known: int | None = None) -> Tensor:
        own = super().forward
        z: Tensor = self.lead(
            "forward_class", [tokens, known, condition.embedding], lambda: own(tokens, known, condition, most_known),
            most_known=most_known,
        )  # fmt: skip
        return z


def _encode_text(backbone: LeadingBackbone | LeadingCausalBackbone, hidden: Tensor, mask: Tensor) -> TextContext:
    number = backbone.channel.number()
    plain = super(type(backbone), backbone).encode_text  # type: ignore[arg-type]  # of a union of classes
    own = backbone.lead("encode_text", [hidden, mask], lambda: plain(hidden, mask), number=number)
    return LedContext.of(own, backbone.channel, number)


LEADING: dict[type[nn.Module], type[_Leading]] = {
    Backbone: LeadingBackbone, CausalBackbone: LeadingCausalBackbone, MarBackbone: LeadingMarBackbone,
}  # fmt: skip


@cache
def open_channel(device: str, ranks: int) -> Channel:
    """The channel of this process's group.

    Raises:
        ConfigError: the group has another number of ranks, or cannot be joined.
    """
    group = join_group(device)
    if group.size != ranks:
        raise ConfigError(
            f"FLUID_TENSOR_PARALLEL is {ranks}, but this process was started as one of {group.size} ranks"
        )
    return Channel(group)


def load_leading(folder: Path, channel: Channel, max_rows: int, dtype: torch.dtype) -> Checkpoint:
    """Load a checkpoint on every rank and shard its backbone, which leads from now on.

    Raises:
        CheckpointError, ConfigError: it cannot be loaded, here or on another rank.
    """
    number, failure = channel.number(), list[Exception]()

    def work() -> Checkpoint | None:
        loaded = None
        try:
            loaded = load_checkpoint(folder)
            if type(loaded.model.backbone) not in LEADING:
                raise ConfigError(
                    f"models of family {loaded.config.family!r} cannot be shared among devices: set "
                    "FLUID_TENSOR_PARALLEL=1"
                )
            shard_backbone(loaded.model.backbone, loaded.config, channel.group.mesh, dtype)
        except (CheckpointError, ConfigError, OSError) as error:
            failure.append(error)
        return loaded if channel.all_well(not failure) else None

    about = {"folder": str(folder), "rows": max_rows, "dtype": str(dtype).removeprefix("torch.")}
    loaded = channel.lead("load", [], work, engine=number, **about)
    if failure:
        raise failure[0]
    if loaded is None:
        raise CheckpointError(f"{folder} cannot be loaded on every rank; the log of the others says why")
    backbone = loaded.model.backbone
    backbone.__class__ = LEADING[type(backbone)]
    backbone.channel, backbone.number = channel, number  # type: ignore[assignment]
    channel.tie(backbone, number)
    loaded.model.to(channel.group.device)
    loaded.tokenizer.to(channel.group.device)
    return loaded
