"""Serve a checkpoint: prompts in, RGB bytes out, snapshots as bytes, and the model's public description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluid_kernels.heads import HeadPathError, choose_path
from model.checkpoint import GRAMMAR, Checkpoint, CheckpointError
from model.config import ConfigError
from model.inference.engine import Engine
from model.inference.known_tokens import KnownTokens, encode_pixels, kept_mask, undecided
from model.inference.orders import make_order, orders_of, tokens_per_step
from model.inference.precision import pack, product_dtype
from model.inference.prompts import build_conditioner, first_name
from model.inference.requests import EngineError, RowRequest, Sampling, ServedRequest, read_sampling
from model.inference.row_state import Snapshot
from model.networks.tokenizer import decode_tokens, off_white, to_uint8, with_firm_alpha
from model.sampling_presets import default_sampling, sampling_limits

ALWAYS_SAID = ("guidance_scale", "guidance_schedule", "temperature")  # in `info`: a checkpoint may leave defaults out


class ServingEngine:
    """An `Engine` with pixels and bytes in place of tokens; the engine that a worker runs."""

    def __init__(
        self, checkpoint: Checkpoint, max_rows: int, dtype: torch.dtype = torch.float32, kernels: str = "auto"
    ):
        self.checkpoint, self.max_rows, self.dtype = checkpoint, max_rows, dtype
        try:
            self.use_sampling(checkpoint.about.get("sampling") or default_sampling(checkpoint.config))
        except ConfigError as error:
            raise CheckpointError(f"{checkpoint.folder / 'config.json'}: {error}; change about.sampling") from error
        conditioner = build_conditioner(checkpoint.model, checkpoint.about, checkpoint.folder)
        try:
            device = next(checkpoint.model.parameters()).device
            shards = getattr(checkpoint.model.backbone, "shards", 1)
            if shards == 1:  # sharded layers are packed already
                pack(checkpoint.model, dtype, triton=choose_path(kernels, device) != "torch")
            self.engine = Engine(checkpoint.model, conditioner, max_rows, product_dtype(dtype), kernels)
        except HeadPathError as error:
            raise CheckpointError(f"{error}: FLUID_KERNELS is {kernels!r}") from error
        self.kernels, self.device = self.engine.kernels, describe_device(self.engine.device, dtype, shards)
        self._requests: dict[int, ServedRequest] = {}  # by row
        self.image_size = (checkpoint.config.image_size, checkpoint.config.image_size)  # width, height

    def warm_up(self, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Prepare every shape of a step of the presets; report gets (shapes done, shapes in total)."""
        total = self.checkpoint.config.tokens
        counts = [max(tokens_per_step(each.num_inference_steps, total, each.order)) for each in self.presets.values()]
        self.engine.warm_up(max(counts), report)

    def use_sampling(self, raw: dict[str, Any]) -> None:
        """Take these presets and defaults, in the form of about.sampling in config.json.

        Raises:
            ConfigError: a part is missing, of another type or beyond its limit.
        """
        self.presets = read_sampling(raw, self.checkpoint.config)
        self._sampling = raw

    def admit(self, requests: Sequence[ServedRequest]) -> list[int]:
        """Give each request a row; all or none.

        Raises:
            EngineError, PromptError: as `Engine.admit`.
        """
        for request in requests:
            self._check_alpha(request)
        encoded: dict[bytes, Tensor] = {}  # images of one job start from the same image
        rows = self.engine.admit(requests, [self._start(request, encoded) for request in requests])
        self._requests.update(zip(rows, requests, strict=True))
        return rows

    def _check_alpha(self, request: ServedRequest) -> None:
        """The gateway checks it too, but perhaps against the model that a reload has replaced."""
        if request.transparent and not self._has_alpha:
            raise EngineError("a transparent background was asked for, and this model has no alpha")

    @property
    def _has_alpha(self) -> bool:
        return self.checkpoint.config.image_channels == 4

    def step(self) -> list[int]:
        """Run one autoregressive step for every row; return the rows that have finished.

        Raises:
            OutOfMemory: as `Engine.step`.
        """
        return self.engine.step()

    def progress(self, row: int) -> tuple[int, int]:
        """(steps done, total steps)"""
        return self.engine.progress(row)

    @torch.inference_mode()
    def image(self, row: int) -> bytes:
        """The row's image as far as it is decoded: height · width · 3 bytes RGB, or · 4 RGBA if transparent."""
        pixels = decode_tokens(self.checkpoint.tokenizer, self.engine.peek(row)[None])  # (1, 3 or 4, H, W)
        # Alpha before colours, so that on white the image looks as an opaque one.
        shown = off_white(with_firm_alpha(pixels)) if self._requests[row].transparent else pixels[:, :3]
        return to_uint8(shown)[0].cpu().numpy().tobytes()

    def snapshot(self, row: int) -> bytes:
        """A half-decoded row as bytes: a line of JSON that identifies it, then its tokens, 4 bytes a number, C order.

        They are (N, C) float32, or (N,) int32 if discrete.
        """
        state = self.engine.snapshot(row)
        about = {**self._identity(self._requests[row]), "step": state.step}
        tokens = state.tokens.to(self._stored).contiguous()
        return json.dumps(about).encode() + b"\n" + tokens.numpy().tobytes()

    @property
    def _stored(self) -> torch.dtype:
        """Of the tokens in a snapshot's bytes; 4 bytes."""
        return torch.int32 if self.checkpoint.config.categorical else torch.float32

    def restore(self, request: ServedRequest, state: bytes) -> int:
        """Resume the request where the snapshot was taken; returns its row.

        Raises:
            ValueError: the snapshot belongs to another checkpoint or request, or is damaged.
            EngineError, PromptError: as `admit`.
        """
        header, _, raw = state.partition(b"\n")
        about = json.loads(header)
        if not isinstance(about, dict):
            raise ValueError("the snapshot has no header")
        # "" stands for what older snapshots do not have.
        if any(about.get(name, "") != value for name, value in self._identity(request).items()):
            raise ValueError("the snapshot belongs to another checkpoint or another image")
        config, step, steps = self.checkpoint.config, about.get("step", -1), request.sampling.num_inference_steps
        template = undecided(config, 1, torch.device("cpu"))[0]  # (N, C) or (N,)
        if not isinstance(step, int) or len(raw) != 4 * template.numel() or not 0 <= step < steps:
            raise ValueError(f"the snapshot has {len(raw)} bytes at step {step} of {steps}")
        tokens = torch.frombuffer(bytearray(raw), dtype=self._stored).view_as(template).to(template.dtype)
        if config.categorical and not -1 <= int(tokens.min()) <= int(tokens.max()) < config.codebook:
            raise ValueError("the snapshot has tokens that this model has not")
        kept = None if request.known is None else kept_mask(request.known.kept, self._order(request))
        row = self.engine.restore(Snapshot(request, step, tokens, kept))
        self._requests[row] = request
        return row

    def release(self, row: int) -> None:
        """Free the row, finished or not."""
        self.engine.release(row)
        del self._requests[row]

    def _identity(self, request: ServedRequest) -> dict[str, Any]:
        """Facts that distinguish this image's snapshot from one that was given by mistake."""
        return {
            "sha256": self.checkpoint.sha256, "seed": request.seed, "known": _digest(request),
            "negative_prompt": request.negative_prompt,
        }  # fmt: skip

    @torch.inference_mode()
    def _start(self, request: ServedRequest, encoded: dict[bytes, Tensor]) -> KnownTokens | None:
        """The tokens that a request starts from. encoded: a cache of (N, C) tokens by pixels, filled here."""
        known = request.known
        if known is None:
            return None
        if known.pixels not in encoded:
            config, device = self.checkpoint.config, self.engine.device
            encoded[known.pixels] = encode_pixels(known.pixels, self.checkpoint.tokenizer, config, device)
        return KnownTokens(encoded[known.pixels], kept_mask(known.kept, self._order(request)))

    def _order(self, request: RowRequest) -> Tensor:
        seeds = torch.tensor([request.seed], device=self.engine.device)
        return make_order(request.sampling.order, seeds, self.checkpoint.config.grid)[0]  # (N,)

    def prompt_tokens(self, prompt: str) -> int:
        """Number of tokens of the prompt that the model reads, at most its encoder's limit."""
        return self.engine.prompt_tokens(prompt)

    def info(self) -> dict[str, Any]:
        """The model's public description: sizes, presets, limits, vocabulary, licence."""
        about, config = self.checkpoint.about, self.checkpoint.config
        labels = about.get("labels", [])
        return {
            "id": about["name"],
            "family": config.family,
            "image_size": self.image_size,
            "tokens": config.tokens,
            "presets": self._sampling["presets"],
            "defaults": {name: getattr(Sampling, name) for name in ALWAYS_SAID} | self._sampling["defaults"],
            "limits": sampling_limits(config),
            "system": config.system,
            "transparent": self._has_alpha,
            "orders": orders_of(config),
            "vocabulary": _vocabulary(about),
            **{name: about.get(name, []) for name in ("synonyms", "breadth", "breadth_styles", *GRAMMAR)},
            "hints": about.get("hints", {}),
            "max_prompt_tokens": config.text.max_tokens if hasattr(config, "text") else 0,
            "labels": labels,
            "negative_prompts": self.engine.takes_negative_prompts,
            "styles": about.get("styles", []),
            "checkpoint_sha256": self.checkpoint.sha256,
            "license": about.get("license", "Apache-2.0"),
            "conditions": about.get("conditions", ""),
            "source": about.get("source", ""),
            "description": about.get("description", ""),
            "examples": about.get("examples", []),
        }  # fmt: skip


def _vocabulary(about: dict[str, Any]) -> list[str]:
    """Names that a prompt may use: things of scenes, then those of the breadth, which the model draws alone."""
    labels = [first_name(label) for label in about.get("labels", [])]
    return list(dict.fromkeys([*about.get("vocabulary", labels), *about.get("breadth", [])]))


def _digest(request: ServedRequest) -> str:
    """SHA-256 of the image that a request starts from and of its kept part; "" without one."""
    known = request.known
    if known is None:
        return ""
    kept = known.kept if isinstance(known.kept, bytes) else str(known.kept).encode()
    return hashlib.sha256(known.pixels + b"|" + kept).hexdigest()


def describe_device(device: torch.device, dtype: torch.dtype, shards: int = 1) -> str:
    """Device and dtype in words, such as "cpu, bfloat16"."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if shards > 1:
        name = f"{shards} x {name} (backbone sharded by tensor parallelism; head and text encoder on the first)"
    return f"{name}, {str(dtype).removeprefix('torch.')}"
