"""What a backbone is told of a picture: text for `fluid`, a class for `mar`. The decoding loop only stacks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Condition(Protocol):
    """The condition of B rows, made once per prompt and used at every autoregressive step."""

    def __len__(self) -> int:
        """B."""
        ...

    @property
    def tokens(self) -> int:
        """How many the model reads, over all rows."""
        ...

    def __getitem__(self, rows: slice) -> Condition:
        """Of some of the rows."""
        ...

    def tensors(self) -> list[Tensor]:
        """Everything it holds, always in the same order; B comes first in each."""
        ...

    @staticmethod
    def stack(parts: Sequence[Any]) -> Condition:
        """Put conditions of one kind under each other."""
        ...


class Conditioner(Protocol):
    """From a prompt to the condition of one row."""

    def __call__(self, prompt: str) -> Condition:
        """The empty prompt is the unconditional one.

        Raises:
            PromptError: the model has no such thing.
        """
        ...


class PromptError(ValueError):
    """A prompt that this model cannot be conditioned on; the message says what it can."""
