"""The figures of a run, and whether they pass."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from benchmarks.chaos.ledger import Verdict
from benchmarks.chaos.redelivery import GRACE_S
from server.jobs import JobState


def figures(
    verdict: Verdict, unbalanced: Sequence[str], redelivery_s: Sequence[float], raw_s: Sequence[float], scraped: str
) -> dict[str, object]:
    """One flat object. A state is counted if the service knows it."""
    return {
        "submitted": verdict.submitted,
        **{str(state): verdict.states[str(state)] for state in JobState if state.terminal},
        "lost": len(verdict.lost),
        "duplicates": len(verdict.duplicates),
        "unexpected_ends": len(verdict.unexpected),
        "books_unbalanced": len(unbalanced),
        "found_by_label": verdict.found_by_label,
        "never_arrived": verdict.never_arrived,
        "redeliveries": len(redelivery_s),
        "redelivery_p50_s": percentile(redelivery_s, 50),
        "redelivery_p99_s": percentile(redelivery_s, 99),
        "redelivery_raw_p50_s": percentile(raw_s, 50),
        "redelivery_raw_p99_s": percentile(raw_s, 99),
        "resumed_rows": scraped_total(scraped, "fluid_resumed_rows_total"),
        "fenced_results": scraped_total(scraped, "fluid_fenced_results_total"),
        "leases_lost": scraped_total(scraped, "fluid_lease_lost_total"),
    }


def failures(verdict: Verdict, unbalanced: Sequence[str]) -> list[str]:
    """The gates of correctness that are not passed, each with its evidence; empty is good."""
    found = [f"lost: {text}" for text in verdict.lost] + [f"duplicate: {text}" for text in verdict.duplicates]
    found += [f"books: {text}" for text in unbalanced]
    ends = Counter(verdict.states).total()
    if ends + sum("no such job" in text for text in verdict.lost) < verdict.submitted:
        found.append(f"books: {verdict.submitted} submitted, {ends} accounted for")
    return found


def lateness(redelivery_s: Sequence[float], lease_s: float) -> list[str]:
    """The gate of time, which means something only on a machine that does nothing else."""
    late = percentile(redelivery_s, 99)
    if late is None or late <= lease_s + GRACE_S:
        return []
    return [f"late: redelivery p99 is {late} s, a lease and {GRACE_S:g} s are {lease_s + GRACE_S:g} s"]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that so many percent do not exceed; None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 3)


def scraped_total(scraped: str, name: str) -> int:
    """Sum of a counter over its labels in Prometheus' text."""
    return round(sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", scraped, re.M)))
