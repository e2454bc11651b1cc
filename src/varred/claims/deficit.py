"""Judges of the claims on what explains SVRG's deficit (chapter 14)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from varred.claims.verdict import (
    FAILS,
    HOLDS,
    PART,
    UNSHOWN,
    Verdict,
    by_contrasts,
    so_far,
    waiting,
    with_divergence,
    write,
)
from varred.contrasts import Contrast, Value, block_model, by_seed
from varred.experiments import deficit
from varred.experiments.comparison import NORMALIZATIONS, RESNET18, Normalization
from varred.record import Noise, Run
from varred.runs import Store

SCALE = RESNET18.scale("cpu")
SOURCE = "deficit of the public code's protocol"


def train_loss(run: Run) -> float:
    """Return the factorial's response: the final loss on the fixed training images; infinite for a diverged run."""
    return math.inf if run.diverged else run.curves.train_loss[-1]


def running_loss(run: Run) -> float:
    """Return the mean loss over the last epoch's mini-batches, as 000's author records it; infinite if diverged."""
    return math.inf if run.diverged else run.curves.running_loss[-1]


def contrasts(store: Store, normalization: Normalization, value: Value = train_loss) -> list[Contrast]:
    """Return the declared contrasts of a setting that can be estimated so far.

    None is marked as significant before all its seeds are recorded, nor in any response but the declared one.
    """
    found = block_model(deficit.cells(store, SCALE, normalization), deficit.CONTRASTS, value)
    final = value is train_loss
    return [replace(c, significant=(c.significant and final) if c.seeds == len(SCALE.seeds) else None) for c in found]


def control(name: str) -> dict[str, float]:
    """Return the part of a net contrast that is plain SGD's: what is added to SVRG's own change.

    Example:
        >>> control("freezing: once locked - every 5 locked, net")
        {'SGD, kept for ever': -1, 'SGD, kept 5 epochs': 1}

    """
    return {cell: k for cell, k in deficit.CONTRASTS[name].items() if deficit.CELLS[cell].snapshot is None}


def scatter(losses: Sequence[float], last: int = 8) -> float:
    """Return the standard deviation of the last epochs' losses about a straight line, with ``last - 2`` in the divisor.

    Example:
        >>> scatter([9, 9, 1, 2, 3, 4], last=4) < 1e-12
        True

    """
    x, y = np.arange(last), np.asarray(losses[-last:])
    return float(np.sqrt(np.square(y - np.polyval(np.polyfit(x, y, 1), x)).sum() / (last - 2)))


def half_width(spreads: Sequence[float], cells: int) -> float:
    r"""Return the half-width that a single interval of the model would have with all seeds, were ``spreads`` its noise.

    :math:`t_{.975,\,(c-1)(s-1)} \, \sigma \sqrt{k/s}` for a contrast of :math:`k` cells with coefficients of
    :math:`\pm1`, with :math:`c` cells in the model, :math:`s` seeds and :math:`\sigma` the root mean square of
    ``spreads``.
    """
    seeds = len(SCALE.seeds)
    quantile = stats.t.ppf(0.975, (len(deficit.CELLS) - 1) * (seeds - 1))
    return float(quantile * np.sqrt(np.mean(np.square(spreads)) * cells / seeds))


def _positive(claim: str, words: Sequence[str], settings: Sequence[Normalization]) -> Callable[[Store], Verdict]:
    """Return the judge of a claim that some contrasts are significantly positive in some settings."""

    def judge(store: Store) -> Verdict:
        names = [name for name in deficit.CONTRASTS if any(name.startswith(word) for word in words)]
        found, needed, doubtful = [], [], []
        for setting in settings:
            cells = deficit.cells(store, SCALE, setting)
            needed += [run for name in names for cell in deficit.CONTRASTS[name] for run in cells[cell]]
            own = {contrast.name: contrast for contrast in contrasts(store, setting)}
            for name in (name for name in names if name in own):
                found.append(replace(own[name], name=f"{name} ({label(setting)})"))
                alone = by_seed(name, cells, deficit.CONTRASTS[name], train_loss)
                if own[name].significant and alone and alone.low <= 0 <= alone.high:
                    doubtful.append(found[-1].name)
        if len(found) < len(names) * len(settings):
            return with_divergence(claim, {run.config.identity: run for run in needed}.values()) or waiting(claim)
        verdict = by_contrasts(claim, found, 1, len(SCALE.seeds))
        if doubtful:
            reason = f"{verdict.reason}; but 0 lies within the interval paired by seed of {', '.join(doubtful)}"
            verdict = replace(verdict, reason=reason)
        return verdict

    return judge


def label(normalization: Normalization) -> str:
    """Return how the book writes a setting."""
    return "with BN" if normalization == "batch" else "without BN"


def interaction(store: Store) -> Contrast | None:
    """Return how much larger SVRG's deficit is with batch normalization than without; None without a common seed."""
    cells, coefficients = {}, {}
    for setting, sign in zip(NORMALIZATIONS, (1, -1), strict=True):
        for cell, k in next(own for name, own in deficit.CONTRASTS.items() if name.startswith(SOURCE)).items():
            cells[f"{cell}, {setting}"] = deficit.cells(store, SCALE, setting)[cell]
            coefficients[f"{cell}, {setting}"] = sign * k
    return by_seed("deficit with BN - without BN", cells, coefficients, train_loss)


def normalization(store: Store) -> Verdict:
    """Judge deficit-normalization."""
    name, contrast = "deficit-normalization", interaction(store)
    groups = [deficit.cells(store, SCALE, setting) for setting in NORMALIZATIONS]
    needed = [run for cells in groups for cell in ("SVRG every 5, redrawn", "SGD") for run in cells[cell]]
    diverged = with_divergence(name, needed)
    if diverged or contrast is None:
        return diverged or waiting(name)
    if contrast.seeds < len(SCALE.seeds):
        return so_far(name, contrast.seeds, len(SCALE.seeds), write([contrast]))
    word = HOLDS if contrast.low > 0 else FAILS if contrast.high < 0 else UNSHOWN
    return Verdict(name, word, f"{write([contrast])} ({contrast.seeds} seeds)")


def variance(store: Store) -> Verdict:
    """Judge deficit-variance."""
    name = "deficit-variance"
    middle, last = (SCALE.side_epochs - 1) // 2, SCALE.side_epochs - 1
    moments: list[Noise] = []
    parts = []
    for setting in NORMALIZATIONS:
        cells = deficit.cells(store, SCALE, setting)
        runs = [run for run in cells["SVRG every epoch"] if run.config.seed == SCALE.seeds[0]]
        own = [n for run in runs for n in run.noise if n.epoch in (middle, last) and n.fraction in (0.33, 1.0)]
        if len(own) < 4 or any(run.diverged for run in runs):
            return with_divergence(name, runs) or waiting(name)
        moments += own
        above = sum(n.ratio > 1 for n in own)
        source = ", the setting of source 001's networks," if setting == "batch" else ""
        parts.append(f"{label(setting)}{source} at {above} of {len(own)} (" + ", ".join(map(ratio_at, own)) + ")")
    hits = sum(n.ratio > 1 for n in moments)
    word = HOLDS if hits == len(moments) else PART if hits else FAILS
    reason = f"above 1 at {hits} of {len(moments)} moments of the first seed: " + "; ".join(parts)
    return Verdict(name, word, reason)


def ratio_at(noise: Noise) -> str:
    """Write one measured ratio with its moment.

    Example:
        >>> ratio_at(Noise(epoch=7, step=52, fraction=0.33, sgd=2.0, centred=2.0, offset=1.0,
        ...     distance=1.0, curvature=1.0, gradient_norm=1.0))
        '1.50 at 33 % of epoch 8'

    """
    return f"{noise.ratio:.2f} at {round(100 * noise.fraction)} % of epoch {noise.epoch + 1}"


JUDGES: dict[str, Callable[[Store], Verdict]] = {
    "deficit-source": _positive("deficit-source", [SOURCE], ["batch"]),
    "deficit-normalization": normalization,
    "deficit-staleness": _positive("deficit-staleness", ["staleness"], NORMALIZATIONS),
    "deficit-freezing": _positive("deficit-freezing", ["freezing"], NORMALIZATIONS),
    "deficit-unlocking": _positive("deficit-unlocking", ["unlocking"], NORMALIZATIONS),
    "deficit-variance": variance,
}


def judged(store: Store) -> list[Run]:
    """Return the recorded runs on which the claims are judged."""
    return [run for setting in NORMALIZATIONS for own in deficit.cells(store, SCALE, setting).values() for run in own]
