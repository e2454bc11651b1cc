"""SGD, Adam and SVRG on a residual network, with and without batch normalization: section 4.2 of source 000.

One experiment, two instances: ResNet18 on CIFAR-10 (chapter 13) and ResNet101 on CIFAR-100 (chapter 15).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from varred.config import AdamRule, Config, Data, Fraction, ResNetModel, Rule, SGDRule, Snapshot, SVRGRule
from varred.experiments import parameters
from varred.experiments.grid import Axis, walk
from varred.models.layers import Normalization as Normalization
from varred.record import Run
from varred.runs import Store
from varred.sweep import Phase

NORMALIZATIONS: tuple[Normalization, ...] = ("batch", "none")
METHODS = ("SGD", "Adam", "SVRG")
STAGES = 8  # of a search for a learning rate: as many as the longest grid has values
BATCH = 128
FIRST_SEED = 1  # of every preset: its runs select the learning rates, and their noise is measured
HOLDOUT = Fraction(fraction=0.05)
EVERY = 5  # epochs between SVRG's snapshots in the public code of source 000's author


@dataclass(frozen=True)
class Scale:
    """What a preset changes.

    Attributes:
        size: of the data set.
        width: channels of the first stage; 64 is the source's.
        grid_images: training images of the grids, a seeded permutation's first; None for all that are not held out.
        grid_epochs: of the grids.
        svrg_grid_epochs: of SVRG's grid; the source gives SVRG 150 epochs where the others have 200.
        epochs: of the benchmark.
        svrg_epochs: of SVRG's runs in it.
        images: training images of the benchmark; None for all that are not held out.
        seeds: of the benchmark and of the side experiments.
        side_images: training images of the side experiments: the factorial of chapter 14, MetaInit of chapter 16.
        side_epochs: of these.
        source_values: run the benchmark with the source's own learning rates, then its grids, and the factorial at
            SVRG's rate in the source; else search for rates of our own.
        methods: the optimizers to compare.

    """

    size: Literal["full", "sample"]
    width: int
    grid_images: int | None
    grid_epochs: int
    svrg_grid_epochs: int
    epochs: int
    svrg_epochs: int
    images: int | None
    seeds: tuple[int, ...]
    side_images: int
    side_epochs: int
    source_values: bool = False
    methods: tuple[str, ...] = METHODS


@dataclass(frozen=True)
class Comparison:
    """A network and a data set, with what source 000 tried, chose and found.

    Attributes:
        data: the data set.
        model: the network.
        grids: learning rates of each method, as the source lists them, and how far they may be widened.
        source_rates: the source's choices, by normalization and method.
        source_accuracy: its final test and training accuracies, one run with seed 1.
        scales: of the presets.

    """

    data: Literal["cifar10", "cifar100"]
    model: Literal["resnet18", "resnet101_basic"]
    grids: Mapping[str, Axis]
    source_rates: Mapping[Normalization, Mapping[str, float]]
    source_accuracy: Mapping[Normalization, Mapping[str, tuple[float, float]]]
    scales: Mapping[str, Scale]

    def scale(
        self, preset: str, methods: Sequence[str] = METHODS, seeds: Sequence[int] = (), epochs: int = 0, width: int = 0
    ) -> Scale:
        """Return a preset's scale, with some of it replaced.

        Args:
            preset: ``"smoke"``, ``"cpu"`` or ``"paper"``.
            methods: the optimizers to compare.
            seeds: of the benchmark; none for the preset's own.
            epochs: of the benchmark, SVRG's included; 0 for the preset's own.
            width: of the network; 0 for the preset's own.

        Raises:
            ValueError: a value is not one of these.

        """
        parameters.check(self.scales, preset, METHODS, methods)
        parameters.check_numbers(seeds, epochs, width)
        own = self.scales[preset]
        return replace(
            own,
            methods=tuple(method for method in METHODS if method in methods),
            seeds=tuple(seeds) or own.seeds,
            epochs=epochs or own.epochs,
            svrg_epochs=epochs or own.svrg_epochs,
            width=width or own.width,
        )

    def config(
        self, scale: Scale, normalization: Normalization, rule: Rule, *, seed: int, epochs: int, **changes: Any
    ) -> Config:
        """Return a run: batches of 128, pad-4 crops and flips, 5 % of the training images held out."""
        images = changes.pop("images", scale.images)
        return Config(
            data=Data(name=self.data, size=scale.size, holdout=HOLDOUT, subset=images, augmentation="crop_flip"),
            model=ResNetModel(name=self.model, width=scale.width, normalization=normalization),
            optimizer=rule,
            batch_size=BATCH,
            epochs=epochs,
            seed=seed,
            **changes,
        )

    def grid_run(self, scale: Scale, normalization: Normalization, method: str, rate: float) -> Config:
        """Return a grid point's run."""
        epochs = scale.svrg_grid_epochs if method == "SVRG" else scale.grid_epochs
        own = rule(method, rate)
        return self.config(scale, normalization, own, seed=FIRST_SEED, epochs=epochs, images=scale.grid_images)

    def losses(self, store: Store, scale: Scale, normalization: Normalization, method: str) -> dict[float, float]:
        """Return the final validation losses that are recorded, by learning rate; infinite where a run diverged."""
        known = {}
        for rate in self.grids[method].reach:
            for run in store.available([self.grid_run(scale, normalization, method, rate)]):
                loss = validation_loss(run)
                known[rate] = loss if run.diverged is None and math.isfinite(loss) else math.inf
        return known

    def tried(
        self, store: Store, scale: Scale, normalization: Normalization, method: str
    ) -> tuple[dict[float, float], list[float]]:
        """Return the final validation losses that decide a learning rate, and the learning rates still to be tried.

        Those of the search (:func:`varred.experiments.grid.walk`); with the source's values those of its whole grid.
        """
        losses = self.losses(store, scale, normalization, method)
        if not scale.source_values:
            return walk(self.grids[method], losses)
        values = self.grids[method].values
        return {rate: losses[rate] for rate in values if rate in losses}, [r for r in values if r not in losses]

    def selected(self, store: Store, scale: Scale, normalization: Normalization, method: str) -> float | None:
        """Return the learning rate of least validation loss at the end.

        None while runs that decide it are missing, and where all of them diverged. The rest of the source's grids, run
        after a search and the benchmark, changes no choice.
        """
        tried, wanted = self.tried(store, scale, normalization, method)
        if wanted:
            return None
        best = min(tried, key=lambda rate: tried[rate])
        return best if tried[best] < math.inf else None

    def written(self, method: str, rate: float) -> str:
        """Write a selected learning rate, and say so where it is the end of the axis: a better one may lie beyond.

        Example:
            >>> RESNET18.written("SVRG", 0.01), RESNET18.written("SVRG", 1.0)
            ('0.01', '1 (end of our axis)')

        """
        reach = self.grids[method].reach
        return f"{rate:g}" + (" (end of our axis)" if rate in (min(reach), max(reach)) else "")

    def search(self, store: Store, scale: Scale, methods: Sequence[str]) -> Iterator[Phase]:
        """Yield the runs that bracket the best learning rate of some methods, in both settings; known ones included."""
        chosen = [method for method in methods if method in scale.methods]
        for _ in range(STAGES if chosen else 0):
            path = {
                (method, normalization): self.tried(store, scale, normalization, method)
                for method in chosen
                for normalization in NORMALIZATIONS
            }
            yield Phase(
                f"learning rates: {', '.join(chosen)}",
                [
                    self.grid_run(scale, normalization, method, rate)
                    for (method, normalization), (tried, wanted) in path.items()
                    for rate in [*tried, *wanted]
                ],
            )

    def rest(self, scale: Scale) -> Phase:
        """Return the source's whole grids: what the search has left out."""
        return Phase(
            "learning rates: the rest of the source's grids",
            [
                self.grid_run(scale, normalization, method, rate)
                for method in scale.methods
                for rate in reversed(self.grids[method].values)
                for normalization in NORMALIZATIONS
            ],
        )

    def benchmark(
        self,
        scale: Scale,
        rates: Mapping[Normalization, Mapping[str, float]],
        seeds: Sequence[int] | None = None,
    ) -> list[Config]:
        """Return the benchmark's runs at given learning rates, seed by seed."""
        return [
            self.config(
                scale,
                normalization,
                rule(method, rates[normalization][method]),
                seed=seed,
                epochs=scale.svrg_epochs if method == "SVRG" else scale.epochs,
            )
            for seed in (scale.seeds if seeds is None else seeds)
            for normalization in NORMALIZATIONS
            for method in scale.methods
            if method in rates.get(normalization, {})
        ]

    def rates(self, store: Store, scale: Scale) -> Mapping[Normalization, Mapping[str, float]]:
        """Return the learning rates of the benchmark: the source's, or those the search selects, where decided."""
        if scale.source_values:
            return {n: {m: own[m] for m in scale.methods} for n, own in self.source_rates.items()}
        chosen: dict[Normalization, dict[str, float]] = {}
        for normalization in NORMALIZATIONS:
            own = {method: self.selected(store, scale, normalization, method) for method in scale.methods}
            chosen[normalization] = {method: rate for method, rate in own.items() if rate is not None}
        return chosen

    def beside(
        self, store: Store, scale: Scale, normalization: Normalization, method: str, selected: float
    ) -> list[float]:
        """Return the learning rates whose runs stand beside the benchmark's at the selected one.

        None unless one of these diverged; else those next in the order of their losses, up to the first at which no
        run of the benchmark has diverged. They decide no claim: the claims' criteria know the selected rates alone.
        """
        if not self.diverged(store, scale, normalization, method, selected):
            return []
        tried, _ = self.tried(store, scale, normalization, method)
        rates = []
        for rate in sorted(tried, key=lambda rate: tried[rate]):
            if rate != selected and math.isfinite(tried[rate]):
                rates.append(rate)
                if not self.diverged(store, scale, normalization, method, rate):
                    break
        return rates

    def fallbacks(self, store: Store, scale: Scale) -> Mapping[Normalization, Mapping[str, float]]:
        """Return the next best learning rates where a benchmark run at the selected one has diverged."""
        chosen: dict[Normalization, dict[str, float]] = {}
        for normalization, own in self.rates(store, scale).items():
            chosen[normalization] = {}
            for method, selected in own.items():
                for rate in self.beside(store, scale, normalization, method, selected):
                    if not self.diverged(store, scale, normalization, method, rate):
                        chosen[normalization][method] = rate
        return chosen

    def diverged(self, store: Store, scale: Scale, normalization: Normalization, method: str, rate: float) -> bool:
        """Return whether a recorded run of the benchmark has diverged at a learning rate."""
        configs = self.benchmark(scale, {normalization: {method: rate}})
        return any(run.diverged is not None for run in store.available(configs))

    def runs(self, store: Store, scale: Scale) -> dict[Normalization, dict[str, list[Run]]]:
        """Return the recorded runs of the benchmark by setting and method; a fallback's under a name with its rate."""
        found: dict[Normalization, dict[str, list[Run]]] = {
            normalization: {method: [] for method in scale.methods} for normalization in NORMALIZATIONS
        }
        for normalization, rates in self.rates(store, scale).items():
            for method, rate in rates.items():
                found[normalization][method] = store.available(self.benchmark(scale, {normalization: {method: rate}}))
        for normalization, rates in self.rates(store, scale).items():
            for method, selected in rates.items():
                for rate in sorted(self.beside(store, scale, normalization, method, selected)):
                    own = store.available(self.benchmark(scale, {normalization: {method: rate}}))
                    found[normalization][f"{method}, at {rate:g}"] = own
        return found

    def plan(self, scale: Scale) -> list[Phase]:
        """Return the queue's runs at the source's rates, for estimates; a search may add others."""
        return [self.rest(scale), Phase("benchmark", self.benchmark(scale, self.source_rates))]

    def queue(self, scale: Scale, store: Store) -> Iterator[Phase]:
        """Yield the phases; later ones are decided by the records of earlier ones."""
        if scale.source_values:
            yield Phase("benchmark with the source's values", self.benchmark(scale, self.source_rates))
            yield self.rest(scale)
            return
        yield from self.search(store, scale, ["SVRG"])
        yield from self.search(store, scale, ["SGD", "Adam"])
        for seed in scale.seeds:
            yield Phase(
                f"benchmark with our values, seed {seed}",
                self.benchmark(scale, self.rates(store, scale), [seed]),
                planned=len(NORMALIZATIONS) * len(scale.methods),
            )
            if beside := self.benchmark(scale, self.fallbacks(store, scale), [seed]):
                yield Phase("the next best rate where the selected one diverged", beside)
        # A later seed may be the first to diverge, and a next best rate may diverge in its turn.
        for _ in range(STAGES):
            if store.missing(beside := self.benchmark(scale, self.fallbacks(store, scale))):
                yield Phase("the next best rate where the selected one diverged", beside)
        yield self.rest(scale)


def rule(method: str, learning_rate: float) -> Rule:
    """Return a method's rule: plain SGD, Adam at its defaults, SVRG around plain SGD with a snapshot every 5 epochs."""
    if method == "Adam":
        return AdamRule(name="adam", learning_rate=learning_rate)
    sgd = SGDRule(name="sgd", learning_rate=learning_rate)
    return SVRGRule(name="svrg", base=sgd, snapshot=Snapshot(every=EVERY)) if method == "SVRG" else sgd


def validation_loss(run: Run) -> float:
    """Return the loss on the held-out images at the end.

    Raises:
        ValueError: the run held none out.

    """
    if run.final.validation is None:
        raise ValueError(f"run {run.config.identity} held no images out")
    return run.final.validation.loss


# Section 4.2.1 and 4.2.2. Table 4.4 lists .010 twice for SVRG, out of order; read as .001 the grid is sorted.
RESNET18 = Comparison(
    data="cifar10",
    model="resnet18",
    grids={
        "SGD": Axis((0.005, 0.01, 0.05, 0.1), below=(0.001, 0.0005), above=(0.5, 1.0)),
        "Adam": Axis((1e-5, 1e-4, 1e-3), below=(1e-6,), above=(1e-2, 1e-1)),
        "SVRG": Axis((0.0005, 0.001, 0.005, 0.01), below=(0.0001,), above=(0.05, 0.1, 0.5, 1.0)),
    },
    source_rates={
        "batch": {"SGD": 0.05, "Adam": 1e-4, "SVRG": 0.01},  # table 4.5
        "none": {"SGD": 0.01, "Adam": 1e-5, "SVRG": 0.005},  # table 4.7
    },
    source_accuracy={
        "batch": {"SGD": (0.9221, 0.9996), "Adam": (0.9184, 0.9976), "SVRG": (0.886, 0.97664)},  # table 4.6
        "none": {"SGD": (0.8382, 0.9924), "Adam": (0.8268, 0.9712), "SVRG": (0.8044, 0.8990)},  # table 4.8
    },
    scales={
        "smoke": Scale("sample", 2, 512, 1, 1, 1, 1, 512, (1,), 512, 1),
        "cpu": Scale("full", 8, 20_000, 10, 10, 20, 20, None, (1, 2, 3), 20_000, 15),
        "paper": Scale("full", 64, None, 200, 150, 200, 150, None, (1,), 20_000, 15, source_values=True),
    },
)

# Sections 4.2.3 and 4.2.4; the public code builds "ResNet101" from basic blocks. Table 4.9's .010 is out of order too.
RESNET101 = Comparison(
    data="cifar100",
    model="resnet101_basic",
    grids={
        "SGD": Axis((0.005, 0.01, 0.05), below=(0.001,), above=(0.1, 0.5)),
        "Adam": Axis((1e-6, 1e-5, 1e-4), below=(1e-7,), above=(1e-3, 1e-2, 1e-1)),
        "SVRG": Axis((0.0005, 0.001, 0.005), below=(0.0001,), above=(0.01, 0.05, 0.1, 0.5)),
    },
    source_rates={
        "batch": {"SGD": 0.05, "Adam": 1e-4, "SVRG": 0.005},  # table 4.10
        "none": {"SGD": 0.005, "Adam": 1e-4, "SVRG": 0.005},  # table 4.12
    },
    source_accuracy={
        "batch": {"SGD": (0.7239, 0.9999), "Adam": (0.7073, 0.9984), "SVRG": (0.5947, 0.9734)},  # table 4.11
        "none": {"SGD": (0.4771, 0.9925), "Adam": (0.6055, 0.9934), "SVRG": (0.4441, 0.8915)},  # table 4.13
    },
    scales={
        "smoke": Scale("sample", 2, 256, 1, 1, 1, 1, 256, (1,), 256, 1),
        "cpu": Scale("full", 8, 10_000, 10, 10, 10, 10, 20_000, (1, 2, 3), 10_000, 10),
        "paper": Scale("full", 64, None, 200, 150, 200, 150, None, (1,), 47_500, 200, source_values=True),
    },
)
