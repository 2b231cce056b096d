"""The condition of a text's states and pooled embedding, and the CLIP encoder that computes both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fluid_kernels.transfers import send
from model.config import ConfigError, TextConfig
from model.networks.text_encoder import reading


@dataclass
class EncodedText:
    """The condition of B prompts, always with all of the encoder's positions: padding is attended to as well."""

    states: Tensor  # (B, L, E)
    pooled: Tensor  # (B, P)

    def __len__(self) -> int:
        return len(self.states)

    @property
    def tokens(self) -> int:
        return len(self.states) * self.states.shape[1]

    @property
    def length(self) -> int:
        return 0  # no tensor's size depends on the prompt

    def padded(self, length: int) -> EncodedText:
        return self

    def __getitem__(self, rows: slice) -> EncodedText:
        return EncodedText(self.states[rows], self.pooled[rows])

    def tensors(self) -> list[Tensor]:
        """Every tensor; B first."""
        return [self.states, self.pooled]

    @staticmethod
    def stack(parts: Sequence[EncodedText]) -> EncodedText:
        """Concatenate conditions along B."""
        return EncodedText(torch.cat([part.states for part in parts]), torch.cat([part.pooled for part in parts]))


class ClipEncoder(nn.Module):
    """The text half of CLIP: states of the last layer but one, without the final norm, and the projected embedding."""

    def __init__(self, config: TextConfig, pooled: int, encoder: str, tokenizer: str, dtype: torch.dtype):
        """encoder, tokenizer: folders, or names on the hub. pooled: width of the embedding that the model expects.

        Raises:
            ConfigError: the encoder is missing, or of other widths.
        """
        super().__init__()
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.config = config
        with reading(f"text encoder {encoder!r}"):
            self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
            both: Any = CLIPTextModelWithProjection.from_pretrained(encoder, dtype=dtype, output_loading_info=True)
        loaded, found = both
        if missing := sorted(found["missing_keys"]):  # they would be random, and other ones in each worker
            raise ConfigError(f"text encoder {encoder!r} lacks {missing[0]!r}; import the model again")
        self.encoder = loaded.eval().requires_grad_(False)
        widths = self.encoder.config.hidden_size, self.encoder.config.projection_dim
        if widths != (config.dim, pooled):
            raise ConfigError(
                f"text encoder {encoder!r} is {widths[0]} wide with an embedding of {widths[1]}; the checkpoint "
                f"expects {config.dim} and {pooled}"
            )

    @torch.inference_mode()
    def encode(self, caption: str) -> EncodedText:
        """One caption, cut to the config's max_tokens, as float32."""
        ids = self.tokenizer(
            [caption], padding="max_length", truncation=True, max_length=self.config.max_tokens, return_tensors="pt"
        ).input_ids
        found = self.encoder(input_ids=send(ids, next(self.encoder.parameters()).device), output_hidden_states=True)
        return EncodedText(found.hidden_states[-2].float().clone(), found.text_embeds.float().clone())

    def count_tokens(self, caption: str) -> int:
        return len(self.tokenizer(caption)["input_ids"])
