"""Conditioners of Janus-Pro and LlamaGen: the prompt's positions, run through the backbone once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluid_kernels.transfers import send
from model.inference.conditioners.captions import clean_caption
from model.inference.conditioners.encoded import part_of
from model.networks.condition import Conditioner
from model.networks.imported.prefix_causal import Janus, Llamagen, PrefixContext
from model.networks.text_encoder import TextEncoder, reading

Room = Callable[[int, int], int]  # (tokens, most) -> tokens that a condition has room for


class JanusPrompts(Conditioner):
    """The prompt in the chat template; beside it, the same number of padding tokens between its first and its last."""

    takes_negative_prompts = False

    def __init__(self, model: Janus, tokenizer: Any, room: Room):
        self.model, self.tokenizer, self.room = model, tokenizer, room
        self.device = next(model.parameters()).device

    def __call__(self, prompt: str) -> PrefixContext:
        return self._encode(self._ids(prompt))

    def unconditional_length(self, prompt: str) -> int:
        return len(self._ids(prompt))

    def unconditional(self, length: int) -> PrefixContext:
        config = self.model.config
        return self._encode([config.bos_token, *[config.pad_token] * (length - 2), config.boi_token])

    def _ids(self, prompt: str) -> list[int]:
        """Tokens of the template, of which a long prompt is cut, not the end."""
        config = self.model.config
        before, after = config.template.split("{prompt}")
        ids = self._tokens(before + prompt + after)
        over = len(ids) - config.text.max_tokens
        if over > 0:
            end = len(ids) - len(self._tokens(after))
            ids = ids[: end - over] + ids[end:]
        return [config.bos_token, *ids, config.boi_token]

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    @torch.inference_mode()
    def _encode(self, ids: list[int]) -> PrefixContext:
        backbone = self.model.backbone
        embedded = backbone.words(send(torch.tensor([ids]), self.device))
        count = len(ids) - 1
        places = torch.arange(count, device=self.device)[None]
        return backbone.encode_prefix(embedded, places, count, self.room(count, self.model.config.text.max_tokens + 1))


class LlamagenPrompts(Conditioner):
    """The caption's encoded tokens; beside it, the last of the learned ones, as many."""

    takes_negative_prompts = False

    def __init__(self, model: Llamagen, encoder: TextEncoder, room: Room):
        self.model, self.encoder, self.room = model, encoder, room
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def __call__(self, prompt: str) -> PrefixContext:
        states, mask = self.encoder.encode([clean_caption(prompt)])  # (1, L, E), (1, L)
        return self._encode(send(states, self.device)[:, : int(mask.sum())])

    def unconditional_length(self, prompt: str) -> int:
        return min(self.encoder.count_tokens(clean_caption(prompt)), self.model.config.text.max_tokens)

    @torch.inference_mode()
    def unconditional(self, length: int) -> PrefixContext:
        return self._encode(self.model.backbone.no_caption[None, -length:])

    def _encode(self, states: Tensor) -> PrefixContext:
        """(1, n, E) -> the condition; text positions all stand at place 0, the first image position as well."""
        backbone, count = self.model.backbone, states.shape[1] - 1
        places = torch.zeros(1, count, dtype=torch.int64, device=self.device)
        room = self.room(count, self.model.config.text.max_tokens)
        return backbone.encode_prefix(backbone.embed_caption(states), places, 0, room)


def janus_prompts(model: Janus, folder: Path, room: Room) -> JanusPrompts:
    """The conditioner with the tokenizer in the checkpoint's folder.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    name = part_of(folder, model.config.text.name)
    with reading(f"tokenizer {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(name)
    return JanusPrompts(model, tokenizer, room)
