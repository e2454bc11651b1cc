"""What a claim and a verdict are, and how contrasts decide one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from varred.contrasts import Contrast
from varred.record import Run

HOLDS, PART, FAILS, UNSHOWN, OPEN = "holds", "holds in part", "does not hold", "not shown", "not decided yet"


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
        word: holds, holds in part, does not hold, not shown, or not decided yet.
        reason: the numbers behind it, with the number of seeds.
    """

    claim: str
    word: str
    reason: str


def read(path: Path) -> dict[str, Claim]:
    """Read the claims, in the file's order.

    Raises:
        ValueError: the file is no YAML, or a claim lacks its source or its criterion.
    """
    try:
        entries = yaml.safe_load(path.read_text())
        return {name: Claim(name, entry["source"], entry["criterion"].strip()) for name, entry in entries.items()}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: every claim needs a source and a criterion, as text") from error


def waiting(claim: str) -> Verdict:
    """Return the verdict of a claim whose runs are not all there."""
    return Verdict(claim, OPEN, "its runs are not all recorded")


def so_far(claim: str, seeds: int, planned: int, text: str) -> Verdict:
    """Return the open verdict of a claim of which some seeds are missing, with what the records say so far."""
    return Verdict(claim, OPEN, f"{seeds} of {planned} seeds; so far {text}")


def with_divergence(claim: str, runs: Iterable[Run]) -> Verdict | None:
    """Return the verdict of a claim of whose runs some have diverged; None if none has."""
    ended = [run.diverged is not None for run in runs]
    if not any(ended):
        return None
    return Verdict(claim, OPEN, f"{sum(ended)} of {len(ended)} of its runs diverged, which further seeds can't mend")


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def value_at(run: Run, position: Sequence[float], limit: float, curve: str) -> float:
    """Return a loss curve's value at its last point that is not beyond ``limit``; infinite where it is not finite."""
    last = max(i for i, x in enumerate(position) if x <= limit + 1e-9)
    value = float(getattr(run.curves, curve)[last])
    return value if math.isfinite(value) else math.inf


def count(contrasts: Sequence[Contrast], sign: int) -> int:
    """Return how many contrasts are significant with the sign."""
    return sum(bool(c.significant) and sign * c.mean > 0 for c in contrasts)


def write(contrasts: Sequence[Contrast]) -> str:
    """Write means and intervals of contrasts into one line."""
    parts = []
    for c in contrasts:
        interval = f" [{c.low:+.4f}, {c.high:+.4f}]" if c.bounded else ""
        parts.append(f"{c.name} {c.mean:+.4f}{interval}{' *' if c.significant else ''}")
    return "; ".join(parts)


def by_contrasts(
    claim: str, contrasts: Sequence[Contrast], sign: int, planned: int, none: str | None = None
) -> Verdict:
    """Judge by how many contrasts are significant in the claimed direction: all, some or none.

    Where none is, the claim doesn't hold if one is significant in the other direction, and is not shown otherwise.
    There is no verdict before all planned seeds are recorded: intervals are not corrected for looking early.

    Args:
        claim: its name.
        contrasts: of the claim, corrected; empty where their runs are missing.
        sign: 1 or -1, the direction.
        planned: number of seeds planned.
        none: the word where none is significant in the claimed direction, for criteria that name one.
    """
    if not contrasts:
        return waiting(claim)
    seeds = min(c.seeds for c in contrasts)
    if seeds < planned or not all(c.bounded for c in contrasts):
        return so_far(claim, seeds, planned, write(contrasts))
    hits, against = count(contrasts, sign), count(contrasts, -sign)
    word = HOLDS if hits == len(contrasts) else PART if hits else none or (FAILS if against else UNSHOWN)
    reason = f"{hits} of {len(contrasts)} contrasts significant in the claimed direction, {against} against"
    if none and not hits and not against:
        reason += ", which shows no difference and no absence of one"
    return Verdict(claim, word, f"{reason} ({seeds} seeds): {write(contrasts)}")
