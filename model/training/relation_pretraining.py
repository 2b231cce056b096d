"""A lesson before the first picture: read from the caption alone which thing is left, right, above or below.

"a cat left of a dog" means what it does by word order and relation word together, like an exclusive or, and pictures
teach that badly: in three hours of training the axis was learned and nothing else. Asked directly, the text aligner
learns it within a minute on a CPU, from states of the frozen encoder that hold it all along; the pictures' own training
then uses what it finds in the aligned states (docs/log.md). What asks is thrown away, the aligner stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model.data.scenes.facts import Facts
from model.data.scenes.things import OPPOSITE, RELATIONS
from model.inference.precision import autocast
from model.networks.blocks import Attention
from model.networks.transformer import Aligner
from model.training.caption_cache import TextBank
from model.training.layout_loss import PORTRAIT_CLASS, THING_CLASSES
from model.training.trainer import Clock, generator, learning_rate

SIDES = tuple(RELATIONS)
PEAK_LR, WARMUP, ANNEAL_FROM = 1e-3, 100, 0.6
HELD_BACK = 0.1  # share of the captions that the lesson is examined with


class Questions(nn.Module):
    """Four learned questions that attend to the aligned text; each is answered with a thing, or with nothing (0)."""

    def __init__(self, width: int):
        super().__init__()
        self.asked = nn.Parameter(torch.randn(len(SIDES), width))
        self.attn = Attention(width, 4, width)
        self.answer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, PORTRAIT_CLASS + 1))

    def forward(self, aligned: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D') and (B, L) -> (B, 4, things)."""
        asked = self.attn.q(self.asked).expand(len(aligned), -1, -1)
        k, v = self.attn.keys_values(aligned)
        return self.answer(self.attn.attend(self.attn.split(asked), k, v, mask))


def right_answers(facts: Sequence[Facts]) -> Tensor:
    """(B, 4) classes of the things on each side; 0 on the two sides that a caption says nothing of."""
    out = torch.zeros(len(facts), len(SIDES), dtype=torch.int64)
    for row, each in enumerate(facts):
        first, second = (THING_CLASSES[group.thing] for group in each.groups)
        out[row, SIDES.index(each.relation)], out[row, SIDES.index(OPPOSITE[each.relation])] = first, second
    return out


def read(
    aligner: Aligner, facts: Sequence[Facts], bank: TextBank, steps: int, seed: int, batch: int = 256,
    progress: bool = True,
) -> float:  # fmt: skip
    """Teach the aligner, in place, with those of the captions that state a relation.

    Args:
        facts, bank: the captions' truth and states, row by row.
        steps: of `batch` captions each. Without any that states a relation nothing happens.
    Returns:
        Share of held-back captions of which all four sides are read rightly; nan without any.
    """
    rows = torch.tensor([row for row, each in enumerate(facts) if each.relation], dtype=torch.int64)
    truth = right_answers([facts[row] for row in rows.tolist()])
    kept = int(len(rows) * HELD_BACK)
    if len(rows) == 0:
        return float("nan")
    device = bank.states.device
    torch.manual_seed(seed)
    questions = Questions(aligner.norm.normalized_shape[0]).to(device)
    parameters = [*aligner.parameters(), *questions.parameters()]
    clock = Clock(steps, minutes=0.0)
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.02)

    def ask(chosen: Tensor) -> Tensor:
        mine = rows[chosen].to(device)
        with autocast(device):
            states, mask = bank.states[mine, 0].float(), bank.mask[mine, 0]
            return questions(aligner(states, mask), mask).float()  # (B, 4, things)

    for step in tqdm(range(steps), desc="reading lesson", unit="step", disable=not progress):
        chosen = torch.randint(kept, len(rows), (batch,), generator=generator(seed + 4, step))
        loss = F.cross_entropy(ask(chosen).flatten(0, 1), truth[chosen].flatten().to(device))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_LR, clock, WARMUP, ANNEAL_FROM, floor=0.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        clock.tick()
    aligner.zero_grad(set_to_none=True)
    if kept == 0:
        return float("nan")
    with torch.no_grad():
        told = ask(torch.arange(kept)).argmax(-1).cpu()
    return float((told == truth[:kept]).all(-1).float().mean())
