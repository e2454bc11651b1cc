"""What explains SVRG's deficit on ResNet18? A factorial of snapshot period, locking and batch normalization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from varred.config import Config, Observation, Rule, SGDRule, Snapshot, SVRGRule
from varred.experiments.comparison import FIRST_SEED, NORMALIZATIONS, RESNET18, Normalization, Scale
from varred.record import Run
from varred.runs import Store
from varred.sweep import Phase


@dataclass(frozen=True)
class Cell:
    """One way to run: the estimator, its snapshots, and how long order and transforms are kept.

    Attributes:
        snapshot: None for plain SGD.
        redraw: epochs for which one order and one draw of the transforms are kept.
        redraw_last: the last epoch at which they may be redrawn; None for no end.

    """

    snapshot: Snapshot | None
    redraw: int = 1
    redraw_last: int | None = None

    def rule(self, learning_rate: float) -> Rule:
        """Return SVRG around plain SGD, or plain SGD."""
        sgd = SGDRule(name="sgd", learning_rate=learning_rate)
        return sgd if self.snapshot is None else SVRGRule(name="svrg", base=sgd, snapshot=self.snapshot)

    @property
    def draws(self) -> dict[str, Any]:
        """The config's fields that say when order and transforms are redrawn."""
        return {"redraw_order": self.redraw, "redraw_transforms": self.redraw, "redraw_last": self.redraw_last}


ONCE = Snapshot(last=0)
TWICE = Snapshot(every=5, last=5)
CELLS: Mapping[str, Cell] = {
    "SGD": Cell(None),
    "SVRG every epoch": Cell(Snapshot()),
    "SVRG every 5, redrawn": Cell(Snapshot(every=5)),
    "SVRG once, redrawn": Cell(ONCE),
    "SVRG every 5, locked": Cell(Snapshot(every=5), 5),
    "SGD, kept 5 epochs": Cell(None, 5),
    "SGD, kept for ever": Cell(None, 1, 0),
    "SVRG once, locked": Cell(ONCE, 1, 0),
    "SVRG at 0 and 5, redrawn": Cell(TWICE),
    "SVRG at 0 and 5, locked": Cell(TWICE, 5, 5),
}
"""In the order of the queue. A snapshot every epoch is locked by nature: its partition is the epoch's own."""

CONTRASTS: Mapping[str, Mapping[str, float]] = {
    "estimator: every epoch - SGD": {"SVRG every epoch": 1, "SGD": -1},
    "staleness: every 5 locked - every epoch, net": {
        "SVRG every 5, locked": 1,
        "SVRG every epoch": -1,
        "SGD, kept 5 epochs": -1,
        "SGD": 1,
    },
    "freezing: once locked - every 5 locked, net": {
        "SVRG once, locked": 1,
        "SVRG every 5, locked": -1,
        "SGD, kept for ever": -1,
        "SGD, kept 5 epochs": 1,
    },
    "unlocking, once: redrawn - locked, net": {
        "SVRG once, redrawn": 1,
        "SVRG once, locked": -1,
        "SGD": -1,
        "SGD, kept for ever": 1,
    },
    "deficit with a frozen snapshot: once redrawn - SGD": {"SVRG once, redrawn": 1, "SGD": -1},
    "unlocking, every 5: redrawn - locked, net": {
        "SVRG every 5, redrawn": 1,
        "SVRG every 5, locked": -1,
        "SGD": -1,
        "SGD, kept 5 epochs": 1,
    },
    "deficit of the public code's protocol: every 5 redrawn - SGD": {"SVRG every 5, redrawn": 1, "SGD": -1},
}
"""Declared before the runs; "net" subtracts what keeping order and transforms equally long does to plain SGD.

The first four add up to the fifth. Holm's correction is over all seven, for one response and one setting.
"""


def observation(scale: Scale) -> Observation:
    """Return when the noise is measured: in the first, the middle and the last epoch."""
    last = scale.side_epochs - 1
    return Observation(epochs=tuple(sorted({0, last // 2, last})))


def run_of(scale: Scale, normalization: Normalization, cell: str, learning_rate: float, seed: int) -> Config:
    """Return a cell's run."""
    own = CELLS[cell]
    return RESNET18.config(
        scale,
        normalization,
        own.rule(learning_rate),
        seed=seed,
        epochs=scale.side_epochs,
        images=scale.side_images,
        **own.draws,
    )


def rates(store: Store, scale: Scale) -> dict[Normalization, float]:
    """Return the learning rate of all cells of a setting: the one selected for SVRG there, or the source's."""
    if scale.source_values:
        return {normalization: RESNET18.source_rates[normalization]["SVRG"] for normalization in NORMALIZATIONS}
    found = {normalization: RESNET18.selected(store, scale, normalization, "SVRG") for normalization in NORMALIZATIONS}
    return {normalization: rate for normalization, rate in found.items() if rate is not None}


def cells(store: Store, scale: Scale, normalization: Normalization) -> dict[str, list[Run]]:
    """Return the recorded runs of each cell, in the order of the seeds; empty lists where there are none."""
    rate = rates(store, scale).get(normalization)
    return {
        cell: []
        if rate is None
        else store.available(run_of(scale, normalization, cell, rate, seed) for seed in scale.seeds)
        for cell in CELLS
    }


def _phase(scale: Scale, chosen: Mapping[Normalization, float], seed: int) -> Phase:
    return Phase(
        f"factorial, seed {seed}",
        [run_of(scale, setting, cell, rate, seed) for cell in CELLS for setting, rate in chosen.items()],
        observation(scale) if seed == FIRST_SEED else None,
        planned=len(NORMALIZATIONS) * len(CELLS),
    )


def plan(scale: Scale) -> list[Phase]:
    """Return runs that take as long as the queue's, for estimates: rates are the source's, which cost the same."""
    chosen = {setting: RESNET18.source_rates[setting]["SVRG"] for setting in NORMALIZATIONS}
    return [_phase(scale, chosen, seed) for seed in scale.seeds]


def queue(scale: Scale, store: Store) -> Iterator[Phase]:
    """Yield the search for SVRG's learning rate, then the factorial; the noise is measured in the first seed's runs."""
    if not scale.source_values:
        yield from RESNET18.search(store, scale, ["SVRG"])
    for seed in scale.seeds:
        yield _phase(scale, rates(store, scale), seed)
