"""A backbone's condition: text for `fluid`, a class for `mar`. The decoding loop only stacks and slices it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Condition(Protocol):
    """The condition of B rows, computed once per prompt and used at every autoregressive step."""

    def __len__(self) -> int:
        """B, the number of rows."""
        ...

    @property
    def tokens(self) -> int:
        """Number of condition tokens that the model reads, over all rows."""
        ...

    @property
    def length(self) -> int:
        """Number of condition tokens of each row that the tensors have room for; 0 if none depends on it."""
        ...

    def padded(self, length: int) -> Condition:
        """The same condition with room for `length` tokens, at least as many as now."""
        ...

    def __getitem__(self, rows: slice) -> Condition:
        """The condition of some of the rows."""
        ...

    def tensors(self) -> list[Tensor]:
        """Every tensor, always in the same order; the first dimension of each is B."""
        ...

    @staticmethod
    def stack(parts: Sequence[Any]) -> Condition:
        """Concatenate conditions of one family along B, with room for the longest."""
        ...


class Conditioner(Protocol):
    """Turns a prompt into the condition of one row."""

    #: False if the unconditional branch is learned apart from all prompts, so that no prompt can take its place.
    takes_negative_prompts: bool = True

    def __call__(self, prompt: str) -> Condition:
        """The condition of a prompt; the empty prompt's is the unconditional one.

        Raises:
            PromptError: the model cannot be conditioned on this prompt.
        """
        ...

    def unconditional_length(self, prompt: str) -> int | None:
        """Size of the unconditional branch beside a prompt; None: it is the empty prompt's, whatever the prompt."""
        return None

    def unconditional(self, length: int) -> Condition:
        """The unconditional branch of a size, for models in which it depends on the prompt's."""
        raise PromptError("this model's unconditional branch is the empty prompt's, whatever the prompt")


class PromptError(ValueError):
    """A prompt that this model cannot be conditioned on; the message names prompts that it can."""
