"""The other ranks of a tensor-parallel group: each does what rank 0's messages say, on its part of the backbone."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.checkpoint import CheckpointError, load_checkpoint
from model.config import ConfigError
from model.inference.devices.channel import Channel, Message
from model.inference.devices.leader import open_channel, stack
from model.inference.devices.sharding import local_values, shard_backbone
from model.networks.causal import CausalBackbone, make_cache
from model.networks.layers.key_values import KeyValues
from model.networks.mar import ClassContext, MarBackbone
from model.networks.transformer import TextBackbone, TextContext

log = logging.getLogger(__name__)


@dataclass
class Part:
    """This rank's part of an engine."""

    backbone: nn.Module
    cache: KeyValues | None


class Follower:
    """What a rank holds for rank 0, by number."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self.parts: dict[int, Part] = {}
        self.contexts: dict[int, TextContext] = {}

    @torch.inference_mode()
    def run(self) -> None:
        """Follow until rank 0 has ended."""
        while True:
            try:
                message = self.channel.receive()
            except RuntimeError as error:  # its connection is closed
                log.info("rank 0 has ended (%s)", str(error).partition("\n")[0])
                return
            self.do(message)

    def do(self, message: Message) -> None:
        """Carry out one message."""
        for number in message.freed:
            self.contexts.pop(number, None)
            self.parts.pop(number, None)
        fields, tensors = message.fields, message.tensors
        if message.kind == "load":
            self._load(fields["engine"], Path(fields["folder"]), fields["rows"], getattr(torch, fields["dtype"]))
            return
        if message.kind == "stack":
            parts = [self.contexts[number] for number in fields["parts"]]
            self.contexts[fields["number"]] = stack(parts, fields["length"])
            return
        part = self.parts[fields["engine"]]
        backbone = part.backbone
        if message.kind == "encode_text":
            assert isinstance(backbone, TextBackbone)
            self.contexts[fields["number"]] = backbone.encode_text(tensors[0], tensors[1])
        elif message.kind == "forward_class":
            assert isinstance(backbone, MarBackbone)
            backbone(tensors[0], tensors[1], ClassContext(tensors[2]), fields["most_known"])
        elif message.kind == "forward":
            backbone(tensors[0], tensors[1], self.contexts[fields["context"]])
        else:
            assert isinstance(backbone, CausalBackbone) and part.cache is not None
            context = self.contexts[fields["context"]]
            if message.kind == "prefill":
                backbone.prefill(tensors[0], tensors[1], context, part.cache)
            else:
                backbone.advance(tensors[0], tensors[1], tensors[2], context, part.cache, fields["longest"])

    def _load(self, number: int, folder: Path, rows: int, dtype: torch.dtype) -> None:
        group, part = self.channel.group, None
        try:
            loaded = load_checkpoint(folder)
            shard_backbone(loaded.model.backbone, loaded.config, group.mesh, dtype)
            cache = make_cache(loaded.config, 2 * rows, group.device, dtype, group.size)
            part = Part(loaded.model.backbone, cache)
        except (CheckpointError, ConfigError, OSError) as error:
            log.error("rank %d cannot load %s: %s", group.rank, folder, error)
        if self.channel.all_well(part is not None) and part is not None:
            self.parts[number] = part
            values = local_values(part.backbone)
            log.info("rank %d holds %.1f million values of %s", group.rank, values / 1e6, folder.name)


def follow(device: str, ranks: int, threads: int) -> None:
    """Run a rank other than 0 until rank 0 ends, which is also what stops it: SIGTERM to the group is for rank 0.

    Raises:
        ConfigError: the group cannot be joined.
    """
    torch.set_num_threads(threads)
    channel = open_channel(device, ranks)
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    Follower(channel).run()
    logging.shutdown()
    os._exit(0)  # gloo's threads, whose connections are closed, would abort an orderly end of the interpreter
