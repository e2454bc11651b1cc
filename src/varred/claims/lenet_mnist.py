"""Judges of the claims on LeNet and MNIST (chapter 12)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from varred import timing
from varred.claims.verdict import (
    FAILS,
    HOLDS,
    OPEN,
    PART,
    UNSHOWN,
    Verdict,
    by_contrasts,
    mean,
    so_far,
    value_at,
    waiting,
    with_divergence,
    write,
)
from varred.contrasts import Contrast, against, ended, paired, summarize
from varred.experiments import lenet_mnist as lenet
from varred.record import Run
from varred.runs import Store

SCALE = lenet.scale("cpu")
REDUCED, OTHERS = ("SVRG", "STORM"), ("SGD", "Adam", "AdaGrad")


def benchmark_runs(store: Store) -> dict[str, list[Run]]:
    """Return the recorded runs of the benchmark with table 4.2's values, by method, on seeds that all methods have."""
    runs: dict[str, list[Run]] = {method: [] for method in lenet.METHODS}
    for seed in SCALE.seeds:
        found = store.available(lenet.benchmark(lenet.scale("cpu", seeds=[seed])))
        if len(found) == len(lenet.METHODS):
            for run in found:
                runs[run.config.method].append(run)
    return runs


def _on_benchmark(name: str, judge: Callable[[Store], Verdict]) -> Callable[[Store], Verdict]:
    """Return a judge that leaves the claim open where a run of the benchmark diverged."""

    def unless_diverged(store: Store) -> Verdict:
        runs = [run for own in benchmark_runs(store).values() for run in own]
        return with_divergence(name, runs) or judge(store)

    return unless_diverged


def _seeds(runs: dict[str, list[Run]]) -> int:
    return len(runs[lenet.METHODS[0]])


def early(store: Store) -> Verdict:
    """Judge lenet-early."""
    runs, name = benchmark_runs(store), "lenet-early"
    if not _seeds(runs):
        return waiting(name)
    at = {method: mean([value_at(run, run.passes, 20, "test_loss") for run in runs[method]]) for method in runs}
    hits = sum(at[other] < at[reduced] for other in OTHERS for reduced in REDUCED)
    losses = ", ".join(f"{m} {at[m]:.4f}" for m in lenet.METHODS)
    reason = f"{hits} of 6 comparisons; test loss at 20 passes: {losses}"
    if _seeds(runs) < len(SCALE.seeds):
        return so_far(name, _seeds(runs), len(SCALE.seeds), reason)
    return Verdict(name, HOLDS if hits == 6 else PART if hits else FAILS, f"{reason} ({_seeds(runs)} seeds)")


def final_contrasts(store: Store, value: Callable[[Run], float]) -> list[Contrast]:
    """Return the six contrasts of the benchmark; empty before the first complete seed."""
    runs = benchmark_runs(store)
    return against(runs, REDUCED, OTHERS, ended(value), len(SCALE.seeds)) if _seeds(runs) else []


def test_loss(store: Store) -> Verdict:
    """Judge lenet-test-loss."""
    name, contrasts = "lenet-test-loss", final_contrasts(store, lambda run: run.final.test.loss)
    return by_contrasts(name, contrasts, -1, len(SCALE.seeds), none=FAILS)


def accuracy(store: Store) -> Verdict:
    """Judge lenet-accuracy."""
    name, contrasts = "lenet-accuracy", final_contrasts(store, lambda run: run.final.test.accuracy)
    return by_contrasts(name, contrasts, 1, len(SCALE.seeds), none=FAILS)


def time_contrasts(store: Store) -> list[Contrast]:
    """Return the six contrasts at the seconds that 100 epochs of SGD take; empty without times or runs."""
    runs, times = benchmark_runs(store), timing.read(timing.times_path(store))
    kinds = {timing.kind(run.config) for group in runs.values() for run in group}
    if not _seeds(runs) or not kinds <= times.keys():
        return []
    limit = timing.seconds(runs["SGD"][0], times)[-1]

    def by_then(run: Run) -> float:
        return value_at(run, timing.seconds(run, times), limit, "test_loss")

    return against(runs, REDUCED, OTHERS, ended(by_then), len(SCALE.seeds))


def time(store: Store) -> Verdict:
    """Judge lenet-time."""
    name = "lenet-time"
    return by_contrasts(name, time_contrasts(store), -1, len(SCALE.seeds), none=FAILS)


def train_loss(store: Store) -> Verdict:
    """Judge lenet-train-loss."""
    runs, name = benchmark_runs(store), "lenet-train-loss"
    if not _seeds(runs):
        return waiting(name)
    sgd, denied, bounded, parts = runs["SGD"], [], [], []
    for method in REDUCED:
        factor = mean([r.curves.train_loss[-1] for r in runs[method]]) / mean([r.curves.train_loss[-1] for r in sgd])
        equal = summarize(f"SGD at equal training loss - {method}", equal_training_loss(sgd, runs[method]))
        denied.append(factor < 2 or equal.low > 0)
        bounded.append(equal.bounded)  # unless SGD never reaches the other's last loss
        parts.append(f"{method}: training loss {factor:.3g} times SGD's; test loss, {write([equal])}")
    text = "; ".join(parts) + "; an interval that contains 0 does not show equality"
    if _seeds(runs) < len(SCALE.seeds):
        return so_far(name, _seeds(runs), len(SCALE.seeds), text)
    word = FAILS if any(denied) else HOLDS if all(bounded) else OPEN
    return Verdict(name, word, f"{text} ({_seeds(runs)} seeds)")


def reached(run: Run, level: float) -> int | None:
    """Return the first epoch at which a run's training loss is at or below a level; None if there is none."""
    return next((epoch for epoch, loss in enumerate(run.curves.train_loss) if loss <= level), None)


def equal_training_loss(fast: Sequence[Run], slow: Sequence[Run]) -> list[float]:
    """Return, per seed, how much the test loss of ``fast`` exceeds ``slow``'s final one at equal training loss.

    Equal: at the first epoch at which ``fast``'s training loss is at or below ``slow``'s final one; infinite where
    there is none.
    """
    differences = []
    for one in fast:
        other = next(run for run in slow if run.config.seed == one.config.seed)
        epoch = reached(one, other.curves.train_loss[-1])
        gap = math.inf if epoch is None else one.curves.test_loss[epoch] - other.curves.test_loss[-1]
        differences.append(gap)
    return differences


def _measures(run: Run, level: float) -> dict[str, float]:
    losses, stop = run.curves.test_loss, reached(run, level)
    return {
        "test loss at the end": run.final.test.loss,
        "test loss at equal training loss": math.inf if stop is None else losses[stop],
        "least test loss": min(losses),
        "test accuracy at the end": run.final.test.accuracy,
        "change of the test loss between epochs": mean([abs(b - a) for a, b in pairwise(losses[len(losses) // 2 :])]),
        "training loss at the end": run.final.train.loss,
    }


def same_step(store: Store) -> dict[str, list[tuple[float, float]]]:
    """Return the values of SVRG and of SGD at SVRG's own step, by measure and seed; empty before a pair has ended.

    *At equal training loss* each of a pair is stopped at the first epoch at which its training loss is at or below the
    larger of their two last ones. The *change between epochs* is the mean of its absolute values over the second half.
    No claim was declared for these.
    """
    rule = lenet.SELECTED["SVRG"]
    plain, reduced = (
        {run.config.seed: run for run in store.available(lenet.benchmark(SCALE, rules)) if not run.diverged}
        for rules in ({"SGD": lenet.rule("SGD", *lenet.tuned(rule))}, {"SVRG": rule})
    )
    found: dict[str, list[tuple[float, float]]] = {}
    for a, b in ((reduced[seed], plain[seed]) for seed in sorted(reduced.keys() & plain.keys())):
        level = max(a.curves.train_loss[-1], b.curves.train_loss[-1])
        ours, theirs = _measures(a, level), _measures(b, level)
        for measure, value in ours.items():
            found.setdefault(measure, []).append((value, theirs[measure]))
    return found


def best_epochs(store: Store) -> dict[str, int]:
    """Return each method's best epoch in the 50-epoch cross-validation of table 4.2's values, where complete."""
    epochs = SCALE.final_epochs or 0
    result = {}
    for method in lenet.METHODS:
        values = lenet.tuned(lenet.SELECTED[method])
        runs = store.available(lenet.folds(SCALE, method, values, epochs))
        if len(runs) == SCALE.folds and not any(run.diverged for run in runs):
            means = [mean(list(losses)) for losses in zip(*(r.curves.validation_loss for r in runs), strict=True)]
            result[method] = min(range(1, len(means)), key=lambda epoch: means[epoch])
    return result


def best_epoch_contrasts(store: Store) -> list[Contrast]:
    """Return the six contrasts with each method at its best epoch; empty before all five are known."""
    best = best_epochs(store)
    if len(best) < len(lenet.METHODS):
        return []
    return final_contrasts(store, lambda run: run.curves.test_loss[best[run.config.method]])


def best_epoch(store: Store) -> Verdict:
    """Judge lenet-best-epoch."""
    return by_contrasts("lenet-best-epoch", best_epoch_contrasts(store), -1, len(SCALE.seeds), none=FAILS)


def selection(store: Store) -> Verdict:
    """Judge lenet-selection."""
    ours, name = lenet.selected(store, SCALE, widened=False), "lenet-selection"
    if len(ours) < len(lenet.METHODS):
        return waiting(name)
    same = [m for m in lenet.METHODS if lenet.rule(m, *ours[m]) == lenet.SELECTED[m]]
    word = HOLDS if len(same) == len(lenet.METHODS) else PART if same else FAILS
    return Verdict(name, word, f"the same values for {', '.join(same) or 'no method'}")


def granularity(store: Store) -> Verdict:
    """Judge lenet-granularity."""
    name = "lenet-granularity"
    shares: dict[str, list[float]] = {"coordinate": [], "tensor": []}
    planned = [
        c for c in lenet.granularities(SCALE) if c.optimizer.name == "storm" and c.optimizer.granularity in shares
    ]
    runs = store.available(planned)
    diverged = with_divergence(name, runs)
    if diverged or len(runs) < len(planned):
        return diverged or waiting(name)
    for run in runs:
        if run.config.optimizer.name == "storm" and run.path:
            shares[run.config.optimizer.granularity].append(run.path.clipped[-1])
    fine, coarse = min(shares["coordinate"]) > 0.9, max(shares["tensor"]) < 0.1
    reason = (
        f"share with a = 1 at the end: coordinates {min(shares['coordinate']):.4f} to {max(shares['coordinate']):.4f} "
        f"({len(shares['coordinate'])} seeds), tensors {min(shares['tensor']):.2f} to {max(shares['tensor']):.2f} "
        f"({len(shares['tensor'])} seeds)"
    )
    return Verdict(name, HOLDS if fine and coarse else FAILS, reason)


def snapshot(store: Store) -> Verdict:
    """Judge lenet-snapshot."""
    name = "lenet-snapshot"
    planned = lenet.snapshot_periods(SCALE)
    runs = store.available(planned)
    if len(runs) < len(planned):
        return waiting(name)
    groups: dict[int, list[Run]] = {1: [], 5: []}
    for run in runs:
        if run.config.optimizer.name == "svrg":
            groups[run.config.optimizer.snapshot.every].append(run)
    limit = groups[5][0].passes[-1]
    contrast = paired(
        "every epoch - every 5", groups[1], groups[5], lambda run: value_at(run, run.passes, limit, "test_loss")
    )
    word = HOLDS if contrast.high < 0 else FAILS if contrast.low > 0 else UNSHOWN
    return with_divergence(name, runs) or Verdict(name, word, f"{write([contrast])} ({contrast.seeds} seeds)")


JUDGES: dict[str, Callable[[Store], Verdict]] = {
    "lenet-early": _on_benchmark("lenet-early", early),
    "lenet-test-loss": _on_benchmark("lenet-test-loss", test_loss),
    "lenet-accuracy": _on_benchmark("lenet-accuracy", accuracy),
    "lenet-time": _on_benchmark("lenet-time", time),
    "lenet-train-loss": _on_benchmark("lenet-train-loss", train_loss),
    "lenet-best-epoch": _on_benchmark("lenet-best-epoch", best_epoch),
    "lenet-selection": selection,
    "lenet-granularity": granularity,
    "lenet-snapshot": snapshot,
}


def judged(store: Store) -> list[Run]:
    """Return the recorded runs on which the claims are judged: all on LeNet and MNIST."""
    return [run for run in store.all() if run.config.model.name == "lenet"]
