"""Chapter 12 on stores made up for it: its queue, what its cross-validation selects, and its judges' words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest

from varred import claims, experiments, timing
from varred.claims.lenet_mnist import best_epochs, same_step
from varred.config import Config, SVRGRule
from varred.experiments import lenet_mnist as lenet
from varred.experiments.grid import Point, points
from varred.record import Curves, Divergence, Evaluation, Final, Provenance, Run, Seconds
from varred.record import StepSizes as Trace
from varred.runs import Store

HOLDS, PART, FAILS, OPEN = "holds", "holds in part", "does not hold", "not decided yet"
SCALE = lenet.scale("cpu")
METHODS, REDUCED, OTHERS = lenet.METHODS, ("SVRG", "STORM"), ("Adam", "SGD", "AdaGrad")
SOURCE: dict[str, Point] = {method: lenet.tuned(rule) for method, rule in lenet.SELECTED.items()}

Curve = Callable[[int], float]


def flat(level: float) -> Curve:
    return lambda epoch: level


ONE = flat(1.0)


def costs(config: Config) -> list[int]:
    """Passes over the data at the start and at each epoch's end."""
    rule, passes = config.optimizer, [0]
    for epoch in range(config.epochs):
        both = rule.name in ("svrg", "storm")
        passes.append(passes[-1] + 1 + both + (isinstance(rule, SVRGRule) and rule.snapshot.due(epoch)))
    return passes


class Memory(Store):
    """A store without files, into which records are put without training."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kept: dict[str, Run] = {}

    def __contains__(self, config: Config) -> bool:
        return config.identity in self.kept

    def get(self, config: Config) -> Run:
        return self.kept[config.identity]

    def all(self) -> list[Run]:
        return list(self.kept.values())

    def add(
        self,
        config: Config,
        *,
        test: Curve = ONE,
        training: Curve = ONE,
        validation: Curve = ONE,
        accuracy: float = 0.5,
        clipped: float | None = None,
        diverged: bool = False,
    ) -> None:
        """Write a record: curves by epochs, two of them where it diverged; the final values those at their ends."""
        trained = 2 if diverged else config.epochs
        epochs = range(trained + 1)
        tests, losses, held = ([curve(epoch) for epoch in epochs] for curve in (test, training, validation))
        parts = {
            name: Evaluation(
                loss=loss, accuracy=accuracy, confidence_right=1, confidence_wrong=1, loss_right=1, loss_wrong=1
            )
            for name, loss in (("test", tests[-1]), ("train", losses[-1]), ("validation", held[-1]))
        }
        shares = {"learning_rate": [[0.1]] * trained, "momentum": [[0.1]] * trained}
        self.kept[config.identity] = Run(
            config=config,
            curves=Curves(
                samples=costs(config)[: len(epochs)], test_loss=tests, train_loss=losses, validation_loss=held
            ),
            final=Final(**parts),
            fingerprint=[],
            path=None if clipped is None else Trace(quantiles=[0.5], clipped=[clipped] * trained, **shares),
            diverged=Divergence(epoch=trained, reason="non-finite loss") if diverged else None,
            data_checksum="",
            curve_images=1,
            training_images=1,
            seconds=Seconds(steps=0, snapshots=0, evaluation=0),
            provenance=Provenance(package="", commit="", torch="", device="cpu", threads=1),
        )

    def benchmark(self, test: Mapping[str, Curve], training: Mapping[str, Curve] | None = None) -> None:
        """Put figure 4.4's runs with all seeds; what a seed adds to a reduced method's curves has mean zero."""
        for config in lenet.benchmark(SCALE):
            noise = 0.001 * (config.seed - 3) * (config.method in REDUCED)
            curve = test[config.method]
            self.add(
                config,
                test=lambda epoch, curve=curve, noise=noise: curve(epoch) + noise,
                training=(training or {}).get(config.method, ONE),
            )

    def word(self, claim: str) -> str:
        return claims.judge(claim, self).word


@pytest.fixture
def store(tmp_path: Path) -> Memory:
    return Memory(tmp_path)


# Cross-validation


Loss = Callable[[str, Point, int], float]


def decades(optima: Mapping[str, Point], final: Mapping[str, Point] | None = None) -> Loss:
    """A loss that grows with the distance from an optimum, which may be another one after more epochs."""

    def loss(method: str, values: Point, epochs: int) -> float:
        best = (final if final and epochs == SCALE.final_epochs else optima)[method]
        return sum(abs(math.log10(x / y)) for x, y in zip(values, best, strict=True))

    return loss


def fold(store: Memory, method: str, values: Point, epochs: int, loss: float, scale: lenet.Scale = SCALE) -> None:
    """Put a grid point's runs; an infinite loss is one fold's divergence, at a loss that would be the best."""
    for place, config in enumerate(lenet.folds(scale, method, values, epochs)):
        ended = loss == math.inf and place == 0
        store.add(config, validation=flat(-9.0 if loss == math.inf else loss), diverged=ended)


def work_through(store: Memory, scale: lenet.Scale, loss: Loss) -> list[tuple[str, list[Config]]]:
    """Record what the queue asks for, phase by phase; return what it asked for."""
    asked = []
    for phase in lenet.queue(scale, store):
        asked.append((phase.name, phase.configs))
        for config in store.missing(phase.configs):
            store.add(config, validation=flat(loss(config.method, lenet.tuned(config.optimizer), config.epochs)))
    return asked


def chosen(configs: Collection[Config]) -> dict[str, set[Point]]:
    points: dict[str, set[Point]] = {}
    for config in configs:
        points.setdefault(config.method, set()).add(lenet.tuned(config.optimizer))
    return points


def test_the_queue_widens_what_lies_on_an_edge_and_finishes_what_the_screening_leaves(store: Memory) -> None:
    screening = {**SOURCE, "Adam": (1e-6,), "STORM": (1e5, 0.1)}
    asked = work_through(store, SCALE, decades(screening, {**SOURCE, "STORM": (1e3, 0.1)}))
    assert [name for name, _ in asked] == [
        "benchmark with table 4.2's values",
        "STORM's granularities",
        "SVRG's snapshot period",
        "cross-validation, the source's values",
        "cross-validation, first stage",
        "cross-validation, wider grid",
        "cross-validation, wider grid",
        "cross-validation, second stage",
        "benchmark with our selected values",
    ]
    fixed, (own, screened, wider, wider_still, final, again) = asked[:3], [configs for _, configs in asked[3:]]
    assert [len(part) for _, part in fixed] == [25, 9, 6]
    assert [config.seed for config in fixed[0][1][:6]] == [1, 1, 1, 1, 1, 2]
    assert chosen(own) == {method: {values} for method, values in SOURCE.items()}
    assert len(screened) == 4 * (5 + 5 + 4 + 5 + 20)
    assert chosen(wider) == {"Adam": {(1e-6,)}, "SGD": {(1.0,)}, "AdaGrad": {(1.0,)}, "STORM": {(1e4, 0.1)}}
    known = {config.identity for config in wider}
    assert chosen([config for config in wider_still if config.identity not in known]) == {
        "Adam": {(1e-7,)},
        "STORM": {(1e5, 0.1)},
    }
    assert {config.epochs for config in (*screened, *wider, *wider_still)} == {SCALE.screening_epochs}
    assert chosen(final) == {
        "Adam": {(1e-6,), (1e-5,), (1e-7,), (1e-3,)},  # the source's, 1e-4, is tried before
        "SGD": {(1.0,), (0.01,), (0.001,)},  # the three best, and the three best of table 4.1
        "AdaGrad": {(1.0,), (0.01,), (0.001,)},
        "SVRG": {(0.1,), (0.001,)},
        "STORM": {(1e5, 0.1), (1e4, 0.1), (1e3, 0.1), (1e3, 0.01)},
    }
    assert {config.epochs for config in (*own, *final)} == {SCALE.final_epochs}
    assert chosen(again) == {"STORM": {(1e3, 0.1)}}  # the others select what has been run
    assert len(again) == len(SCALE.seeds)
    assert lenet.selected(store, SCALE) == {**SOURCE, "STORM": (1e3, 0.1)}
    trained = len(store.all())
    assert experiments.progress(lenet.queue(SCALE, store), store)["cross-validation, wider grid"] == (24, 24)
    work_through(store, SCALE, decades(screening))
    assert len(store.all()) == trained


def test_a_single_stage_selects_the_least_loss_of_the_whole_grid(store: Memory) -> None:
    scale = lenet.scale("paper")
    asked = work_through(store, scale, decades({**SOURCE, "SGD": (0.001,)}))
    assert [name for name, _ in asked][3:] == ["cross-validation, first stage", "benchmark with our selected values"]
    assert lenet.selected(store, scale) == {**SOURCE, "SGD": (0.001,)}
    assert chosen(asked[-1][1]) == {"SGD": {(0.001,)}}
    missing, *_ = lenet.folds(scale, "SGD", (0.1,), scale.screening_epochs)
    del store.kept[missing.identity]
    assert lenet.selected(store, scale) == {method: own for method, own in SOURCE.items() if method != "SGD"}


def test_finalists_are_the_three_best_that_did_not_diverge_and_the_sources_own(store: Memory) -> None:
    assert lenet.finalists(store, SCALE, "SGD") == [(0.1,)]
    losses = {1e-5: math.inf, 1e-4: math.inf, 1e-3: 0.2, 1e-2: 0.1, 1e-1: math.inf}
    for rate, loss in losses.items():
        fold(store, "SGD", (rate,), SCALE.screening_epochs, loss)
    assert lenet.finalists(store, SCALE, "SGD") == [(0.1,), (0.01,), (0.001,)]
    for rate, loss in {1e-5: 0.4, 1e-4: 0.3}.items():
        fold(store, "SGD", (rate,), SCALE.screening_epochs, loss)
    assert lenet.finalists(store, SCALE, "SGD") == [(0.1,), (0.01,), (0.001,), (0.0001,)]
    fold(store, "SGD", (0.1,), SCALE.screening_epochs, 0.15)
    assert lenet.finalists(store, SCALE, "SGD") == [(0.1,), (0.01,), (0.001,)]


def test_nothing_is_selected_before_its_grid_its_widening_and_its_last_stage_are_complete(store: Memory) -> None:
    own, screening, final = lenet.scale("cpu", ["SGD"]), SCALE.screening_epochs, SCALE.final_epochs or 0

    def selected() -> Point | None:
        return lenet.selected(store, own).get("SGD")

    for (rate,) in points(lenet.GRIDS["SGD"]):
        assert selected() is None
        fold(store, "SGD", (rate,), screening, 1 - rate)
    for rate, loss in {0.1: 0.5, 0.01: 0.1, 0.001: 0.3}.items():
        fold(store, "SGD", (rate,), final, loss)
    assert selected() is None  # 0.1 is an edge: 1 may be better
    fold(store, "SGD", (1.0,), screening, math.inf)
    assert selected() == (0.01,)  # the last stage decides, not the first
    del store.kept[lenet.folds(own, "SGD", (0.001,), final)[3].identity]
    assert selected() is None


ELSEWHERE: dict[str, Point] = {
    "Adam": (1e-3,),
    "SGD": (0.01,),
    "AdaGrad": (0.01,),
    "SVRG": (1e-3,),
    "STORM": (10.0, 0.01),
}


@pytest.mark.parametrize(
    ("optima", "word", "reason"),
    [
        (SOURCE, HOLDS, "Adam, SGD, AdaGrad, SVRG, STORM"),
        ({**ELSEWHERE, "Adam": SOURCE["Adam"], "STORM": SOURCE["STORM"]}, PART, "Adam, STORM"),
        (ELSEWHERE, FAILS, "no method"),
    ],
)
def test_the_selection_is_the_sources_own(optima: Mapping[str, Point], word: str, reason: str, store: Memory) -> None:
    work_through(store, SCALE, decades(optima))
    verdict = claims.judge("lenet-selection", store)
    assert (verdict.word, verdict.reason) == (word, f"the same values for {reason}")
    last = lenet.folds(SCALE, "SVRG", optima["SVRG"], SCALE.final_epochs or 0)[-1]
    del store.kept[last.identity]
    assert store.word("lenet-selection") == OPEN


def test_a_value_beyond_table_41_is_ours_and_not_the_tables(store: Memory) -> None:
    work_through(store, SCALE, decades({**SOURCE, "SGD": (1.0,)}))
    assert lenet.selected(store, SCALE)["SGD"] == (1.0,)
    assert store.word("lenet-selection") == HOLDS  # within the table the source's value is the best


def test_a_points_loss_is_the_mean_over_folds(store: Memory) -> None:
    for rate, losses in {0.1: (0.0, 1.0, 1.0, 1.0), 0.01: (0.5, 0.5, 0.5, 0.5)}.items():
        for config, loss in zip(lenet.folds(SCALE, "SGD", (rate,), SCALE.screening_epochs), losses, strict=True):
            store.add(config, validation=flat(loss))
    assert lenet.screened(store, SCALE, "SGD") == {(0.1,): 0.75, (0.01,): 0.5}


@pytest.mark.parametrize("claim", ["early", "test-loss", "accuracy", "time", "train-loss", "best-epoch"])
def test_a_diverged_run_of_the_benchmark_leaves_every_claim_on_it_open(claim: str, store: Memory) -> None:
    store.benchmark({method: ONE for method in METHODS})
    validated(store)
    clock(store, {})
    assert store.word(f"lenet-{claim}") == FAILS
    (config,) = (c for c in lenet.benchmark(lenet.scale("cpu", seeds=[2])) if c.method == "SVRG")
    store.add(config, diverged=True)
    verdict = claims.judge(f"lenet-{claim}", store)
    assert (verdict.word, verdict.reason) == (OPEN, "1 of 25 of its runs diverged, which further seeds can't mend")
    (row,) = (line for line in claims.answer(store, claims.judge, {}).splitlines() if line.startswith("| SVRG - SGD |"))
    assert row == "| SVRG - SGD " + 4 * "| a run diverged " + "|"


def test_a_method_that_sgd_never_catches_has_not_trained_less_far(store: Memory) -> None:
    training = {**dict.fromkeys(METHODS, falling), "SVRG": lambda epoch: 0.5 * falling(epoch), "STORM": flat(0.1)}
    store.benchmark(dict.fromkeys(METHODS, ONE), training)
    assert store.word("lenet-train-loss") == FAILS


# The best epoch


BEST = {"Adam": 5, "SGD": 10, "AdaGrad": 15, "SVRG": 20, "STORM": 25}


def validated(store: Memory) -> None:
    """The 50-epoch cross-validation of table 4.2's values: the folds' mean is least at a method's best epoch."""
    for method, best in BEST.items():
        for place, config in enumerate(lenet.folds(SCALE, method, SOURCE[method], SCALE.final_epochs or 0)):
            slope = 3 * (-1) ** place  # alone, a fold is best at an end
            store.add(config, validation=lambda e, b=best, s=slope: abs(e - b) + s * e if e else -999.0)


def test_the_best_epoch_is_the_folds_means_and_never_the_start(store: Memory) -> None:
    assert best_epochs(store) == {}
    validated(store)
    assert best_epochs(store) == BEST
    config = lenet.folds(SCALE, "Adam", SOURCE["Adam"], SCALE.final_epochs or 0)[1]
    store.add(config, diverged=True)
    assert best_epochs(store).keys() == BEST.keys() - {"Adam"}


def dip(method: str, depth: float) -> Curve:
    """A test loss that is lower at the method's best epoch alone."""
    return lambda epoch: 1 - depth * (epoch == BEST[method])


@pytest.mark.parametrize(
    ("depths", "word"),
    [
        (dict.fromkeys(REDUCED, 0.5), HOLDS),
        ({"SVRG": 0.5}, PART),
        (dict.fromkeys(OTHERS, 0.5), FAILS),
    ],
    ids=["both", "SVRG", "the others"],
)
def test_test_losses_are_compared_at_each_methods_best_epoch(
    depths: Mapping[str, float], word: str, store: Memory
) -> None:
    store.benchmark({method: dip(method, depths.get(method, 0.0)) for method in METHODS})
    assert store.word("lenet-best-epoch") == OPEN  # before the cross-validation
    validated(store)
    assert store.word("lenet-best-epoch") == word
    assert store.word("lenet-test-loss") == FAILS  # at the end all are alike


def test_at_svrgs_step_pairs_are_compared_to_the_end_and_at_equal_training_loss(store: Memory) -> None:
    """SVRG trains twice as fast and its test loss rises by .01 an epoch: SGD's last training loss is its 50th."""
    rising: Curve = lambda epoch: 1 + 0.01 * epoch  # noqa: E731
    store.benchmark({**dict.fromkeys(METHODS, ONE), "SVRG": rising}, {"SVRG": lambda epoch: 0.9 ** (2 * epoch)})
    assert same_step(store) == {}
    plain = lenet.benchmark(SCALE, {"SGD": lenet.rule("SGD", 0.01)})
    for config in plain[1:]:
        store.add(config, training=falling, accuracy=0.4, test=lambda epoch: 1.2 + 0.1 * (epoch % 2))
    store.add(plain[0], diverged=True)
    found = {measure: [a - b for a, b in values] for measure, values in same_step(store).items()}
    noise = [0.001 * (seed - 3) for seed in (2, 3, 4, 5)]
    assert found["test loss at the end"] == pytest.approx([0.8 + more for more in noise])
    assert found["test loss at equal training loss"] == pytest.approx([0.3 + more for more in noise])
    assert found["least test loss"] == pytest.approx([-0.2 + more for more in noise])
    assert found["change of the test loss between epochs"] == pytest.approx([0.01 - 0.1] * 4)
    assert found["test accuracy at the end"] == pytest.approx([0.1] * 4)
    assert found["training loss at the end"] == pytest.approx([0.9**200 - 0.9**100] * 4)


# Seconds


def clock(store: Memory, slower: Mapping[str, float], snapshot: float = 0.0) -> None:
    """Write times: a step of SGD, Adam and AdaGrad takes a second, a snapshot pass ``snapshot`` seconds."""
    times = {
        timing.kind(config): {"step": slower.get(config.method, 1.0), "snapshot": snapshot}
        for config in lenet.benchmark(SCALE)
    }
    path = timing.times_path(store)
    path.parent.mkdir()
    path.write_text(json.dumps(times))


@pytest.mark.parametrize(
    ("slower", "snapshot", "word"),
    [
        ({}, 0.0, HOLDS),
        (dict.fromkeys(REDUCED, 2.0), 0.0, FAILS),
        ({"STORM": 2.0}, 0.0, PART),
        ({}, 5.0, PART),
    ],
    ids=["steps as fast", "steps half as fast", "STORM's steps half as fast", "snapshots as long as their epochs"],
)
def test_the_time_is_that_of_100_epochs_of_sgd(
    slower: Mapping[str, float], snapshot: float, word: str, store: Memory
) -> None:
    """Variance-reduced methods are ahead after 70 epochs and behind before; 20 snapshots of 5 seconds are a half."""
    late: Curve = lambda epoch: 0.5 if epoch > 70 else 1.5  # noqa: E731
    store.benchmark({**dict.fromkeys(OTHERS, ONE), **dict.fromkeys(REDUCED, late)})
    assert store.word("lenet-time") == OPEN  # nothing has been timed
    clock(store, slower, snapshot)
    assert store.word("lenet-time") == word
    assert store.word("lenet-test-loss") == HOLDS  # at the end


# Training loss


def falling(epoch: int) -> float:
    """SGD's training loss: 0.1 or less from epoch 22 on, 1.9 times its final value or less from epoch 94 on."""
    return 0.9**epoch


AS_FAR = 1.9 * falling(100)


def overfitted(at: float) -> Curve:
    """SGD's test loss: ``at`` where it has just reached one of these training losses, and higher before and after."""
    return lambda epoch: at if epoch in (22, 94) else 3.0


@pytest.mark.parametrize(
    ("svrg", "storm", "sgd", "word"),
    [
        (0.1, 0.1, 1.0, HOLDS),
        (0.1, 0.1, 0.5, HOLDS),
        (0.1, 0.1, 1.5, FAILS),
        (0.1, AS_FAR, 1.0, FAILS),
        (AS_FAR, AS_FAR, 1.0, FAILS),
    ],
    ids=["alike at equal training loss", "SGD lower there", "SGD higher there", "STORM trained as far", "both as far"],
)
def test_a_lower_test_loss_is_less_training(svrg: float, storm: float, sgd: float, word: str, store: Memory) -> None:
    training = {**dict.fromkeys(METHODS, falling), "SVRG": flat(svrg), "STORM": flat(storm)}
    store.benchmark({**dict.fromkeys(METHODS, ONE), "SGD": overfitted(sgd)}, training)
    assert store.word("lenet-train-loss") == word


# Side experiments


@pytest.mark.parametrize(
    ("coordinates", "tensors", "word"),
    [
        ((0.95, 0.99, 0.95), (0.0, 0.05, 0.0), HOLDS),
        ((0.95, 0.85, 0.95), (0.0, 0.05, 0.0), FAILS),
        ((0.95, 0.99, 0.95), (0.0, 0.15, 0.0), FAILS),
        ((0.95, 0.95, 0.85), (0.2, 0.0, 0.0), FAILS),
    ],
    ids=["every seed", "coordinates but one", "tensors but one", "neither"],
)
def test_the_share_of_clipped_entries_is_judged_in_every_seed(
    coordinates: tuple[float, ...], tensors: tuple[float, ...], word: str, store: Memory
) -> None:
    configs = lenet.granularities(SCALE)
    shares = {"coordinate": coordinates, "tensor": tensors, "global": (0.5, 0.5, 0.5)}
    assert store.word("lenet-granularity") == OPEN
    for config in configs:
        assert config.optimizer.name == "storm"
        store.add(config, clipped=shares[config.optimizer.granularity][config.seed - 1])
    assert store.word("lenet-granularity") == word


def reached(passes: int, low: float) -> Curve:
    """The test loss of a snapshot every epoch: 3 passes an epoch."""
    return lambda epoch: low if 3 * epoch <= passes else 2 - low


@pytest.mark.parametrize(
    ("every_epoch", "word"),
    [(reached(220, 0.5), HOLDS), (reached(220, 1.5), FAILS)],
    ids=["lower up to 220 passes", "higher up to 220 passes"],
)
def test_snapshot_periods_are_compared_at_220_passes(every_epoch: Curve, word: str, store: Memory) -> None:
    assert store.word("lenet-snapshot") == OPEN
    for config in lenet.snapshot_periods(SCALE):
        assert isinstance(config.optimizer, SVRGRule)
        base = every_epoch if config.optimizer.snapshot.every == 1 else ONE
        noise = 0.001 * config.seed * config.optimizer.snapshot.every
        store.add(config, test=lambda epoch, base=base, noise=noise: base(epoch) + noise)
    assert store.word("lenet-snapshot") == word


def test_a_seed_in_which_sgd_never_gets_there_leaves_the_claim_open(store: Memory) -> None:
    training = {**dict.fromkeys(METHODS, falling), **dict.fromkeys(REDUCED, flat(0.1))}
    store.benchmark(dict.fromkeys(METHODS, ONE), training)
    assert store.word("lenet-train-loss") != OPEN
    (config,) = (c for c in lenet.benchmark(lenet.scale("cpu", seeds=[2])) if c.method == "SVRG")
    store.add(config, training=flat(0.0))
    assert store.word("lenet-train-loss") == OPEN
    for config in (c for c in lenet.benchmark(SCALE) if c.method == "STORM"):
        store.add(config, training=falling)
    assert store.word("lenet-train-loss") == FAILS  # STORM has trained as far as SGD, whatever SVRG would show
