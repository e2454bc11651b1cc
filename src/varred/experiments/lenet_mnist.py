"""LeNet on MNIST: section 4.1 of source 000."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from varred.config import (
    AdaGradRule,
    AdamRule,
    Config,
    Data,
    Folds,
    LeNetModel,
    Rule,
    SGDRule,
    Snapshot,
    STORMRule,
    SVRGRule,
)
from varred.experiments import parameters
from varred.experiments.grid import Axis, Point, candidates, points, widening
from varred.optim.storm import Granularity
from varred.record import Run
from varred.runs import Store
from varred.sweep import Phase

METHODS = ("Adam", "SGD", "AdaGrad", "SVRG", "STORM")
FINALISTS = 3
WIDENINGS = 2
SNAPSHOT_BATCH = 160  # the snapshot pass needs no small batches; this size is the fastest on a CPU


@dataclass(frozen=True)
class Scale:
    """What a preset changes.

    Attributes:
        size: of the data set.
        epochs: of the benchmark.
        seeds: of the benchmark.
        side_seeds: of the side experiments (STORM's granularities, SVRG's snapshot period).
        screening_epochs: of the first stage of cross-validation.
        final_epochs: of its second stage; None for a single stage.
        methods: the optimizers to compare.
        folds: of the cross-validation.

    """

    size: Literal["full", "sample"]
    epochs: int
    seeds: tuple[int, ...]
    side_seeds: tuple[int, ...]
    screening_epochs: int
    final_epochs: int | None
    methods: tuple[str, ...] = METHODS
    folds: int = 4


SCALES: dict[str, Scale] = {
    "smoke": Scale("sample", 2, (1,), (1,), 1, None, folds=2),
    "cpu": Scale("full", 100, (1, 2, 3, 4, 5), (1, 2, 3), 10, 50),
    "paper": Scale("full", 100, (1,), (1,), 100, None),
}


def scale(preset: str, methods: Sequence[str] = METHODS, seeds: Sequence[int] = (), epochs: int = 0) -> Scale:
    """Return a preset's scale, with some of it replaced.

    Args:
        preset: ``"smoke"``, ``"cpu"`` or ``"paper"``.
        methods: the optimizers to compare.
        seeds: of all runs but the cross-validation's; none for the preset's own.
        epochs: of the benchmark and the side experiments; 0 for the preset's own.

    Raises:
        ValueError: a value is not one of these.

    Example:
        >>> scale("cpu", seeds=[7]).seeds
        (7,)
    """
    parameters.check(SCALES, preset, METHODS, methods)
    parameters.check_numbers(seeds, epochs)
    own = SCALES[preset]
    return replace(
        own,
        methods=tuple(method for method in METHODS if method in methods),
        seeds=tuple(seeds) or own.seeds,
        side_seeds=tuple(seeds) or own.side_seeds,
        epochs=epochs or own.epochs,
    )


def svrg(learning_rate: float, every: int = 5) -> SVRGRule:
    """SVRG with a plain step; the author's code takes a snapshot every 5 epochs."""
    snapshot = Snapshot(every=every, batch_size=SNAPSHOT_BATCH)
    return SVRGRule(name="svrg", base=SGDRule(name="sgd", learning_rate=learning_rate), snapshot=snapshot)


def storm(c: float, k: float, granularity: Granularity = "tensor") -> STORMRule:
    """STORM with one accumulator per parameter tensor, as in the author's code."""
    return STORMRule(name="storm", c=c, k=k, granularity=granularity)


# Table 4.2
SELECTED: dict[str, Rule] = {
    "Adam": AdamRule(name="adam", learning_rate=1e-4),
    "SGD": SGDRule(name="sgd", learning_rate=0.1),
    "AdaGrad": AdaGradRule(name="adagrad", learning_rate=0.1),
    "SVRG": svrg(0.01),
    "STORM": storm(c=100.0, k=0.1),
}


# Table 4.3: test and train accuracy at the end, one run with seed 1
SOURCE_ACCURACY: dict[str, tuple[float, float]] = {
    "Adam": (0.9884, 0.9999),
    "SGD": (0.9902, 1.0),
    "AdaGrad": (0.9859, 0.9999),
    "SVRG": (0.9891, 0.9996),
    "STORM": (0.9898, 0.9964),
}


def rule(method: str, *values: float) -> Rule:
    """Return a method's rule from its tuned values: the learning rate, or STORM's (c, k)."""
    if method == "STORM":
        return storm(values[0], values[1])
    if method == "SVRG":
        return svrg(values[0])
    if method == "Adam":
        return AdamRule(name="adam", learning_rate=values[0])
    if method == "SGD":
        return SGDRule(name="sgd", learning_rate=values[0])
    return AdaGradRule(name="adagrad", learning_rate=values[0])


def tuned(optimizer: Rule) -> Point:
    """Return the values that :func:`rule` takes."""
    if isinstance(optimizer, STORMRule):
        return (optimizer.c, optimizer.k)
    if isinstance(optimizer, SVRGRule):
        return (optimizer.base.learning_rate,)
    return (optimizer.learning_rate,)


def _decades(low: int, high: int) -> Axis:
    """Return 1e<low> to 1e<high>, with two further decades each way to widen into."""
    below, values, above = (
        tuple(float(f"1e{e}") for e in exponents)
        for exponents in (range(low - 1, low - 3, -1), range(low, high + 1), range(high + 1, high + 3))
    )
    return Axis(values, below, above)


# Table 4.1; STORM's (c, k) jointly
GRIDS: dict[str, tuple[Axis, ...]] = {
    "Adam": (_decades(-5, -1),),
    "SGD": (_decades(-5, -1),),
    "AdaGrad": (_decades(-4, -1),),
    "SVRG": (_decades(-5, -1),),
    "STORM": (_decades(-1, 3), _decades(-3, 0)),
}


def base(scale: Scale, optimizer: Rule, seed: int, epochs: int | None = None) -> Config:
    """Return the chapter's run with an optimizer and a seed: tanh LeNet, batches of 32, the scale's epochs."""
    return Config(
        data=Data(name="mnist", size=scale.size),
        model=LeNetModel(name="lenet"),
        optimizer=optimizer,
        batch_size=32,
        epochs=epochs or scale.epochs,
        seed=seed,
    )


def benchmark(
    scale: Scale,
    rules: dict[str, Rule] | None = None,
) -> list[Config]:
    """Return figure 4.4's runs, seed by seed, so that any prefix is a whole comparison or nearly one."""
    chosen = SELECTED if rules is None else rules
    return [base(scale, chosen[method], seed) for seed in scale.seeds for method in scale.methods if method in chosen]


def granularities(scale: Scale) -> list[Config]:
    """Return STORM's three accumulators at table 4.2's values, seed by seed."""
    return [
        base(scale, storm(100.0, 0.1, granularity), seed)
        for seed in scale.side_seeds
        for granularity in ("tensor", "global", "coordinate")
    ]


def snapshot_periods(scale: Scale) -> list[Config]:
    """Return SVRG with a snapshot every 5 epochs and every epoch, seed by seed."""
    return [base(scale, svrg(0.01, every), seed) for seed in scale.side_seeds for every in (5, 1)]


def folds(scale: Scale, method: str, values: Point, epochs: int) -> list[Config]:
    """Return one grid point's runs of the cross-validation."""
    config = base(scale, rule(method, *values), seed=1, epochs=epochs)
    data = config.data
    return [
        config.replace(data=Data(name=data.name, size=data.size, holdout=Folds(folds=scale.folds, fold=fold)))
        for fold in range(scale.folds)
    ]


def validation_loss(store: Store, scale: Scale, method: str, values: Point, epochs: int) -> float | None:
    """Return the mean validation loss at the end over the folds; infinite if one diverged, None if one is missing."""
    runs = store.available(folds(scale, method, values, epochs))
    if len(runs) < scale.folds:
        return None
    mean = math.inf if any(run.diverged for run in runs) else _mean_validation(runs)
    return mean if math.isfinite(mean) else math.inf


def _mean_validation(runs: Sequence[Run]) -> float:
    return sum(run.final.validation.loss for run in runs if run.final.validation) / len(runs)


def screened(store: Store, scale: Scale, method: str) -> dict[Point, float]:
    """Return the screening's mean validation losses that are known, widened grid included."""
    epochs = scale.screening_epochs
    known: dict[Point, float] = {}
    for values in candidates(GRIDS[method]):
        loss = validation_loss(store, scale, method, values, epochs)
        if loss is not None:
            known[values] = loss
    return known


def _wider(store: Store, scale: Scale, method: str) -> list[Point]:
    """Return the points beyond table 4.1's grid: those that are known, and the next ones."""
    known, table = screened(store, scale, method), points(GRIDS[method])
    return [*(values for values in known if values not in table), *widening(GRIDS[method], known)]


def finalists(store: Store, scale: Scale, method: str) -> list[Point]:
    """Return the source's own choice, the three best of the screening, and the three best of table 4.1's grid."""
    known, table = screened(store, scale, method), points(GRIDS[method])
    ranked = sorted((v for v in known if known[v] < float("inf")), key=lambda values: known[values])
    inside = [values for values in ranked if values in table]
    return list(dict.fromkeys([tuned(SELECTED[method]), *ranked[:FINALISTS], *inside[:FINALISTS]]))


def _screening_done(store: Store, scale: Scale, method: str) -> bool:
    known = screened(store, scale, method)
    return all(values in known for values in points(GRIDS[method])) and not widening(GRIDS[method], known)


def _finalists_expected(store: Store, scale: Scale, method: str) -> int:
    done = _screening_done(store, scale, method)
    return len(finalists(store, scale, method)) if done else FINALISTS + 1


def selected(store: Store, scale: Scale, widened: bool = True) -> dict[str, Point]:
    """Return each method's values of least mean validation loss at the last stage, where that stage is complete.

    Without ``widened`` of table 4.1's grid alone.
    """
    result = {}
    for method in scale.methods:
        if scale.final_epochs is None:
            losses: dict[Point, float | None] = dict(screened(store, scale, method))
            if not all(values in losses for values in points(GRIDS[method])):
                continue
        else:
            if not _screening_done(store, scale, method):
                continue
            losses = {
                values: validation_loss(store, scale, method, values, scale.final_epochs)
                for values in finalists(store, scale, method)
            }
        known = {values: loss for values, loss in losses.items() if loss is not None}
        if len(known) == len(losses):
            eligible = [values for values in known if widened or values in points(GRIDS[method])]
            result[method] = min(eligible, key=lambda values: known[values])
    return result


def queue(scale: Scale, store: Store) -> Iterator[Phase]:
    """Yield the chapter's phases; later ones are decided by the records of earlier ones."""
    yield Phase("benchmark with table 4.2's values", benchmark(scale))
    yield Phase("STORM's granularities", granularities(scale))
    yield Phase("SVRG's snapshot period", snapshot_periods(scale))
    if scale.final_epochs is not None:
        yield Phase(
            "cross-validation, the source's values",  # all that best epochs need
            [
                config
                for method in scale.methods
                for config in folds(scale, method, tuned(SELECTED[method]), scale.final_epochs)
            ],
        )
    screening = [(method, values) for method in scale.methods for values in points(GRIDS[method])]
    yield Phase(
        "cross-validation, first stage",
        [config for method, values in screening for config in folds(scale, method, values, scale.screening_epochs)],
    )
    if scale.final_epochs is not None:
        for _ in range(WIDENINGS):
            wider = [(method, values) for method in scale.methods for values in _wider(store, scale, method)]
            yield Phase(
                "cross-validation, wider grid",
                [config for method, values in wider for config in folds(scale, method, values, scale.screening_epochs)],
            )
        final = [(method, values) for method in scale.methods for values in finalists(store, scale, method)[1:]]
        yield Phase(
            "cross-validation, second stage",
            [config for method, values in final for config in folds(scale, method, values, scale.final_epochs)],
            planned=scale.folds * sum(_finalists_expected(store, scale, method) - 1 for method in scale.methods),
        )
    ours = {method: rule(method, *values) for method, values in selected(store, scale).items()}
    again = {method: own for method, own in ours.items() if own != SELECTED[method]}
    yield Phase("benchmark with our selected values", benchmark(scale, again))
