"""What an image is worth: whether the judge finds all that its caption states, and how sure it is of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.data.scenes.facts import Facts
from model.data.scenes.things import TRANSPARENT
from model.evaluation.detector import STRIDE, Detection, Detector
from model.evaluation.scene_questions import is_correct
from model.networks.tokenizer import to_pixels

CORRECT = 0.5  # share of the reward that only a correct image gets; the rest is for clear things in the right style


@torch.inference_mode()
def rewards(judge: Detector, facts: Sequence[Facts], captions: Sequence[str], images: Tensor) -> tuple[Tensor, Tensor]:
    """The rewards of P images, from 0 to 1, and which of them show exactly what their facts state.

    Args:
        captions: a style counts only where the caption names it.
        images: (P, H, W, 3) uint8.
    Returns:
        (P,) float32 and (P,) bool.
    """
    logits = judge(to_pixels(images))
    found = judge.detections(logits)
    correct, clear = torch.zeros(len(facts), dtype=torch.bool), torch.zeros(len(facts))
    for row, (each, caption) in enumerate(zip(facts, captions, strict=True)):
        shown = replace(each, background="white") if each.background == TRANSPARENT else each
        correct[row] = is_correct(shown, found[row], images[row].numpy())
        drawing = logits.drawing[row].flatten(0, 1).softmax(0).unflatten(0, logits.drawing.shape[1:3])  # (T, S, G, G)
        style = each.style if each.style in caption else ""
        clear[row] = clearness(judge, each, style, found[row], drawing)
    return CORRECT * correct + (1 - CORRECT) * clear, correct


def clearness(judge: Detector, facts: Facts, style: str, found: Sequence[Detection], drawing: Tensor) -> float:
    """Mean probability of the stated things over what is stated or found, whichever is more: extra things cost too.

    Args:
        style: the stated one, or "": any.
        drawing: (T, S, G, G) probabilities of the things in the styles.
    """
    left, total = list(found), 0.0
    for group in facts.objects:
        if match := next((each for each in left if each.thing == group.thing), None):
            left.remove(match)
            x, y = (int(place / STRIDE) for place in match.centre)
            styles = drawing[judge.things.index(match.thing), :, y, x]  # (S,)
            total += float(styles[judge.styles.index(style)] if style else styles.sum())
    return total / max(len(facts.objects), len(found))


def advantages(reward: Tensor, group: int) -> Tensor:
    """(P,) rewards, each `group` of them of one prompt -> (P,) advantages in [-1, 1].

    How much better an image is than the others of its prompt, in standard deviations of that over all prompts: what a
    prompt is worth by itself, easy or hard, says nothing about an image.
    """
    grouped = reward.view(-1, group)
    centred = (grouped - grouped.mean(1, keepdim=True)).flatten()
    return (centred / centred.std().clamp_min(1e-3)).clamp(-1, 1)
