"""Relation pretraining: the text aligner learns from captions alone which thing is left, right, above or below.

The meaning of "a cat left of a dog" depends on word order and relation word together, like an exclusive or, and images
teach that poorly: in three hours of training the model learned the axis and nothing else. With direct supervision the
aligner learns it within a minute on a CPU, from states of the frozen encoder that contain it all along; training on
images then uses what it finds in the aligned states (docs/log.md). The probe that supervises is discarded afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model.data.scenes.facts import Facts
from model.data.scenes.things import OPPOSITE, RELATIONS
from model.inference.precision import autocast
from model.networks.layers.blocks import Attention
from model.networks.transformer import Aligner
from model.training.auxiliary.layout_loss import PORTRAIT_CLASS, THING_CLASSES
from model.training.captions.caption_cache import CaptionCache
from model.training.trainer import Clock, learning_rate, load_state, own_state, save_state, step_generator

SIDES = tuple(RELATIONS)
PEAK_LR, WARMUP, ANNEAL_FROM = 1e-3, 100, 0.6
VALIDATION_SHARE = 0.1  # of the captions


class RelationProbe(nn.Module):
    """Four learned queries, one per side, that attend to the aligned text and predict the thing there (0: none)."""

    def __init__(self, width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(SIDES), width))
        self.attn = Attention(width, 4, width)
        self.classifier = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, PORTRAIT_CLASS + 1))

    def forward(self, aligned: Tensor, mask: Tensor) -> Tensor:
        """Aligned text (B, L, D') and its mask (B, L) -> logits (B, 4, classes)."""
        queries = self.attn.q(self.queries).expand(len(aligned), -1, -1)
        k, v = self.attn.keys_values(aligned)
        return self.classifier(self.attn.attend(self.attn.split(queries), k, v, mask))


def relation_targets(facts: Sequence[Facts]) -> Tensor:
    """Classes of the things on the four sides, 0 for the two sides that a caption does not mention; (B, 4) int64."""
    out = torch.zeros(len(facts), len(SIDES), dtype=torch.int64)
    for row, each in enumerate(facts):
        first, second = (THING_CLASSES[group.thing] for group in each.groups)
        out[row, SIDES.index(each.relation)], out[row, SIDES.index(OPPOSITE[each.relation])] = first, second
    return out


def pretrain_aligner(
    aligner: Aligner, facts: Sequence[Facts], captions: CaptionCache, steps: int, seed: int, batch: int = 256,
    progress: bool = True,
) -> float:  # fmt: skip
    """Train the aligner, in place, on the captions that state a relation; do nothing if none does.

    Args:
        facts, captions: what each caption states, and its text states, row by row.
        steps: optimiser steps, of `batch` captions each.

    Returns:
        Accuracy on held-back captions, with all four sides correct; nan if there are none.
    """
    rows = torch.tensor([row for row, each in enumerate(facts) if each.relation], dtype=torch.int64)
    targets = relation_targets([facts[row] for row in rows.tolist()])
    held_back = int(len(rows) * VALIDATION_SHARE)
    if len(rows) == 0:
        return float("nan")
    device = captions.states.device
    torch.manual_seed(seed)
    probe = RelationProbe(aligner.norm.normalized_shape[0]).to(device)
    parameters = [*aligner.parameters(), *probe.parameters()]
    clock = Clock(steps, minutes=0.0)
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.02)

    def predict(chosen: Tensor) -> Tensor:
        mine = rows[chosen].to(device)
        with autocast(device):
            states, mask = captions.states[mine, 0].float(), captions.mask[mine, 0]
            return probe(aligner(states, mask), mask).float()  # (B, 4, classes)

    for step in tqdm(range(steps), desc="relation pretraining", unit="step", disable=not progress):
        chosen = torch.randint(held_back, len(rows), (batch,), generator=step_generator(seed + 4, step))
        loss = F.cross_entropy(predict(chosen).flatten(0, 1), targets[chosen].flatten().to(device))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_LR, clock, WARMUP, ANNEAL_FROM, floor=0.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        clock.tick()
    aligner.zero_grad(set_to_none=True)
    if held_back == 0:
        return float("nan")
    with torch.no_grad():
        predicted = predict(torch.arange(held_back)).argmax(-1).cpu()
    return float((predicted == targets[:held_back]).all(-1).float().mean())


def pretrain_or_read(
    aligner: Aligner, facts: Sequence[Facts], captions: CaptionCache, file: Path, steps: int, seed: int
) -> None:  # fmt: skip
    """Pretrain the aligner and write it to `file`, or read it from there if a killed run like this got that far.

    Raises:
        ConfigError: the file is damaged, or that of another preset.
    """
    said = captions.states[: len(facts) : max(1, len(facts) // 64), 0]  # differs with captions and their encoder
    told = said.cpu().view(torch.int16).numpy().tobytes() + repr((steps, seed, len(facts))).encode()
    digest = hashlib.sha256(told).hexdigest()
    saved = load_state(file)
    if saved is not None and saved.get("of") == digest:
        with own_state(file.parent):
            aligner.load_state_dict(saved["aligner"])
        return
    accuracy = pretrain_aligner(aligner, facts, captions, steps, seed)
    print(f"relation pretraining: {accuracy:.1%} accuracy on held-back captions")
    save_state(file, of=digest, aligner=aligner.state_dict())
