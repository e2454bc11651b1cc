"""Judges of the claims on SGD, Adam and SVRG on residual networks (chapters 13 and 15)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from varred.claims.verdict import (
    FAILS,
    HOLDS,
    OPEN,
    PART,
    UNSHOWN,
    Verdict,
    by_contrasts,
    count,
    mean,
    value_at,
    with_divergence,
    write,
)
from varred.contrasts import Contrast, Value, against, ended, holm, summarize
from varred.experiments.comparison import METHODS, NORMALIZATIONS, RESNET18, RESNET101, Comparison, Normalization
from varred.record import Run
from varred.runs import Store

OTHERS = ("SGD", "Adam")


def benchmark_runs(comparison: Comparison, store: Store, normalization: Normalization) -> dict[str, list[Run]]:
    """Return the recorded runs of the benchmark, by method, on the seeds that all methods have."""
    scale = comparison.scale("cpu")
    rates = comparison.rates(store, scale)
    runs: dict[str, list[Run]] = {method: [] for method in METHODS}
    if len(rates[normalization]) < len(METHODS):
        return runs
    for seed in scale.seeds:
        found = store.available(comparison.benchmark(scale, {normalization: rates[normalization]}, [seed]))
        if len(found) == len(METHODS):
            for run in found:
                runs[run.config.method].append(run)
    return runs


def final_contrasts(comparison: Comparison, store: Store, normalization: Normalization, value: Value) -> list[Contrast]:
    """Return SVRG against SGD and Adam; empty before the first complete seed."""
    runs = benchmark_runs(comparison, store, normalization)
    return against(runs, ("SVRG",), OTHERS, ended(value), _planned(comparison)) if runs["SVRG"] else []


def _accuracy(run: Run) -> float:
    return run.final.test.accuracy


def _loss(run: Run) -> float:
    return run.final.test.loss


def _planned(comparison: Comparison) -> int:
    return len(comparison.scale("cpu").seeds)


def _diverged(claim: str, comparison: Comparison, store: Store, settings: Sequence[Normalization]) -> Verdict | None:
    own = [r for r in judged(comparison)(store) if getattr(r.config.model, "normalization", None) in settings]
    return with_divergence(claim, own)


def _finals(
    claim: str, comparison: Comparison, normalization: Normalization, value: Value, sign: int
) -> Callable[[Store], Verdict]:
    """Return the judge of a claim on SVRG's final values against SGD's and Adam's in one setting."""

    def judge(store: Store) -> Verdict:
        contrasts = final_contrasts(comparison, store, normalization, value)
        verdict = by_contrasts(claim, contrasts, sign, _planned(comparison))
        return _diverged(claim, comparison, store, [normalization]) or verdict

    return judge


def batch(store: Store) -> Verdict:
    """Judge resnet18-batch: unlike elsewhere, one significant difference in SVRG's favour decides."""
    name = "resnet18-batch"
    verdict = _finals(name, RESNET18, "batch", _accuracy, -1)(store)
    ahead = count(final_contrasts(RESNET18, store, "batch", _accuracy), 1)
    return Verdict(name, FAILS, verdict.reason) if verdict.word != OPEN and ahead else verdict


def removal(store: Store) -> Verdict:
    """Judge resnet18-removal."""
    name = "resnet18-removal"
    verdict = by_contrasts(name, removal_contrasts(store), -1, _planned(RESNET18))
    return _diverged(name, RESNET18, store, NORMALIZATIONS) or verdict


def removal_contrasts(store: Store) -> list[Contrast]:
    """Return what batch normalization adds to SVRG's accuracy, minus what it adds to SGD's and to Adam's."""
    runs = {setting: benchmark_runs(RESNET18, store, setting) for setting in NORMALIZATIONS}

    def gain(method: str) -> dict[int, float]:
        with_, without = (
            {run.config.seed: _accuracy(run) for run in runs[setting][method]} for setting in NORMALIZATIONS
        )
        return {seed: with_[seed] - without[seed] for seed in with_.keys() & without.keys()}

    gains = {method: gain(method) for method in METHODS}
    if not gains["SVRG"]:
        return []
    seeds = sorted(gains["SVRG"])
    return holm(
        [summarize(f"gain SVRG - {other}", [gains["SVRG"][s] - gains[other][s] for s in seeds]) for other in OTHERS],
        planned=_planned(RESNET18),
    )


def equal_cost_contrasts(comparison: Comparison, store: Store) -> list[Contrast]:
    """Return SVRG against SGD and Adam in both settings, in test loss, at the cost at which SGD ends."""
    limit = comparison.scale("cpu").epochs
    found = [
        final_contrasts(comparison, store, setting, lambda run: value_at(run, run.passes, limit, "test_loss"))
        for setting in NORMALIZATIONS
    ]
    if not all(found):
        return []
    return holm([contrast for contrasts in found for contrast in contrasts], planned=_planned(comparison))


def equal_cost(store: Store) -> Verdict:
    """Judge resnet18-equal-cost."""
    name = "resnet18-equal-cost"
    verdict = by_contrasts(name, equal_cost_contrasts(RESNET18, store), -1, _planned(RESNET18))
    return _diverged(name, RESNET18, store, NORMALIZATIONS) or verdict


def consistently_worse(store: Store) -> Verdict:
    """Judge resnet101-batch."""
    name, comparison = "resnet101-batch", RESNET101
    verdict = _finals(name, comparison, "batch", _accuracy, -1)(store)
    if verdict.word == OPEN:
        return verdict
    runs, limit = benchmark_runs(comparison, store, "batch"), comparison.scale("cpu").epochs
    moments = [x for x in runs["SVRG"][0].passes[1:] if x <= limit + 1e-9]

    def level(method: str, cost: float) -> float:
        return mean([value_at(run, run.passes, cost, "test_loss") for run in runs[method]])

    above = sum(level("SVRG", x) > max(level(other, x) for other in OTHERS) for x in moments)
    conditions = (above == len(moments), verdict.word == HOLDS)
    word = HOLDS if all(conditions) else PART if any(conditions) else FAILS
    return Verdict(name, word, f"above both at {above} of {len(moments)} epochs' ends; accuracy: {verdict.reason}")


MARGIN = 0.1  # nats: what counts as similar


def similar(store: Store) -> Verdict:
    """Judge resnet101-none."""
    name = "resnet101-none"
    verdict = _finals(name, RESNET101, "none", _loss, 1)(store)
    if verdict.word == OPEN:
        return verdict
    contrasts = final_contrasts(RESNET101, store, "none", _loss)
    near, worse = sum(c.high < MARGIN for c in contrasts), count(contrasts, 1)
    word = HOLDS if near == len(contrasts) else PART if near else FAILS if worse else UNSHOWN
    reason = f"{near} of {len(contrasts)} upper ends below {MARGIN} nats, {worse} significantly worse"
    return Verdict(name, word, f"{reason}: {write(contrasts)}")


JUDGES: dict[str, Callable[[Store], Verdict]] = {
    "resnet18-batch": batch,
    "resnet18-none-loss": _finals("resnet18-none-loss", RESNET18, "none", _loss, -1),
    "resnet18-none-accuracy": _finals("resnet18-none-accuracy", RESNET18, "none", _accuracy, 1),
    "resnet18-removal": removal,
    "resnet18-equal-cost": equal_cost,
    "resnet101-batch": consistently_worse,
    "resnet101-none": similar,
}


def judged(comparison: Comparison) -> Callable[[Store], list[Run]]:
    """Return the function that lists the recorded runs on which a comparison's claims are judged."""

    def runs(store: Store) -> list[Run]:
        scale = comparison.scale("cpu")
        return store.available(comparison.benchmark(scale, comparison.rates(store, scale)))

    return runs
