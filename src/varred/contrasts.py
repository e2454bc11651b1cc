"""Paired differences between methods, with Student intervals and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from varred.record import Run

Value = Callable[[Run], float]
LEVEL = 0.05
LEAST = 3  # seeds of an interval: from two it would be twelve deviations wide


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
        significant: after Holm's correction over the contrasts it was declared with; None while seeds are missing,
            since nothing is corrected for looking early.
    """

    name: str
    seeds: int
    mean: float
    low: float
    high: float
    p: float
    significant: bool | None = False

    @property
    def written(self) -> str:
        """Mean, 95 % interval where there is one, and a star where it is significant."""
        interval = f" [{self.low:+.3f}, {self.high:+.3f}]" if self.bounded else ""
        return f"{self.mean:+.3f}{interval}{' *' if self.significant else ''}"

    @property
    def bounded(self) -> bool:
        """Whether there are enough runs for an interval."""
        return math.isfinite(self.low)


def paired(name: str, first: Sequence[Run], second: Sequence[Run], value: Value) -> Contrast:
    """Compare two methods on the seeds that both have.

    Raises:
        ValueError: they share no seed.

    Returns:
        The contrast of ``value(first) - value(second)``.
    """
    ours = {run.config.seed: value(run) for run in first}
    theirs = {run.config.seed: value(run) for run in second}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError(f"{name}: no seed was run with both methods")
    return summarize(name, [ours[seed] - theirs[seed] for seed in seeds])


def ended(value: Value) -> Value:
    """Return a run's value; NaN for one that diverged, whose curves stop early."""
    return lambda run: math.nan if run.diverged else value(run)


def summarize(name: str, differences: Sequence[float]) -> Contrast:
    r"""Return mean, 95 % interval and p value of paired differences.

    .. math:: \bar x \pm t_{.975,\,n-1}\, s / \sqrt n

    From fewer than three, or where one is not finite, the interval is infinite and p is 1.

    Example:
        >>> contrast = summarize("a - b", [1.0, 2.0, 3.0])
        >>> round(contrast.low, 2), round(contrast.high, 2), round(contrast.p, 3)
        (-0.48, 4.48, 0.074)
    """
    values = np.asarray(differences, dtype=float)
    mean, count = float(values.mean()), len(values)
    if count < LEAST or not np.isfinite(values).all():
        return Contrast(name, count, mean, -math.inf, math.inf, 1.0)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return Contrast(name, count, mean, mean, mean, 0.0 if mean else 1.0)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return Contrast(name, count, mean, mean - half, mean + half, p)


def by_seed(
    name: str, cells: Mapping[str, Sequence[Run]], coefficients: Mapping[str, float], value: Value
) -> Contrast | None:
    r"""Estimate a contrast of cells from its values seed by seed, with no model but the pairing.

    .. math:: \hat\theta_s = \sum_c k_c\, y_{cs}, \qquad
        \bar\theta \pm t_{.975,\,S-1}\, \frac{\operatorname{sd}(\hat\theta_s)}{\sqrt S}

    It needs no equal variances, as the pooled residual of :func:`block_model` does, and pays in degrees of freedom.

    Args:
        name: of the contrast.
        cells: runs by cell, at most one a seed.
        coefficients: by cell.
        value: the response.

    Returns:
        The contrast over the seeds that all its cells have; None without one, or where a value is not finite.
    """
    responses = {cell: {run.config.seed: value(run) for run in cells[cell]} for cell in coefficients}
    seeds = sorted(set.intersection(*(set(own) for own in responses.values())))
    values = [sum(k * responses[cell][seed] for cell, k in coefficients.items()) for seed in seeds]
    return summarize(name, values) if values and all(map(math.isfinite, values)) else None


def holm(contrasts: Sequence[Contrast], family: int | None = None, planned: int = 0) -> list[Contrast]:
    """Mark the contrasts that are significant at level .05 by Holm's step-down procedure (1979), in the order given.

    The contrast of rank r (from 0) by p, of m declared, is significant while its p is at most .05 / (m - r), and those
    of all before it were too.

    Args:
        contrasts: that can be estimated.
        family: number of contrasts declared together; those that can't be estimated count as not significant.
        planned: number of seeds; contrasts on fewer get None.

    Example:
        >>> marked = holm([Contrast("a", 5, 1, 0, 2, 0.02), Contrast("b", 5, 1, 0, 2, 0.04)])
        >>> [contrast.significant for contrast in marked]
        [True, True]
    """
    order = sorted(range(len(contrasts)), key=lambda i: (math.isnan(contrasts[i].p), contrasts[i].p))
    marks = [False] * len(contrasts)
    for rank, i in enumerate(order):
        if not contrasts[i].p <= LEVEL / ((family or len(contrasts)) - rank):  # an infinite difference has no p value
            break
        marks[i] = True
    return [
        Contrast(c.name, c.seeds, c.mean, c.low, c.high, c.p, mark if c.seeds >= planned else None)
        for c, mark in zip(contrasts, marks, strict=True)
    ]


def against(
    runs: Mapping[str, Sequence[Run]], reduced: Sequence[str], others: Sequence[str], value: Value, planned: int
) -> list[Contrast]:
    """Compare each variance-reduced method with each other method, Holm over all of them, on ``planned`` seeds.

    Raises:
        ValueError: two methods share no seed.

    """
    return holm([paired(f"{a} - {b}", runs[a], runs[b], value) for a in reduced for b in others], planned=planned)


def block_model(
    cells: Mapping[str, Sequence[Run]],
    contrasts: Mapping[str, Mapping[str, float]],
    value: Value,
) -> list[Contrast]:
    r"""Estimate contrasts of cell means in one additive model with seeds as blocks, Holm over all declared.

    .. math:: y_{cs} = \alpha_c + \beta_s + \varepsilon_{cs}, \qquad
        \hat\theta = \sum_c k_c \hat\alpha_c, \quad \sum_c k_c = 0, \qquad
        \hat\theta \pm t_{.975,\,\nu}\; s \sqrt{k^\top (X^\top X)^+ k}

    by least squares, with the pooled residual variance :math:`s^2` on :math:`\nu = n - \operatorname{rank} X` degrees
    of freedom. Cells may lack seeds. A cell that holds a run without a finite value is left out, and so are the
    contrasts that need it, those that need a cell without runs, and those whose cells no shared seeds connect.

    Args:
        cells: runs by cell, at most one a seed.
        contrasts: coefficients by cell, by the contrast's name.
        value: the response.

    Returns:
        The contrasts that can be estimated; where a cell of theirs has one seed or two, or no degrees of freedom are
        left, their intervals are infinite.
    """
    responses = {name: {run.config.seed: value(run) for run in runs} for name, runs in cells.items()}
    responses = {name: own for name, own in responses.items() if own and all(map(math.isfinite, own.values()))}
    names = list(responses)
    seeds = sorted({seed for own in responses.values() for seed in own})
    rows = [(names.index(name), seeds.index(seed), y) for name, own in responses.items() for seed, y in own.items()]
    design = np.zeros((len(rows), len(names) + len(seeds)))
    for place, (cell, seed, _) in enumerate(rows):
        design[place, cell] = design[place, len(names) + seed] = 1
    observed = np.array([y for _, _, y in rows])
    inverse = np.linalg.pinv(design.T @ design)
    span = inverse @ design.T @ design
    estimate = inverse @ design.T @ observed
    freedom = len(rows) - int(np.linalg.matrix_rank(design)) if rows else 0
    residual = float(((observed - design @ estimate) ** 2).sum())
    found = []
    for name, coefficients in contrasts.items():
        if not coefficients.keys() <= responses.keys():
            continue
        weights = np.zeros(design.shape[1])
        for cell_name, coefficient in coefficients.items():
            weights[names.index(cell_name)] = coefficient
        if np.abs(weights - span @ weights).max() > 1e-8:  # no chain of shared seeds connects its cells
            continue
        theta, used = float(weights @ estimate), min(len(responses[cell_name]) for cell_name in coefficients)
        if not freedom or used < LEAST:
            found.append(Contrast(name, used, theta, -math.inf, math.inf, 1.0))
            continue
        error = math.sqrt(residual / freedom * float(weights @ inverse @ weights))
        half = float(stats.t.ppf(0.975, freedom)) * error
        p = 2 * float(stats.t.sf(abs(theta) / error, freedom)) if error else float(theta == 0)
        found.append(Contrast(name, used, theta, theta - half, theta + half, p))
    return holm(found, family=len(contrasts))
