"""The accepted ratios of each kind of machine, and what is worse now. Every ratio is a cost: less is better."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS

LOSS = 0.15
#: Ratios whose best of three is within LOSS of their median also on a machine with ten times more work than cores; the
#: others are shown and decide nothing. docs/benchmarks.md has the spread of each.
STABLE = re.compile(r"commands_.*|cpu_image|cpu_valkey|engine_over_reference|head_over_matmul")
#: Counts do not depend on the machine, so they are compared with those of any.
COUNTS = re.compile(r"commands_.*")


@dataclass(frozen=True, slots=True)
class Finding:
    """One ratio now and when it was accepted; None if it was not."""

    name: str
    now: float
    accepted: float | None

    @property
    def change(self) -> float | None:
        return self.now / self.accepted - 1 if self.accepted else None

    @property
    def is_loss(self) -> bool:
        return bool(STABLE.fullmatch(self.name)) and self.change is not None and self.change > LOSS

    @property
    def verdict(self) -> str:
        if self.change is None:
            return "not accepted yet"
        if self.change > LOSS:
            return "LOSS" if self.is_loss else "worse (not judged)"
        return "better: --accept keeps it" if self.change < -LOSS else ""


def machine_kind(machine: Mapping[str, Any]) -> str:
    """Return a name for machines whose ratios are comparable: processor, cores and instructions."""
    words = f"{machine['cpu']} {machine['cores']} {' '.join(machine['bf16'])}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def accepted_file(kind: str) -> Path:
    return RESULTS / f"gate-{kind}.json"


def read_accepted(kind: str) -> dict[str, float]:
    """Return the accepted ratios of this kind of machine; of others only the counts, if it has none."""
    own = accepted_file(kind)
    if own.exists():
        return dict(json.loads(own.read_text())["ratios"])
    others = sorted(RESULTS.glob("gate-*.json"), key=lambda file: json.loads(file.read_text())["machine"]["date"])
    found = json.loads(others[-1].read_text())["ratios"] if others else {}
    return only_counts(found)


def only_counts(ratios: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in ratios.items() if COUNTS.fullmatch(name)}


def compare(now: Mapping[str, float], accepted: Mapping[str, float]) -> list[Finding]:
    """Return a finding for each present ratio."""
    return [Finding(name, value, accepted.get(name)) for name, value in now.items()]
