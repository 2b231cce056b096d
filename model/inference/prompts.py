"""Turn prompts into conditions: one conditioner per family, and the cache in front of it."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fluid_kernels.transfers import send
from model.config import ConfigError
from model.discrete_config import MaskedConfig
from model.inference.conditioners.encoded import clip_prompts
from model.inference.conditioners.prefix import LlamagenPrompts, janus_prompts
from model.inference.requests import RowRequest
from model.networks.autoregressive_model import AutoregressiveModel, Fluid
from model.networks.condition import Condition, Conditioner, PromptError
from model.networks.imported.nova import Nova, NovaContext
from model.networks.imported.prefix_causal import Janus, Llamagen
from model.networks.mar import ClassContext, Mar
from model.networks.text_encoder import TextEncoder, build_text_encoder
from model.networks.transformer import TextContext

KEPT_BYTES = 256 << 20  # of conditions: about 1,000 prompts of the shipped models, 15 short ones of the 10.5B preset
TEXT_ROOM = 32  # text tokens of a short prompt's condition


class ConditionCache:
    """The conditions of the prompts that were used last, as many as fit into a number of bytes; not thread-safe."""

    def __init__(self, conditioner: Conditioner, kept_bytes: int = KEPT_BYTES):
        self.conditioner, self.kept_bytes = conditioner, kept_bytes
        self._found: OrderedDict[str | int, Condition] = OrderedDict()  # least recently used first
        self._bytes = 0  # of all conditions in it

    def __call__(self, prompt: str) -> Condition:
        """The prompt's condition, one row. One that alone exceeds the limit is not kept.

        Raises:
            PromptError: the model cannot be conditioned on this prompt.
        """
        return self._kept(prompt, partial(self.conditioner, prompt))

    def _kept(self, key: str | int, make: Callable[[], Condition]) -> Condition:
        """The condition under a key: a prompt, or the length of an unconditional one; made if it is not there."""
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key]
        made = make()
        self._found[key] = made
        self._bytes += size_in_bytes(made)
        while self._bytes > self.kept_bytes:
            _, oldest = self._found.popitem(last=False)
            self._bytes -= size_in_bytes(oldest)
        return made

    def unconditional(self, request: RowRequest, null: Condition) -> Condition:
        """What guidance steers away from: the negative prompt's condition if there is one, else `null`, or what stands
        for it beside this prompt.

        Raises:
            PromptError: this model's unconditional branch belongs to no prompt.
        """
        if not request.negative_prompt:
            length = self.conditioner.unconditional_length(request.prompt)
            return null if length is None else self._kept(length, partial(self.conditioner.unconditional, length))
        if not self.conditioner.takes_negative_prompts:
            raise PromptError(
                "this model's guidance steers away from a learned unconditional branch (of class labels: 'no class'), "
                "so a negative prompt has no meaning for it"
            )
        return self(request.negative_prompt)


def size_in_bytes(condition: Condition) -> int:
    """Memory that the condition's tensors take."""
    return sum(tensor.nbytes for tensor in condition.tensors())


class TextPrompts(Conditioner):
    """Conditioner of `fluid`: text encoder, then aligner, then every block's keys and values."""

    takes_negative_prompts = True

    def __init__(self, model: Fluid, encoder: TextEncoder, cut: bool | None = None):
        """cut: give a condition room for its own tokens, rounded up to a few lengths, and not for the longest prompt.

        None: on a GPU only. There, conditions of 128 tokens take more memory than the weights, and a prompt has about
        20. On a CPU the room stays the same, so that rounding does not depend on the other prompts of a batch.
        """
        self.backbone, self.encoder = model.backbone, encoder
        self.device = next(model.parameters()).device
        self.cut = self.device.type == "cuda" if cut is None else cut

    @torch.inference_mode()
    def __call__(self, prompt: str) -> TextContext:
        """Encode one prompt at a time: in a batch, rounding would make an image depend on other prompts."""
        states, mask = self.encoder.encode([prompt], tight=self.cut)  # (1, L, E), (1, L)
        if self.cut:
            more = text_room(states.shape[1], self.encoder.config.max_tokens) - states.shape[1]
            states, mask = F.pad(states, (0, 0, 0, more)), F.pad(mask, (0, more))
        return self.backbone.encode_text(send(states, self.device), send(mask, self.device))


def text_room(tokens: int, most: int) -> int:
    """The number of text tokens that a condition of `tokens` has room for: TEXT_ROOM, or that doubled, at most `most`.

    A CUDA graph has fixed shapes, so each of these lengths needs graphs of its own.
    """
    return min(most, TEXT_ROOM << (max(-(-tokens // TEXT_ROOM), 1) - 1).bit_length())


class NovaPrompts(Conditioner):
    """Conditioner of `nova`: a causal text encoder, then the context blocks. The empty prompt has no tokens."""

    takes_negative_prompts = True

    def __init__(self, model: Nova, encoder: TextEncoder):
        self.backbone, self.encoder = model.backbone, encoder
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def __call__(self, prompt: str) -> NovaContext:
        """Encode one prompt without padding: no token depends on those behind it, and the encoder is large."""
        if prompt and self.encoder.count_tokens(prompt):
            states, _ = self.encoder.encode([prompt], tight=True)  # (1, L, E)
        else:
            states = torch.zeros(1, 0, self.encoder.config.dim)
        return self.backbone.encode_text(send(states, self.device))


class LabelPrompts(Conditioner):
    """Conditioner of `mar`: the prompt is the first name of a class."""

    takes_negative_prompts = False

    def __init__(self, model: Mar, labels: Sequence[str]):
        """labels: entry i holds the names of class i, "first, second, …"; first names are unique.

        Raises:
            ConfigError: there is not one label for each class.
        """
        if len(labels) != model.config.classes:
            raise ConfigError(f"{len(labels)} labels for {model.config.classes} classes; config.json needs one each")
        self.backbone = model.backbone
        self.index = {first_name(label): i for i, label in enumerate(labels)}

    @torch.inference_mode()
    def __call__(self, prompt: str) -> ClassContext:
        if prompt and prompt not in self.index:
            close = difflib.get_close_matches(prompt, self.index, n=3, cutoff=0.5)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise PromptError(f"{prompt[:100]!r} is not one of this model's {len(self.index)} labels{hint}")
        return self.backbone.encode_class(self.index[prompt] if prompt else None)


def build_conditioner(model: AutoregressiveModel, about: dict[str, Any], folder: Path = Path()) -> Conditioner:
    """The conditioner of a checkpoint's family.

    Args:
        about: the checkpoint's metadata; `mar` reads "labels".
        folder: the checkpoint's; imported ones may hold their text encoder or tokenizer.
    Raises:
        ConfigError: the text encoder's weights, or the labels, are missing.
    """
    if isinstance(model, Mar):
        return LabelPrompts(model, about.get("labels", ()))
    device, config = next(model.parameters()).device, model.config
    if isinstance(config, MaskedConfig):
        return clip_prompts(config, folder, device, encoder_dtype(device))
    if isinstance(model, Janus):
        return janus_prompts(model, folder, text_room)
    if not isinstance(model, Fluid | Nova | Llamagen):
        raise ConfigError(f"family {config.family!r} has no conditioner")
    encoder = build_text_encoder(model.config.text, dtype=encoder_dtype(device))
    if isinstance(encoder, torch.nn.Module):
        encoder.to(device)
    if isinstance(model, Llamagen):
        return LlamagenPrompts(model, encoder, text_room)
    return NovaPrompts(model, encoder) if isinstance(model, Nova) else TextPrompts(model, encoder)


def encoder_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that multiplies it, float32 elsewhere."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def first_name(label: str) -> str:
    """The name that stands for a class: the text before the first comma."""
    return label.split(",", 1)[0]


@lru_cache(maxsize=1)
def imagenet_labels() -> list[str]:
    """The 1000 classes in the usual order of ImageNet-1k classifiers, ambiguous first names followed by their index.

    Source and licence: model/inference/imagenet_labels.txt.
    """
    lines = (Path(__file__).parent / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("\t")[1] for line in lines if not line.startswith("#")]
    firsts = [first_name(name).lower() for name in names]
    return [
        name if firsts.count(first) == 1 else f"{first_name(name)} ({i}){name[len(first_name(name)) :]}"
        for i, (name, first) in enumerate(zip(names, firsts, strict=True))
    ]
