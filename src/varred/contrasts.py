"""Paired differences between methods, with Student intervals and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from varred.record import Run

Value = Callable[[Run], float]


@dataclass(frozen=True)
class Contrast:
    """A paired difference of two methods over seeds.

    Attributes:
        name: what is subtracted from what.
        seeds: number of pairs.
        mean: of the differences.
        low: lower end of the two-sided 95 % Student interval.
        high: upper end.
        p: two-sided p value of a mean of zero.
        significant: after Holm's correction over the contrasts it was declared with.
    """

    name: str
    seeds: int
    mean: float
    low: float
    high: float
    p: float
    significant: bool = False


def paired(name: str, first: Sequence[Run], second: Sequence[Run], value: Value) -> Contrast:
    """Compare two methods on the seeds that both have.

    Raises:
        ValueError: they share no seed.

    Returns:
        The contrast of ``value(first) - value(second)``; with a single pair its interval is infinite.
    """
    ours = {run.config.seed: value(run) for run in first}
    theirs = {run.config.seed: value(run) for run in second}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError(f"{name}: no seed was run with both methods")
    return summarize(name, [ours[seed] - theirs[seed] for seed in seeds])


def summarize(name: str, differences: Sequence[float]) -> Contrast:
    """Return mean, interval and p value of paired differences.

    Example:
        >>> contrast = summarize("a - b", [1.0, 2.0, 3.0])
        >>> round(contrast.low, 2), round(contrast.high, 2), round(contrast.p, 3)
        (-0.48, 4.48, 0.074)
    """
    values = np.asarray(differences, dtype=float)
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Contrast(name, 1, mean, -math.inf, math.inf, 1.0)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return Contrast(name, count, mean, mean, mean, 0.0 if mean else 1.0)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return Contrast(name, count, mean, mean - half, mean + half, p)


def holm(contrasts: Sequence[Contrast], level: float = 0.05) -> list[Contrast]:
    """Mark the contrasts that are significant by Holm's step-down procedure, in the order given.

    Example:
        >>> marked = holm([Contrast("a", 5, 1, 0, 2, 0.02), Contrast("b", 5, 1, 0, 2, 0.04)])
        >>> [contrast.significant for contrast in marked]
        [True, True]
    """
    order = sorted(range(len(contrasts)), key=lambda i: contrasts[i].p)
    marks = [False] * len(contrasts)
    for rank, i in enumerate(order):
        if contrasts[i].p > level / (len(contrasts) - rank):
            break
        marks[i] = True
    return [
        Contrast(c.name, c.seeds, c.mean, c.low, c.high, c.p, mark) for c, mark in zip(contrasts, marks, strict=True)
    ]


def against(
    runs: Mapping[str, Sequence[Run]], reduced: Sequence[str], others: Sequence[str], value: Value
) -> list[Contrast]:
    """Compare each variance-reduced method with each other method, Holm over all of them."""
    return holm([paired(f"{a} - {b}", runs[a], runs[b], value) for a in reduced for b in others])
