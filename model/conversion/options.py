"""What every conversion is given, and the licence that it must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices of the caller; each kind reads those that concern it.

    Attributes:
        vae: file or folder of the autoencoder; None: the one found beside the source.
        text: folder or hub name of the text encoder; "": the one in the source, or the one that the model was trained
            with.
        heads: attention heads, where shapes do not reveal them; None: those of the released model of this width.
        dtype: type in which the weights are stored; int8 is that of the model's matrices, with all else in bfloat16.
        report: called with one line per stage.
    """

    vae: Path | None = None
    text: str = ""
    heads: int | None = None
    dtype: torch.dtype = torch.float32
    report: Callable[[str], None] = print

    @property
    def encoder_dtype(self) -> torch.dtype:
        """Type of a text encoder's stored weights."""
        return torch.bfloat16 if self.dtype == torch.int8 else self.dtype


@dataclass(frozen=True)
class Licence:
    """The terms of published weights; a converted checkpoint carries them into /v1/models and into its images.

    Attributes:
        name: SPDX identifier, or the name of a licence that has none.
        source: address of the weights' publisher.
        conditions: what a user must observe, in one sentence; "": nothing beyond the licence's notice.
    """

    name: str
    source: str
    conditions: str = ""

    def about(self) -> dict[str, str]:
        """The entries of config.json's `about`."""
        return {"license": self.name, "conditions": self.conditions, "source": self.source}
