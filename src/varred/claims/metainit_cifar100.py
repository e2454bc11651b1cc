"""Judges of the claims on MetaInit before SVRG (chapter 16)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from varred.claims.verdict import FAILS, HOLDS, OPEN, PART, UNSHOWN, Verdict, mean, so_far, waiting, write
from varred.contrasts import paired
from varred.experiments.comparison import RESNET101
from varred.experiments.metainit_cifar100 import RATES, found
from varred.record import Run
from varred.runs import Store

SCALE = RESNET101.scale("cpu")
GUESSING = math.log(100)
UNSTARTED = "non-finite gradient quotient"
LEARNED = 4.1  # nats: half a nat below guessing


def learns(runs: list[Run]) -> bool:
    """Return whether every run ends well below the loss of guessing."""
    return all(run.diverged is None and run.curves.train_loss[-1] < LEARNED for run in runs)


def _open(claim: str, runs: Mapping[tuple[str, float], Sequence[Run]], text: str) -> Verdict | None:
    """Return an open verdict where planned seeds are missing, with what the records say so far."""
    fewest = min(len(own) for own in runs.values())
    if not fewest:
        return waiting(claim)
    planned = len(SCALE.seeds)
    return so_far(claim, fewest, planned, text) if fewest < planned else None


def rates(store: Store) -> Verdict:
    """Judge metainit-rates."""
    name = "metainit-rates"
    runs = {key: own for key, own in found(store, SCALE).items() if key[0] != "He"}
    learned = {
        start: [rate for rate in RATES if runs[start, rate] and learns(runs[start, rate])]
        for start in ("MetaInit", "default")
    }
    meta, default = (max(own, default=0.0) for own in learned.values())
    text = "; ".join(f"learns from {s} at {', '.join(f'{r:g}' for r in own) or 'none'}" for s, own in learned.items())
    unshown = meta == default and meta in (0.0, RATES[-1])
    word = HOLDS if meta > default else UNSHOWN if unshown else FAILS
    return _open(name, runs, text) or Verdict(name, word, text)


def start(store: Store) -> Verdict:
    """Judge metainit-start."""
    name = "metainit-start"
    runs = {key: own for key, own in found(store, SCALE).items() if key[0] != "He"}
    finals = {
        rate: mean([run.curves.train_loss[-1] for run in runs["default", rate]])
        for rate in RATES
        if runs["default", rate] and not any(run.diverged for run in runs["default", rate])
    }
    if not all(runs["default", rate] for rate in RATES):
        return waiting(name)
    if not finals:
        return Verdict(name, OPEN, "the default start has a diverged seed at every learning rate")
    best, half = min(finals, key=lambda rate: finals[rate]), SCALE.side_epochs // 2

    def early(run: Run) -> float:
        gone = run.diverged is not None and run.diverged.epoch < half
        return GUESSING if gone else run.curves.train_loss[half]

    seeds = [{run.config.seed for run in runs[key, best]} for key in ("MetaInit", "default")]
    if not seeds[0] & seeds[1]:
        return waiting(name)
    title = f"MetaInit - default at {best:g}, after {half} epochs"
    contrast = paired(title, runs["MetaInit", best], runs["default", best], early)
    word = HOLDS if contrast.high < 0 else FAILS if contrast.low > 0 else UNSHOWN
    return _open(name, runs, write([contrast])) or Verdict(name, word, write([contrast]))


def limit(store: Store) -> Verdict:
    """Judge metainit-limit."""
    name = "metainit-limit"
    runs = {key: own for key, own in found(store, SCALE).items() if key[0] != "He" and key[1] == RATES[-1]}
    ends = [run.diverged.reason for own in runs.values() for run in own if run.diverged]
    if UNSTARTED in ends:  # MetaInit was given up: SVRG made no step
        return Verdict(name, OPEN, f"{ends.count(UNSTARTED)} of its runs ended before SVRG's first step")
    counts = {key[0]: sum(run.diverged is not None for run in own) for key, own in runs.items()}
    all_ = [counts[key[0]] == len(own) for key, own in runs.items()]
    text = ", ".join(f"{key[0]}: {counts[key[0]]} of {len(own)} diverged" for key, own in runs.items())
    return _open(name, runs, text) or Verdict(name, HOLDS if all(all_) else PART if any(all_) else FAILS, text)


JUDGES: dict[str, Callable[[Store], Verdict]] = {
    "metainit-rates": rates,
    "metainit-start": start,
    "metainit-limit": limit,
}


def judged(store: Store) -> list[Run]:
    """Return the recorded runs on which the claims are judged."""
    return [run for own in found(store, SCALE).values() for run in own]
