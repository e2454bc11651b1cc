"""Lists of configs, what records decide of them, the block model, initialization inside a run, refusals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from varred import data, figures, tables
from varred.claims.verdict import write
from varred.config import Config, Execution, MetaInitialization, Rule, SVRGRule, TorchvisionModel
from varred.contrasts import Contrast, block_model, by_seed, holm, paired
from varred.experiments import deficit, lenet_mnist
from varred.experiments.comparison import (
    METHODS,
    NORMALIZATIONS,
    RESNET18,
    RESNET101,
    STAGES,
    Comparison,
    Normalization,
)
from varred.experiments.grid import Axis, Point, bracket, points, widening
from varred.optim import SVRG
from varred.record import Divergence, Run
from varred.runs import Store, verify
from varred.train import Trainer, build_model, gradient_computations, rescale, train

CPU = Execution(device="cpu", threads=1)
SGD = {"name": "sgd", "learning_rate": 0.01}
SMOKE, SMALL = RESNET18.scale("smoke"), RESNET18.scale("cpu")
COMPARISONS = pytest.mark.parametrize("comparison", [RESNET18, RESNET101], ids=["ResNet18", "ResNet101"])


@pytest.fixture(scope="module")
def real() -> Run:
    """A run of the smoke grid, from which records with other configs and losses are made."""
    return train(RESNET18.grid_run(SMOKE, "none", "SGD", 0.01), CPU)


def record(real: Run, config: Config, loss: float, diverged: bool = False) -> Run:
    assert real.final.validation is not None
    validation = real.final.validation.model_copy(update=dict.fromkeys(("loss", "loss_right", "loss_wrong"), loss))
    curves = real.curves.model_copy(update={"validation_loss": [*real.curves.validation_loss[:-1], loss]})
    return real.model_copy(
        update={
            "config": config,
            "curves": curves,
            "final": real.final.model_copy(update={"validation": validation}),
            "diverged": Divergence(epoch=0, reason="non-finite loss") if diverged else None,
        }
    )


# Grids


def walk(axes: Sequence[Axis], loss: Callable[[Point], float]) -> list[list[Point]]:
    """Widen until nothing is asked for; return what each widening asked for."""
    known = {point: loss(point) for point in points(axes)}
    asked = []
    while added := widening(axes, known):
        assert not known.keys() & set(added)
        asked.append(added)
        known |= {point: loss(point) for point in added}
    return asked


AXIS = Axis((1.0, 2.0, 3.0), below=(0.5, 0.2), above=(4.0, 5.0))


def test_widening_goes_outwards_one_value_at_a_time_until_the_best_lies_inside() -> None:
    assert walk([AXIS], lambda point: -point[0]) == [[(4.0,)], [(5.0,)]]
    assert walk([AXIS], lambda point: point[0]) == [[(0.5,)], [(0.2,)]]
    assert walk([AXIS], lambda point: abs(point[0] - 4)) == [[(4.0,)], [(5.0,)]]  # 5 shows that 4 is inside
    assert walk([AXIS], lambda point: abs(point[0] - 3)) == [[(4.0,)]]
    assert walk([AXIS], lambda point: abs(point[0] - 2)) == []


def test_widening_stops_at_a_value_that_diverged_and_waits_for_the_grid() -> None:
    assert walk([AXIS], lambda point: -point[0] if point[0] < 4 else math.inf) == [[(4.0,)]]
    assert widening([AXIS], {(2.0,): 1.0, (3.0,): 0.5}) == []  # 1 is not known yet


def test_a_joint_grid_is_widened_in_the_edges_dimension_alone() -> None:
    other = Axis((10.0, 20.0, 30.0), below=(5.0,), above=(40.0,))
    inside = {(x, y): abs(y - 20) - x for x in AXIS.values for y in other.values}
    assert widening([AXIS, other], inside) == [(4.0, 20.0)]
    corner = {(x, y): -y - x for x in AXIS.values for y in other.values}
    assert widening([AXIS, other], corner) == [(4.0, 30.0), (3.0, 40.0)]
    assert widening([AXIS, other], {**inside, (4.0, 20.0): math.inf}) == []


@pytest.mark.parametrize(
    ("best", "asked"),
    [
        ((1e5, 0.1), [[(1e4, 0.1)], [(1e5, 0.1)]]),
        ((1e4, 0.1), [[(1e4, 0.1)], [(1e5, 0.1)]]),
        ((10.0, 1e-5), [[(10.0, 1e-4)], [(10.0, 1e-5)]]),
        ((10.0, 0.1), []),
    ],
)
def test_storms_joint_grid_is_widened_along_one_axis_at_every_step(best: Point, asked: list[list[Point]]) -> None:
    def loss(point: Point) -> float:
        return sum(abs(math.log10(x / y)) for x, y in zip(point, best, strict=True))

    assert walk(lenet_mnist.GRIDS["STORM"], loss) == asked


def search(axis: Axis, loss: Callable[[float], float]) -> tuple[float, list[list[float]]]:
    """Bracket until nothing is asked for; return the best value and what each stage asked for."""
    known: dict[float, float] = {}
    asked = []
    while added := bracket(axis, known):
        assert not known.keys() & set(added)
        asked.append(added)
        known |= {rate: loss(rate) for rate in added}
    return min(known, key=lambda rate: known[rate]), asked


@COMPARISONS
def test_bracketing_finds_the_only_minimum_and_what_lies_beside_it(comparison: Comparison) -> None:
    for axis in comparison.grids.values():
        for place, rate in enumerate(axis.reach):

            def loss(x: float, place: int = place, axis: Axis = axis) -> float:
                away = axis.reach.index(x) - place
                return math.inf if away > 1 else abs(away)  # what is two values too large diverges

            best, asked = search(axis, loss)
            assert best == rate
            assert {*axis.reach[max(place - 1, 0) : place + 2]} <= {x for stage in asked for x in stage}
    valley = {1.0: 0.0, 2.0: 2.0, 3.0: 1.0, 4.0: 2.0}  # with two minima it stays in the first one it meets
    assert search(Axis(tuple(valley)), valley.__getitem__) == (3.0, [[4.0], [3.0], [2.0]])


@pytest.mark.parametrize(
    ("comparison", "method"),
    [(comparison, method) for comparison in (RESNET18, RESNET101) for method in METHODS],
)
def test_a_search_ends_within_its_stages(comparison: Comparison, method: str) -> None:
    axis = comparison.grids[method]
    for rate in axis.reach:
        assert len(search(axis, lambda x, rate=rate: abs(math.log(x / rate)))[1]) <= STAGES


@COMPARISONS
def test_the_sources_grids_ascend_and_hold_what_it_chose(comparison: Comparison) -> None:
    for method, axis in comparison.grids.items():
        assert list(axis.reach) == sorted(set(axis.reach))
        for normalization in NORMALIZATIONS:
            assert comparison.source_rates[normalization][method] in axis.values


# Comparisons


def without(config: Config, *fields: str) -> str:
    return config.model_dump_json(exclude=set(fields))


@COMPARISONS
@pytest.mark.parametrize("preset", ["smoke", "cpu", "paper"])
def test_runs_of_a_benchmark_differ_in_the_optimizer_alone(comparison: Comparison, preset: str) -> None:
    scale = comparison.scale(preset)
    configs = comparison.benchmark(scale, comparison.source_rates)
    assert len({c.identity for c in configs}) == len(configs) == 2 * len(METHODS) * len(scale.seeds)
    excluded = {"optimizer"} if scale.epochs == scale.svrg_epochs else {"optimizer", "epochs"}  # 150 of 200 there
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(without(config, *excluded), []).append(config)
    assert [sorted(c.method for c in group) for group in groups.values()] == [sorted(METHODS)] * (2 * len(scale.seeds))
    first, second = (without(configs[place], "optimizer") for place in (0, len(METHODS)))
    assert second.replace('"none"', '"batch"', 1) == first != second  # the settings: normalization alone


def fill(store: Store, real: Run, losses: Mapping[float, float], diverged: Sequence[float] = ()) -> None:
    for rate, loss in losses.items():
        store.put(record(real, RESNET18.grid_run(SMOKE, "none", "SGD", rate), loss, rate in diverged))


def test_the_least_validation_loss_is_selected_once_it_lies_between_worse_ones(real: Run, tmp_path: Path) -> None:
    def selected() -> float | None:
        return RESNET18.selected(store, SMOKE, "none", "SGD")

    store = Store(tmp_path)
    assert selected() is None
    fill(store, real, {0.1: 0.9, 0.5: 3.0})
    assert selected() is None  # 0.05 may be better
    fill(store, real, {0.05: 0.8})
    assert selected() is None  # it is: now 0.01 may be
    fill(store, real, {0.01: 1.0})
    assert selected() == 0.05
    fill(store, real, {0.001: 0.7, 0.005: 0.7, 0.0005: 0.6})
    assert selected() == 0.05  # the rest of the grid, run after the search, changes no choice
    phases = RESNET18.search(store, SMOKE, ["SGD"])
    assert [{c.optimizer.learning_rate for c in phase.configs if c.model.normalization == "none"} for phase in phases][
        -1
    ] == {0.1, 0.5, 0.05, 0.01}


def test_the_end_of_the_axis_may_be_selected(real: Run, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, real, {rate: rate for rate in RESNET18.grids["SGD"].reach})
    assert RESNET18.selected(store, SMOKE, "none", "SGD") == 0.0005
    assert RESNET18.written("SGD", 0.0005) == "0.0005 (end of our axis)"
    assert RESNET18.selected(store, SMOKE, "batch", "SGD") is None  # the other setting has no record


def test_a_diverged_run_is_never_selected(real: Run, tmp_path: Path) -> None:
    store, axis = Store(tmp_path), RESNET18.grids["SGD"]
    losses = {0.005: 2.0, 0.01: 1.0, 0.05: 1.5, 0.1: 0.1}
    fill(store, real, losses, diverged=[0.1])
    assert RESNET18.selected(store, SMOKE, "none", "SGD") == 0.01
    assert min(losses, key=lambda rate: losses[rate]) == 0.1  # by the loss where it was given up
    fill(store, real, dict.fromkeys(axis.reach, 1.0), diverged=axis.reach)
    assert RESNET18.selected(store, SMOKE, "none", "SGD") is None


def test_where_the_selected_rate_diverges_the_next_best_runs_beside_it(real: Run, tmp_path: Path) -> None:
    store, scale = Store(tmp_path), RESNET18.scale("smoke", seeds=(2,))  # the search has seed 1
    fill(store, real, {0.5: 0.1, 0.1: 0.9, 0.05: 0.8, 0.01: 1.0}, diverged=[0.5])
    assert RESNET18.fallbacks(store, scale) == {"batch": {}, "none": {}}
    tried: list[float] = []
    for bad, following in ((0.05, {"SGD": 0.1}), (0.1, {"SGD": 0.01}), (0.01, {})):
        store.put(record(real, RESNET18.benchmark(scale, {"none": {"SGD": bad}})[0], 9.0, diverged=True))
        assert RESNET18.fallbacks(store, scale)["none"] == following
        found = RESNET18.runs(store, scale)["none"]
        assert [run.config.optimizer.learning_rate for run in found["SGD"]] == [0.05]  # type: ignore[union-attr]
        beside = sorted({*tried, *following.values()})  # what has diverged there stays in sight
        assert list(found) == [*scale.methods, *(f"SGD, at {rate}" for rate in beside)]
        assert all(found[f"SGD, at {rate}"][0].diverged for rate in tried if rate != 0.05)
        tried = beside
        assert RESNET18.rates(store, scale)["none"] == {"SGD": 0.05}  # claims are judged at the selected rate


def test_with_the_sources_values_its_whole_grid_decides_and_none_of_it_is_beside_the_benchmark(
    real: Run, tmp_path: Path
) -> None:
    store, scale = Store(tmp_path), replace(RESNET18.scale("smoke"), source_values=True)
    source, values = RESNET18.source_rates["none"]["SGD"], RESNET18.grids["SGD"].values
    grid = {rate: RESNET18.grid_run(scale, "none", "SGD", rate) for rate in values}
    assert RESNET18.benchmark(scale, {"none": {"SGD": values[0]}}) == [grid[values[0]]]  # one run serves both
    for rate in values:
        assert RESNET18.selected(store, scale, "none", "SGD") is None
        store.put(record(real, grid[rate], loss=rate))
    assert RESNET18.selected(store, scale, "none", "SGD") == values[0] != source
    assert list(RESNET18.runs(store, scale)["none"]) == list(METHODS)
    store.put(record(real, grid[source], loss=9.0, diverged=True))
    assert list(RESNET18.runs(store, scale)["none"]) == [*METHODS, f"SGD, at {values[0]:g}"]


# The factorial


def cell(name: str, normalization: Normalization = "batch") -> Config:
    return deficit.run_of(SMALL, normalization, name, 0.01, 1)


def differences(first: str, second: str) -> set[str]:
    def leaves(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {path: value}
        return {k: v for name, part in value.items() for k, v in leaves(part, f"{path}.{name}".strip(".")).items()}

    ours, theirs = (leaves(cell(name).model_dump(), "") for name in (first, second))
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


DRAWS = {"redraw_order", "redraw_transforms"}


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        ("SVRG every epoch", "SVRG every 5, redrawn", {"optimizer.snapshot.every"}),
        ("SVRG every 5, redrawn", "SVRG every 5, locked", DRAWS),
        ("SVRG once, redrawn", "SVRG once, locked", {"redraw_last"}),
        ("SVRG once, redrawn", "SVRG every epoch", {"optimizer.snapshot.last"}),
        ("SVRG at 0 and 5, redrawn", "SVRG at 0 and 5, locked", {*DRAWS, "redraw_last"}),
        ("SVRG every 5, redrawn", "SVRG at 0 and 5, redrawn", {"optimizer.snapshot.last"}),
        ("SGD", "SGD, kept 5 epochs", DRAWS),
        ("SGD", "SGD, kept for ever", {"redraw_last"}),
    ],
)
def test_cells_differ_in_what_their_names_say(first: str, second: str, fields: set[str]) -> None:
    assert differences(first, second) == fields


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("SGD", "SVRG every epoch"),
        ("SGD", "SVRG every 5, redrawn"),
        ("SGD", "SVRG once, redrawn"),
        ("SGD, kept 5 epochs", "SVRG every 5, locked"),
        ("SGD, kept for ever", "SVRG once, locked"),
    ],
)
def test_sgds_cells_see_the_batches_of_svrgs(first: str, second: str) -> None:
    assert {field.split(".")[0] for field in differences(first, second)} == {"optimizer"}


@pytest.mark.parametrize("name", [name for name in deficit.CELLS if name.startswith("SVRG")])
def test_a_cell_is_locked_where_its_draws_are_those_of_its_snapshot(name: str) -> None:
    config = cell(name)
    assert isinstance(config.optimizer, SVRGRule)

    def draw(epoch: int, redraw: int) -> int:
        return data.in_force(epoch, redraw, config.redraw_last)

    stale, last = [], 0
    for epoch in range(max(13, config.epochs)):
        last = epoch if config.optimizer.snapshot.due(epoch) else last
        redraws = (config.redraw_order, config.redraw_transforms)
        stale += [epoch] if any(draw(epoch, redraw) != draw(last, redraw) for redraw in redraws) else []
    assert bool(stale) is name.endswith("redrawn")  # "SVRG every epoch" is locked by nature


def test_declared_contrasts_sum_to_zero_over_cells_that_exist() -> None:
    for coefficients in deficit.CONTRASTS.values():
        assert sum(coefficients.values()) == 0
        assert coefficients.keys() <= deficit.CELLS.keys()
    assert len({cell(name, setting).identity for name in deficit.CELLS for setting in NORMALIZATIONS}) == 20


def test_one_snapshot_costs_one_pass() -> None:
    for name, passes in {
        "SVRG once, locked": 31,
        "SVRG every epoch": 45,
        "SVRG every 5, locked": 33,
        "SGD": 15,
    }.items():
        assert gradient_computations(cell(name)) == passes * 20_000
    once = small(optimizer={"name": "svrg", "base": SGD, "snapshot": {"last": 0}}, epochs=3)
    assert train(once, CPU).curves.samples == [0, 3 * 60, 5 * 60, 7 * 60]
    assert gradient_computations(once) == (2 * 3 + 1) * 60


# The block model


def value(run: Run) -> float:
    return run.final.test.loss


def runs(real: Run, responses: Mapping[int, float]) -> list[Run]:
    def one(seed: int, y: float) -> Run:
        final = real.final.model_copy(update={"test": real.final.test.model_copy(update={"loss": y})})
        return real.model_copy(update={"config": real.config.replace(seed=seed), "final": final})

    return [one(seed, y) for seed, y in responses.items()]


def noisy(effect: float, seeds: Sequence[int], key: int) -> dict[int, float]:
    """A cell: its effect, a seed's effect hundreds of times larger, a little noise."""
    noise = np.random.default_rng(key).normal(0, 0.01, 10)
    return {seed: float(effect + 100 * seed + noise[seed]) for seed in seeds}


A_B: Mapping[str, Mapping[str, float]] = {"A - B": {"A": 1, "B": -1}}


def test_two_cells_in_the_block_model_are_the_paired_t_test(real: Run) -> None:
    ours, theirs = noisy(0.01, range(6), 1), noisy(0.0, range(6), 2)
    cells = {"A": runs(real, ours), "B": runs(real, theirs)}
    (block,) = block_model(cells, A_B, value)
    pair = paired("A - B", cells["A"], cells["B"], value)
    assert block.p == pytest.approx(stats.ttest_rel(list(ours.values()), list(theirs.values())).pvalue, abs=1e-10)
    for name in ("mean", "low", "high", "p"):
        assert getattr(block, name) == pytest.approx(getattr(pair, name), abs=1e-10)
    unpaired = stats.ttest_ind(list(ours.values()), list(theirs.values())).pvalue
    assert block.p < 0.1 < 0.9 < unpaired  # without blocks the seeds hide it


def test_a_quiet_contrast_among_loud_cells_is_seen_when_paired_by_seed_alone(real: Run) -> None:
    cells = {name: runs(real, noisy(0.05 * (name == "A"), range(3), key)) for key, name in enumerate("AB")}
    loud = np.random.default_rng(0).normal(0, 5, (2, 3))
    cells |= {
        name: runs(real, {seed: float(y) for seed, y in enumerate(own)}) for name, own in zip("CD", loud, strict=True)
    }
    pooled, alone = block_model(cells, A_B, value)[0], by_seed("A - B", cells, A_B["A - B"], value)
    assert alone == paired("A - B", cells["A"], cells["B"], value)
    assert alone.high - alone.low < 0.2 < 5 < pooled.high - pooled.low  # one variance for all cells
    assert pooled.mean == pytest.approx(alone.mean)
    cells["B"] = runs(real, {**noisy(0.0, range(2), 1), 2: math.inf})
    assert by_seed("A - B", cells, A_B["A - B"], value) is None
    assert by_seed("A - B", {**cells, "B": []}, A_B["A - B"], value) is None


def test_the_block_model_finds_an_effect_below_the_seeds_with_one_missing(real: Run) -> None:
    responses = {"A": noisy(0.5, range(5), 1), "B": noisy(0.0, range(6), 2), "C": noisy(0.2, range(6), 3)}
    cells = {name: runs(real, own) for name, own in responses.items()}
    (contrast,) = block_model(cells, A_B, value)
    assert contrast.low < 0.5 < contrast.high
    assert contrast.high - contrast.low < 0.06
    assert contrast.significant
    assert contrast.seeds == 5
    means = {name: float(np.mean(list(own.values()))) for name, own in responses.items()}
    assert abs(means["A"] - means["B"] - 0.5) > 10  # the difference of means holds the missing seed's effect


def test_a_cell_with_a_diverged_run_takes_its_contrasts_with_it(real: Run) -> None:
    cells = {name: runs(real, noisy(0.0, range(3), key)) for key, name in enumerate("ABC")}
    clean = block_model({name: cells[name] for name in "AC"}, {"A - C": {"A": 1, "C": -1}}, value)
    cells["B"] = runs(real, {**noisy(0.0, range(2), 1), 2: math.inf})
    contrasts: dict[str, dict[str, float]] = {**A_B, "A - C": {"A": 1, "C": -1}, "A - D": {"A": 1, "D": -1}}
    assert block_model({**cells, "D": []}, contrasts, value) == clean


def test_one_seed_gives_no_interval(real: Run) -> None:
    cells = {name: runs(real, {1: y}) for name, y in {"A": 3.0, "B": 1.0, "C": 0.0}.items()}
    (contrast,) = block_model(cells, A_B, value)
    assert contrast == Contrast("A - B", 1, pytest.approx(2.0), -math.inf, math.inf, 1.0)
    assert not contrast.bounded


def test_a_contrast_between_cells_without_a_common_seed_is_not_estimated(real: Run) -> None:
    cells = {"A": runs(real, {1: 0.0, 2: 1.0}), "C": runs(real, {1: 0.0, 2: 1.1}), "B": runs(real, {3: 100.0})}
    assert block_model(cells, A_B, value) == []


def test_contrasts_that_cannot_be_estimated_stay_in_the_family(real: Run) -> None:
    differences = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.7}  # p = .03
    cells = {"A": runs(real, differences), "B": runs(real, dict.fromkeys(differences, 0.0)), "C": []}
    declared: dict[str, dict[str, float]] = {**A_B, "A - C": {"A": 1, "C": -1}, "B - C": {"B": 1, "C": -1}}
    (alone,), (of_three,) = block_model(cells, A_B, value), block_model(cells, declared, value)
    assert 0.05 / 3 < alone.p == of_three.p < 0.05
    assert alone.significant
    assert not of_three.significant


def test_a_contrast_of_a_cell_with_one_seed_has_no_interval(real: Run) -> None:
    cells = {"A": runs(real, noisy(0.5, [1], 1)), "B": runs(real, noisy(0.0, range(6), 2))}
    cells["C"] = runs(real, noisy(0.2, range(6), 3))
    (contrast,) = block_model(cells, A_B, value)
    assert contrast.seeds == 1
    assert not contrast.bounded
    assert not contrast.significant


# Initialization inside a run


METAINIT = {"name": "metainit", "steps": 3, "batch_size": 8}
NORMALIZED = {"name": "lenet", "normalization": "batch"}


def small(**changes: Any) -> Config:
    settings: dict[str, Any] = {
        "data": {"name": "cifar10", "size": "sample", "subset": 60},
        "model": NORMALIZED,
        "optimizer": SGD,
        "batch_size": 16,
        "epochs": 1,
        "seed": 0,
    }
    return Config(**{**settings, **changes})


def weights(config: Config) -> dict[str, torch.Tensor]:
    return dict(build_model(config, (3, 32, 32), 10).named_parameters())


@pytest.fixture(scope="module")
def rescaled() -> Run:
    return train(small(initialization=METAINIT), CPU)


def test_metainit_in_a_run_leaves_its_trace_beside_the_curves(rescaled: Run) -> None:
    trace = rescaled.metainit
    assert trace is not None
    assert len(trace.quotients) == 3
    assert trace.norms.keys() == {name for name, p in weights(rescaled.config).items() if p.dim() >= 2}
    assert all(before != after for before, after in trace.norms.values())
    assert trace.samples > 3 * 8 * 3  # a step costs more than three gradients of its batch
    assert rescaled.curves.samples == [0, 60]
    assert train(small(), CPU).metainit is None


def test_a_rescaled_record_stands_the_audit(rescaled: Run) -> None:
    assert verify(rescaled, CPU, whole=True).deviation == 0
    assert verify(rescaled, CPU).deviation == 0


def test_rescaled_runs_that_differ_in_the_optimizer_start_from_the_same_weights(rescaled: Run) -> None:
    rules: list[Rule | dict[str, Any]] = [SGD, {"name": "svrg", "base": SGD}]
    trainers = [Trainer(small(initialization=METAINIT, optimizer=rule), CPU) for rule in rules]
    torch.rand(3)
    for trainer in trainers:
        trainer.initialize()
    first, second = (list(trainer.model.parameters()) for trainer in trainers)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    plain = weights(small())
    moved = {name for name, p in trainers[0].model.named_parameters() if not torch.equal(p, plain[name])}
    assert rescaled.metainit is not None
    assert moved == rescaled.metainit.norms.keys()  # biases and affine parameters stay


def test_he_weights_have_variance_2_over_fan_in() -> None:
    shape = {"model": {"name": "resnet18", "width": 4}}
    he, default = (weights(small(**shape, initialization=rule)) for rule in ({"name": "he"}, None))
    for name, p in he.items():
        if p.dim() < 2:
            continue
        fan_in, tolerance = p[0].numel(), 4 * math.sqrt(2 / p.numel())
        assert float(p.detach().square().mean()) * fan_in == pytest.approx(2, rel=tolerance)
        assert float(default[name].detach().square().mean()) * fan_in == pytest.approx(1 / 3, rel=tolerance)  # torch's
    bias = list(he)[-1]
    assert default[bias].any()
    assert not he[bias].any()


def test_no_initialization_is_torchs_own() -> None:
    config = small()
    with torch.random.fork_rng():
        torch.manual_seed(data.derived_seed(0, "weights"))
        literal: nn.Module = config.model.build((3, 32, 32), 10)
    ours = weights(config.replace(initialization=None))
    assert all(torch.equal(p, ours[name]) for name, p in literal.named_parameters())
    assert config.replace(initialization=None).identity == config.identity
    assert "initialization" not in config.canonical
    assert any(not torch.equal(p, ours[name]) for name, p in weights(small(initialization={"name": "he"})).items())


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "preset must be one of smoke, cpu, paper, got 'huge'"),
        ({"methods": ["Adagrad"]}, "methods must be among SGD, Adam, SVRG, got 'Adagrad'"),
        ({"methods": []}, "methods must name at least one of SGD, Adam, SVRG, got none"),
        ({"preset": [1]}, "preset must be one of smoke, cpu, paper, got [1]"),
        ({"methods": 5}, "methods must be a list of names among SGD, Adam, SVRG, got 5"),
        ({"methods": "SGD"}, "methods must be a list of names among SGD, Adam, SVRG, got 'SGD'"),
        ({"methods": [["SGD"]]}, "methods must be among SGD, Adam, SVRG, got ['SGD']"),
        ({"seeds": 5}, "seeds must be a list of whole numbers from 0, got 5"),
        ({"seeds": [1, 2, 1]}, "seeds must differ from one another, got [1, 2, 1]"),  # one record is not two seeds
        ({"seeds": [1, -1]}, "seeds must be whole numbers from 0, got -1"),
        ({"epochs": -1}, "epochs must be a whole number from 0 (0: the preset's own), got -1"),
        ({"width": -1}, "width must be a whole number from 0 (0: the preset's own), got -1"),
        ({"width": 1.5}, "width must be a whole number from 0 (0: the preset's own), got 1.5"),
    ],
)
def test_a_bad_parameter_of_a_chapter_gives_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        RESNET18.scale(**{"preset": "smoke", **arguments})
    assert str(caught.value) == message


@pytest.fixture
def torchvision() -> None:
    try:
        import torchvision.models  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import here: {error}")


@pytest.mark.usefixtures("torchvision")
def test_torchvision_refuses_what_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="torchvision has no classifier 'resnet19'"):
        TorchvisionModel(name="torchvision", architecture="resnet19").build((3, 32, 32), 10)
    with pytest.raises(ValueError, match="take 3 channels, the images have 1"):
        TorchvisionModel(name="torchvision", architecture="resnet18").build((1, 28, 28), 10)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("rule", [SGD, {"name": "svrg", "base": SGD}], ids=["SGD", "SVRG"])
def test_a_network_of_torchvision_trains_through_the_config(rule: dict[str, Any]) -> None:
    from torchvision.models import resnet18

    config = small(model={"name": "torchvision", "architecture": "resnet18"}, optimizer=rule, batch_size=8)
    trainer = Trainer(config, CPU)
    with torch.random.fork_rng():
        torch.manual_seed(data.derived_seed(0, "weights"))
        literal = resnet18(num_classes=10)
    trainer.model.train()
    literal.train()
    trainer.snapshot(0)
    batch = next(trainer.batches(0))
    loss = trainer.step(batch)
    expected = nn.functional.cross_entropy(literal(batch.inputs), batch.targets)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    svrg = trainer.optimizer if isinstance(trainer.optimizer, SVRG) else None  # at its snapshot the estimate is mu
    directions = svrg.full_gradient if svrg else [p.grad for p in literal.parameters()]
    pairs = zip(trainer.model.parameters(), literal.parameters(), directions, strict=True)
    assert all(torch.allclose(ours - theirs, -0.01 * v, rtol=1e-3, atol=1e-6) for ours, theirs, v in pairs)


def test_a_difference_without_a_p_value_is_never_significant() -> None:
    nan = float("nan")
    contrasts = [Contrast("diverged - SGD", 5, nan, nan, nan, nan), Contrast("SVRG - SGD", 5, 1.0, 0.5, 1.5, 1e-3)]
    assert [contrast.significant for contrast in holm(contrasts)] == [False, True]


# What a table or a page says of them


def test_holm_stops_at_the_first_contrast_that_fails() -> None:
    def marks(*ps: float) -> list[bool | None]:
        return [c.significant for c in holm([Contrast("", 5, 1.0, 0.0, 2.0, p) for p in ps])]

    assert marks(0.04, 0.01, 0.02) == [True] * 3
    assert marks(0.03, 0.04) == [False, False]  # against its own threshold the second would pass
    assert marks(0.04, 0.01, 0.03) == [False, True, False]


def test_no_contrast_is_marked_before_its_seeds_are_there() -> None:
    early, late = Contrast("", 3, 1.0, 0.5, 1.5, 1e-3), Contrast("", 5, 1.0, 0.5, 1.5, 1e-3)
    marked = holm([early, late], planned=5)
    assert [contrast.significant for contrast in marked] == [None, True]
    assert tables.differences(marked)["significant (Holm)"].tolist() == ["not decided yet", "yes"]


def test_pairs_are_made_by_seed(real: Run) -> None:
    first, second = runs(real, {1: 10.0, 2: 20.0, 3: 30.0}), runs(real, {3: 29.0, 2: 19.0, 4: 0.0, 1: 9.0})
    c = paired("", first, second, lambda run: run.final.test.loss)
    assert (c.seeds, c.mean, c.low, c.high) == (3, 1, 1, 1)


def test_the_deficits_split_without_remainder() -> None:
    def total(*starts: str) -> dict[str, int]:
        cells: Counter[str] = Counter()
        for name, own in deficit.CONTRASTS.items():
            for cell, weight in own.items() if name.startswith(starts) else ():
                cells[cell] += weight
        return {cell: weight for cell, weight in cells.items() if weight}

    assert total("estimator", "staleness", "freezing", "unlocking, once") == total("deficit with a frozen")
    assert total("estimator", "staleness", "unlocking, every 5") == total("deficit of the public code")


def test_intervals_are_written_low_to_high_with_their_star() -> None:
    a, b = holm([Contrast("a", 3, 0.25, 0.125, 0.375, 0.001), Contrast("b", 3, -0.25, -0.75, 0.25, 0.3)])
    assert (a.written, b.written) == ("+0.250 [+0.125, +0.375] *", "-0.250 [-0.750, +0.250]")
    assert write([a, b]) == "a +0.2500 [+0.1250, +0.3750] *; b -0.2500 [-0.7500, +0.2500]"
    table = tables.differences([a, b])
    assert table["95 % interval"].tolist() == ["[+0.1250, +0.3750]", "[-0.7500, +0.2500]"]
    assert (table["p"].tolist(), table["significant (Holm)"].tolist()) == (["0.001", "0.3"], ["yes", "no"])


def test_means_leave_out_what_diverged_and_counts_do_not(real: Run) -> None:
    def run(accuracy: float, diverged: bool = False) -> Run:
        test = real.final.test.model_copy(update={"accuracy": accuracy})
        end = Divergence(epoch=0, reason="non-finite loss") if diverged else None
        return real.model_copy(update={"final": real.final.model_copy(update={"test": test}), "diverged": end})

    own = {"SVRG": [run(0.8), run(0.6), run(0.1, diverged=True)], "Adam": [run(0.1, diverged=True)]}
    source = dict.fromkeys(own, (0.9, 0.9))
    columns = {"test, ours": lambda run: run.final.test.accuracy}
    for table in (tables.accuracies(own, source), tables.finals(own, columns)):
        assert table.loc["SVRG", ["test, ours", "seeds", "diverged"]].tolist() == ["0.7000 ± 0.1414", 3, 1]
        assert table.loc["Adam", "test, ours"] == "diverged"


def test_metainits_trace_and_what_it_costs() -> None:
    model, shape = build_model(small(), (3, 32, 32), 10), (3, 32, 32)
    rule = MetaInitialization(name="metainit", steps=3, batch_size=8)
    first, again = (rescale(model, rule, shape, 10, 0) for _ in range(2))
    assert again.before == pytest.approx(first.after, rel=1e-5)
    assert abs(first.before / first.after - 1) > 1e-3
    for twice in ({"steps": 6}, {"batch_size": 16}):
        more = rescale(model, rule.model_copy(update=twice), shape, 10, 0)
        assert more.samples == pytest.approx(2 * first.samples, abs=1)


def test_a_band_is_the_mean_and_the_range_over_seeds(real: Run) -> None:
    def run(losses: list[float]) -> Run:
        curves = {"samples": [0, 1, 2], "train_loss": losses, "test_loss": [9 * loss for loss in losses]}
        return real.model_copy(update={"curves": real.curves.model_copy(update=curves)})

    own = {"SGD": [run([3.0, 2.0, 1.0]), run([5.0, 4.0, 3.0])]}
    for ax, name, k in zip(
        figures.losses(own, lambda run: [0, 1, 2], "x").axes, ("training", "test"), (1, 9), strict=True
    ):
        assert ax.get_title().startswith(name)
        assert list(ax.lines[0].get_ydata()) == [3 * k, 2 * k]
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == (k, 4 * k)


@pytest.mark.parametrize(("losses", "place"), [([3.0, 2.0, math.nan], (1, 2.0)), ([3.0, math.nan, 0.0], (1, 1.0))])
def test_a_band_has_a_cross_where_a_run_diverged_if_need_be_at_the_edge(
    losses: list[float], place: tuple[float, float], real: Run
) -> None:
    epochs = [0, 1, 2] if math.isfinite(losses[1]) else [0, 1]
    curves = real.curves.model_copy(update={"samples": epochs, "train_loss": losses[: len(epochs)]})
    ended = real.model_copy(update={"curves": curves, "diverged": Divergence(epoch=1, reason="non-finite loss")})
    _, ax = figures.new_figure()
    figures.band(ax, [ended], lambda run: run.curves.samples, "train_loss", label="SGD")
    (cross,) = (line for line in ax.lines if line.get_marker() == "x")
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == place
    assert (cross.get_transform() == ax.get_xaxis_transform()) == (len(epochs) == 2)


def test_the_benchmarks_epochs_leave_the_search_alone() -> None:
    for comparison in (RESNET18, RESNET101):
        own, other = comparison.scale("cpu"), comparison.scale("cpu", epochs=5)
        assert other.svrg_epochs == 5
        for method in METHODS:
            assert comparison.grid_run(other, "batch", method, 0.01) == comparison.grid_run(own, "batch", method, 0.01)


def test_a_subset_of_the_methods_searches_and_tabulates_these_alone(tmp_path: Path) -> None:
    scale = RESNET18.scale("cpu", ["SGD"])
    assert list(RESNET18.search(Store(tmp_path), scale, ["SVRG"])) == []
    paper = RESNET18.scale("paper", ["SGD"])
    assert [list(own) for own in RESNET18.rates(Store(tmp_path), paper).values()] == [["SGD"], ["SGD"]]


def test_the_noise_is_measured_for_the_presets_first_seed_whatever_seeds_are_asked_for(tmp_path: Path) -> None:
    def observed(seeds: list[int]) -> list[bool]:
        scale = RESNET18.scale("paper", seeds=seeds)
        return [phase.observation is not None for phase in deficit.queue(scale, Store(tmp_path))]

    assert observed([1, 2]) == [True, False]
    assert observed([2]) == [False]  # else recorded runs would be made again


def test_metainit_may_start_from_he() -> None:
    he, both = (weights(small(initialization=rule)) for rule in ({"name": "he"}, {**METAINIT, "start": "he"}))
    assert all(torch.equal(p, both[name]) for name, p in he.items())


def test_metainits_noise_is_the_seeds_own() -> None:
    rule = MetaInitialization(name="metainit", steps=2, batch_size=8)
    first, second = (rescale(build_model(small(), (3, 32, 32), 10), rule, (3, 32, 32), 10, seed) for seed in (0, 1))
    assert first.quotients != second.quotients


def test_the_papers_side_experiment_is_as_long_as_its_benchmark() -> None:
    paper = RESNET101.scale("paper")
    assert (paper.side_images, paper.side_epochs) == (round(0.95 * 50_000), paper.epochs)
