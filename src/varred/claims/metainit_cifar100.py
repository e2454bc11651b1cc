"""Judges of the claims on MetaInit before SVRG (chapter 16)."""

from __future__ import annotations

from collections.abc import Callable

from varred.claims.verdict import FAILS, HOLDS, OPEN, PART, Verdict, mean, waiting, write
from varred.contrasts import paired
from varred.experiments.comparison import RESNET101
from varred.experiments.metainit_cifar100 import RATES, found
from varred.record import Run
from varred.runs import Store

SCALE = RESNET101.scale("cpu")
LEARNED = 4.1  # nats: half a nat below log 100, the loss of guessing


def learns(runs: list[Run]) -> bool:
    """Return whether every run ends well below the loss of guessing."""
    return all(run.diverged is None and run.curves.train_loss[-1] < LEARNED for run in runs)


def surviving(store: Store, start: str) -> tuple[float, ...] | None:
    """Return the learning rates at which every recorded seed learns; None where a rate has no record."""
    runs = found(store, SCALE)
    if any(not runs[start, rate] for rate in RATES):
        return None
    return tuple(rate for rate in RATES if learns(runs[start, rate]))


def rates(store: Store) -> Verdict:
    """Judge metainit-rates."""
    name = "metainit-rates"
    default, meta = surviving(store, "default"), surviving(store, "MetaInit")
    if default is None or meta is None:
        return waiting(name)
    word = HOLDS if max(meta, default=0.0) > max(default, default=0.0) else FAILS
    written = [", ".join(f"{rate:g}" for rate in own) or "none" for own in (meta, default)]
    seeds = min(len(runs) for (start, _), runs in found(store, SCALE).items() if start != "He")
    return Verdict(
        name, word, f"learns from MetaInit at {written[0]}; from the default at {written[1]} ({seeds} seeds)"
    )


def start(store: Store) -> Verdict:
    """Judge metainit-start."""
    name, runs = "metainit-start", found(store, SCALE)
    finals = {
        rate: mean([run.curves.train_loss[-1] for run in runs["default", rate]])
        for rate in RATES
        if runs["default", rate] and not any(run.diverged for run in runs["default", rate])
    }
    if any(not runs["default", rate] for rate in RATES) or not finals:
        return waiting(name)
    best = min(finals, key=lambda rate: finals[rate])
    half = SCALE.side_epochs // 2
    meta, default = (
        [run for run in runs[key, best] if len(run.curves.train_loss) > half] for key in ("MetaInit", "default")
    )
    if not {run.config.seed for run in meta} & {run.config.seed for run in default}:
        return waiting(name)
    title = f"MetaInit - default at {best:g}, after {half} epochs"
    contrast = paired(title, meta, default, lambda run: run.curves.train_loss[half])
    if not contrast.bounded:
        return Verdict(
            name, OPEN, f"{contrast.seeds} of {len(SCALE.seeds)} seeds: no interval; so far {write([contrast])}"
        )
    return Verdict(name, HOLDS if contrast.high < 0 else FAILS, f"{write([contrast])} ({contrast.seeds} seeds)")


def limit(store: Store) -> Verdict:
    """Judge metainit-limit."""
    name, runs = "metainit-limit", found(store, SCALE)
    groups = {key: runs[key, RATES[-1]] for key in ("default", "MetaInit")}
    if not all(groups.values()):
        return waiting(name)
    counts = {key: sum(run.diverged is not None for run in own) for key, own in groups.items()}
    all_ = [counts[key] == len(own) for key, own in groups.items()]
    reason = ", ".join(f"{key}: {counts[key]} of {len(own)} diverged" for key, own in groups.items())
    return Verdict(name, HOLDS if all(all_) else PART if any(all_) else FAILS, reason)


JUDGES: dict[str, Callable[[Store], Verdict]] = {
    "metainit-rates": rates,
    "metainit-start": start,
    "metainit-limit": limit,
}
