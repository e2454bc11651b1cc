"""Judges of the claims on what explains SVRG's deficit (chapter 14)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from varred.claims.verdict import FAILS, HOLDS, OPEN, PART, Verdict, by_contrasts, waiting, write
from varred.contrasts import Contrast, Value, block_model, summarize
from varred.experiments import deficit
from varred.experiments.comparison import NORMALIZATIONS, RESNET18, Normalization
from varred.record import Noise, Run
from varred.runs import Store

SCALE = RESNET18.scale("cpu")
SOURCE = "deficit of the source's protocol"


def train_loss(run: Run) -> float:
    """Return the factorial's response: the final loss on the fixed training images; infinite for a diverged run."""
    return math.inf if run.diverged else run.curves.train_loss[-1]


def contrasts(store: Store, normalization: Normalization, value: Value = train_loss) -> list[Contrast]:
    """Return the declared contrasts of a setting that can be estimated so far."""
    return block_model(deficit.cells(store, SCALE, normalization), deficit.CONTRASTS, value)


def _named(store: Store, words: Sequence[str]) -> dict[Normalization, list[Contrast]]:
    return {
        setting: [c for c in contrasts(store, setting) if any(c.name.startswith(word) for word in words)]
        for setting in NORMALIZATIONS
    }


def _positive(claim: str, words: Sequence[str], settings: Sequence[Normalization]) -> Callable[[Store], Verdict]:
    """Return the judge of a claim that some contrasts are significantly positive in some settings."""

    def judge(store: Store) -> Verdict:
        found = _named(store, words)
        if any(len(found[setting]) < len(words) for setting in settings):
            return waiting(claim)
        labelled = [
            Contrast(**{**vars(c), "name": f"{c.name} ({label(setting)})"})
            for setting in settings
            for c in found[setting]
        ]
        return by_contrasts(claim, labelled, 1, len(SCALE.seeds))

    return judge


def label(normalization: Normalization) -> str:
    """Return how the book writes a setting."""
    return "with BN" if normalization == "batch" else "without BN"


def interaction(store: Store) -> Contrast | None:
    """Return how much larger SVRG's deficit is with batch normalization than without; None before both are there."""
    differences: dict[Normalization, dict[int, float]] = {}
    for setting in NORMALIZATIONS:
        cells = deficit.cells(store, SCALE, setting)
        runs = {
            run.config.seed: train_loss(run) for run in cells["SVRG every 5, redrawn"] if math.isfinite(train_loss(run))
        }
        base = {run.config.seed: train_loss(run) for run in cells["SGD"] if math.isfinite(train_loss(run))}
        differences[setting] = {seed: runs[seed] - base[seed] for seed in runs.keys() & base.keys()}
    with_, without = differences["batch"], differences["none"]
    seeds = sorted(with_.keys() & without.keys())
    if not seeds:
        return None
    return summarize("deficit with BN - without BN", [with_[seed] - without[seed] for seed in seeds])


def normalization(store: Store) -> Verdict:
    """Judge deficit-normalization."""
    name, contrast = "deficit-normalization", interaction(store)
    if contrast is None:
        return waiting(name)
    if not contrast.bounded:
        return Verdict(
            name, OPEN, f"{contrast.seeds} of {len(SCALE.seeds)} seeds: no interval; so far {write([contrast])}"
        )
    return Verdict(name, HOLDS if contrast.low > 0 else FAILS, f"{write([contrast])} ({contrast.seeds} seeds)")


def variance(store: Store) -> Verdict:
    """Judge deficit-variance."""
    name = "deficit-variance"
    middle, last = (SCALE.side_epochs - 1) // 2, SCALE.side_epochs - 1
    above: dict[Normalization, int] = {}
    parts = []
    for setting in NORMALIZATIONS:
        runs = [run for run in deficit.cells(store, SCALE, setting)["SVRG every epoch"] if run.noise]
        moments = [n for run in runs for n in run.noise if n.epoch in (middle, last) and n.fraction in (0.33, 1.0)]
        if len(moments) < 4:
            return waiting(name)
        above[setting] = sum(n.ratio > 1 for n in moments)
        parts.append(f"{label(setting)} " + ", ".join(ratio_at(n) for n in moments))
    hits = [above[setting] == 4 for setting in NORMALIZATIONS]
    word = HOLDS if all(hits) else FAILS if not any(above.values()) else PART
    return Verdict(
        name, word, "ratio of SVRG's mean squared error to SGD's variance: " + "; ".join(parts) + " (one seed)"
    )


def ratio_at(noise: Noise) -> str:
    """Write one measured ratio with its moment.

    Example:
        >>> ratio_at(Noise(epoch=7, step=52, fraction=0.33, sgd=2.0, centred=2.0, offset=1.0, distance=1.0,
        ...     curvature=1.0, gradient_norm=1.0))
        '1.50 at 33 % of epoch 8'

    """
    return f"{noise.ratio:.2f} at {round(100 * noise.fraction)} % of epoch {noise.epoch + 1}"


JUDGES: dict[str, Callable[[Store], Verdict]] = {
    "deficit-source": _positive("deficit-source", [SOURCE], ["batch"]),
    "deficit-normalization": normalization,
    "deficit-staleness": _positive("deficit-staleness", ["staleness"], NORMALIZATIONS),
    "deficit-freezing": _positive("deficit-freezing", ["freezing"], NORMALIZATIONS),
    "deficit-unlocking": _positive("deficit-unlocking", ["unlocking, every 5", "unlocking, once"], NORMALIZATIONS),
    "deficit-variance": variance,
}
