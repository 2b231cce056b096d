"""Text-encoder states of a few prompts, for machines without the encoder's weights.

`python -m benchmarks.gpu.prompt_states` encodes PROMPTS and the empty prompt with the shipped model's encoder and
writes prompt_states.safetensors (bfloat16, without padding) beside this file, so that a GPU machine without network and
without our packages generates the same images. It takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import TextConfig
from model.networks.condition import PromptError
from model.networks.text_encoder import TextEncoder, build_text_encoder
from model.presets import PRESETS

FILE = Path(__file__).parent / "prompt_states.safetensors"
PROMPTS = ("a red apple, 3d style", "a cat, flat style", "a rocket, noto style", "a castle, twemoji style")


class StoredStates:
    """A text encoder that knows only PROMPTS and the empty prompt."""

    def __init__(self, config: TextConfig):
        self.config = config
        self._states = {caption: states.float() for caption, states in load_file(FILE).items()}

    def encode(self, captions: Sequence[str], tight: bool = False) -> tuple[Tensor, Tensor]:
        """Encode B captions to (B, L, E) float32 states and a (B, L) bool mask; PromptError if one is not stored."""
        for caption in captions:
            if caption not in self._states:
                raise PromptError(f"{caption!r} is not stored; use one of {', '.join(map(repr, PROMPTS))}")
        length = max(len(self._states[caption]) for caption in captions) if tight else self.config.max_tokens
        states = torch.zeros(len(captions), length, self.config.dim)
        mask = torch.zeros(len(captions), length, dtype=torch.bool)
        for row, caption in enumerate(captions):
            found = self._states[caption]
            states[row, : len(found)], mask[row, : len(found)] = found, True
        return states, mask

    def count_tokens(self, caption: str) -> int:
        """Return the number of tokens of a caption."""
        return int(self.encode([caption])[1].sum())


def write(encoder: TextEncoder, file: Path = FILE) -> None:
    """Encode the prompts one by one, and store the states of their real tokens."""
    kept = {}
    for caption in ("", *PROMPTS):
        states, mask = encoder.encode([caption])
        kept[caption] = states[mask].bfloat16()
    save_file(kept, file)


if __name__ == "__main__":
    write(build_text_encoder(PRESETS["atlas-128"].text))
    print(f"{FILE}: {FILE.stat().st_size} bytes")
