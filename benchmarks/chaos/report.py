"""Figures of a run, and the gates that they must pass."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from benchmarks.chaos.ledger import Verdict
from benchmarks.chaos.redelivery import GRACE_S
from server.jobs import JobState


def figures(
    verdict: Verdict, inconsistent: Sequence[str], redelivery_s: Sequence[float], raw_s: Sequence[float], scraped: str
) -> dict[str, object]:
    """Return all figures as one flat object, with a count for every terminal state of the service."""
    return {
        "submitted": verdict.submitted,
        **{str(state): verdict.states[str(state)] for state in JobState if state.terminal},
        "lost": len(verdict.lost),
        "duplicates": len(verdict.duplicates),
        "unexpected_ends": len(verdict.unexpected),
        "counters_inconsistent": len(inconsistent),
        "found_by_label": verdict.found_by_label,
        "never_arrived": verdict.never_arrived,
        "rolled_back": verdict.rolled_back,
        "redeliveries": len(redelivery_s),
        "redelivery_p50_s": percentile(redelivery_s, 50),
        "redelivery_p99_s": percentile(redelivery_s, 99),
        "redelivery_raw_p50_s": percentile(raw_s, 50),
        "redelivery_raw_p99_s": percentile(raw_s, 99),
        "resumed_rows": scraped_total(scraped, "fluid_resumed_rows_total"),
        "fenced_results": scraped_total(scraped, "fluid_fenced_results_total"),
        "leases_lost": scraped_total(scraped, "fluid_lease_lost_total"),
    }


def failures(
    verdict: Verdict, inconsistent: Sequence[str], unasked: Sequence[str] = (), bugs: Sequence[str] = ()
) -> list[str]:
    """Return the failed correctness gates, each with its evidence."""
    found = [f"lost: {text}" for text in verdict.lost] + [f"duplicate: {text}" for text in verdict.duplicates]
    found += [f"counters: {text}" for text in inconsistent] + [f"ended: {text}" for text in unasked]
    found += [f"5xx: {text}" for text in bugs]
    ends = Counter(verdict.states).total()
    if ends + sum("no such job" in text for text in verdict.lost) < verdict.submitted:
        found.append(f"audit: {verdict.submitted} submitted, {ends} accounted for")
    return found


def lateness(redelivery_s: Sequence[float], lease_s: float) -> list[str]:
    """Return the failed redelivery gate; it is meaningful only on an otherwise idle machine."""
    late = percentile(redelivery_s, 99)
    if late is None or late <= lease_s + GRACE_S:
        return []
    return [f"late: redelivery p99 is {late} s; the limit, lease plus {GRACE_S:g} s, is {lease_s + GRACE_S:g} s"]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile, or None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 3)


def scraped_total(scraped: str, name: str) -> int:
    """Sum a counter over all its labels in Prometheus text format."""
    return round(sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", scraped, re.M)))
