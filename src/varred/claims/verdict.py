"""What a claim and a verdict are, and how contrasts decide one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from varred.contrasts import Contrast
from varred.record import Run

HOLDS, PART, FAILS, OPEN = "holds", "holds in part", "does not hold", "not decided yet"


@dataclass(frozen=True)
class Claim:
    """A claim and the criterion that was committed before its runs."""

    name: str
    source: str
    criterion: str


@dataclass(frozen=True)
class Verdict:
    """What the records say.

    Attributes:
        claim: its name in ``claims.yml``.
        word: holds, holds in part, does not hold, or not decided yet.
        reason: the numbers behind it, with the number of seeds.
    """

    claim: str
    word: str
    reason: str


def read(path: Path) -> dict[str, Claim]:
    """Read the claims, in the file's order."""
    entries = yaml.safe_load(path.read_text())
    return {name: Claim(name, entry["source"], entry["criterion"].strip()) for name, entry in entries.items()}


def waiting(claim: str) -> Verdict:
    """Return the verdict of a claim whose runs are not all there."""
    return Verdict(claim, OPEN, "its runs are not all recorded")


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def value_at(run: Run, position: Sequence[float], limit: float, curve: str) -> float:
    """Return a curve's value at its last point that is not beyond ``limit``."""
    last = max(i for i, x in enumerate(position) if x <= limit + 1e-9)
    return float(getattr(run.curves, curve)[last])


def count(contrasts: Sequence[Contrast], sign: int) -> int:
    """Return how many contrasts are significant with the sign."""
    return sum(c.significant and sign * c.mean > 0 for c in contrasts)


def write(contrasts: Sequence[Contrast]) -> str:
    """Write means and intervals of contrasts into one line."""
    parts = []
    for c in contrasts:
        interval = f" [{c.low:+.4f}, {c.high:+.4f}]" if c.bounded else ""
        parts.append(f"{c.name} {c.mean:+.4f}{interval}{' *' if c.significant else ''}")
    return "; ".join(parts)


def by_contrasts(claim: str, contrasts: Sequence[Contrast], sign: int, planned: int) -> Verdict:
    """Judge by how many contrasts are significant in the claimed direction: all, some or none.

    Args:
        claim: its name.
        contrasts: of the claim, corrected; empty where their runs are missing.
        sign: 1 or -1, the direction.
        planned: number of seeds planned.
    """
    if not contrasts:
        return waiting(claim)
    seeds = min(c.seeds for c in contrasts)
    if not all(c.bounded for c in contrasts):
        return Verdict(claim, OPEN, f"{seeds} of {planned} seeds: no interval yet; so far {write(contrasts)}")
    hits = count(contrasts, sign)
    word = HOLDS if hits == len(contrasts) else PART if hits else FAILS
    reason = (
        f"{hits} of {len(contrasts)} contrasts significant in the claimed direction, {count(contrasts, -sign)} against"
    )
    return Verdict(claim, word, f"{reason} ({seeds} seeds): {write(contrasts)}")
