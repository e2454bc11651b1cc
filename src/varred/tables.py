"""Tables from records: the source's numbers beside ours, paired differences, verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from varred.claims import Verdict
from varred.config import Config
from varred.contrasts import Contrast, Value
from varred.experiments import progress
from varred.experiments.comparison import Comparison, Normalization, Scale
from varred.record import Run
from varred.runs import Store
from varred.sweep import Phase
from varred.timing import estimate

COUNTS = ("its epoch", "passes")  # columns without decimals


def recorded(phases: Sequence[Phase], store: Store) -> pd.DataFrame:
    """Return how many of each phase's runs have a record, and how many are missing."""
    rows = [
        {"runs": name, "planned": planned, "recorded": there, "missing": planned - there}
        for name, (planned, there) in progress(phases, store).items()
    ]
    return pd.DataFrame(rows).set_index("runs")


def programs(phases: Sequence[Phase], store: Store) -> str:
    """Return in a line what made the records of a queue: torch, device, threads, and the wall time of all."""
    runs = {run.config.identity: run for phase in phases for run in store.available(phase.configs)}.values()
    if not runs:
        return "no run is recorded yet"
    counts = Counter((p.torch, p.device, p.threads) for p in (run.provenance for run in runs))
    made = "; ".join(
        f"{count} with torch {torch} on {device}, {threads} thread{'s' * (threads > 1)}"
        for (torch, device, threads), count in sorted(counts.items())
    )
    hours = sum(sum(run.seconds.model_dump().values()) for run in runs) / 3600
    return f"records: {made}; {hours:.1f} hours in all, evaluation included"


def costs(queues: Mapping[str, Iterable[Phase]], times: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return what each preset's phases would take on one core of the timed machine.

    Args:
        queues: of the presets; a phase that depends on records counts as far as it is known ahead.
        times: measured times of a step and of a snapshot pass.
    """
    rows = []
    for preset, phases in queues.items():
        merged: dict[str, list[Config]] = {}
        for phase in phases:
            merged.setdefault(phase.name, []).extend(phase.configs)
        for name, configs in merged.items():
            seconds = estimate(list({c.identity: c for c in configs}.values()), times) if configs else None
            rows.append(
                {
                    "preset": preset,
                    "runs": name,
                    "number": len({c.identity for c in configs}),
                    "single-core hours": "not timed" if seconds is None else f"{seconds / 3600:.3g}",
                }
            )
    return pd.DataFrame([row for row in rows if row["number"]]).set_index(["preset", "runs"])


def summary(values: Sequence[float], digits: int = 4) -> str:
    """Write mean and sample standard deviation, as in ``0.9884 ± 0.0005``; a single value stands alone.

    Example:
        >>> summary([0.5, 0.7], 2)
        '0.60 ± 0.14'
    """
    if not values:
        return "not run"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _ended(values: Sequence[float], own: Sequence[Run], digits: int = 4) -> str:
    return "diverged" if own and not values else summary(values, digits)


def accuracies(runs: Mapping[str, Sequence[Run]], source: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """Set final test and training accuracies beside the source's: mean and sample deviation of runs that ended."""
    rows = []
    for method in [*source, *(name for name in runs if name not in source)]:
        own = runs.get(method, [])
        kept = [run for run in own if run.diverged is None]
        test, train = (f"{value:g}" for value in source[method]) if method in source else ("", "")
        rows.append(
            {
                "method": method,
                "test, source": test,
                "test, ours": _ended([run.final.test.accuracy for run in kept], own),
                "train, source": train,
                "train, ours": _ended([run.final.train.accuracy for run in kept], own),
                "seeds": len(own),
                "diverged": sum(run.diverged is not None for run in own),
            }
        )
    return pd.DataFrame(rows).set_index("method")


def grid(comparison: Comparison, store: Store, scale: Scale, normalization: Normalization) -> pd.DataFrame:
    """Set the learning rates tried, the source's choice and ours side by side, for one setting of normalization."""
    rows = []
    for method in scale.methods:
        tried, running = [], {}
        losses = comparison.losses(store, scale, normalization, method)
        for rate, loss in losses.items():
            (run,) = store.available([comparison.grid_run(scale, normalization, method, rate)])
            if np.isfinite(loss):
                running[rate] = run.curves.running_loss[-1]
            value = f"{loss:.3f} ({running[rate]:.3f})" if np.isfinite(loss) else "diverged"
            tried.append(f"{rate:g}: {value}")
        chosen = comparison.selected(store, scale, normalization, method)
        ours = "not decided yet" if chosen is None else comparison.written(method, chosen)
        known = {rate: loss for rate, loss in losses.items() if np.isfinite(loss)}
        if chosen is not None and (best := min(known, key=lambda rate: known[rate])) != chosen:
            ours += f"; {best:g}, tried after the search, is better"
        rows.append(
            {
                "method": method,
                "the source's grid": ", ".join(f"{rate:g}" for rate in comparison.grids[method].values),
                "learning rate: validation loss (running loss)": "; ".join(tried) or "not run",
                "source": f"{comparison.source_rates[normalization][method]:g}",
                "ours": ours,
                "by running loss": f"{min(running, key=lambda rate: running[rate]):g}" if running else "",
            }
        )
    return table(rows, "method")


def finals(
    runs: Mapping[str, Sequence[Run]], columns: Mapping[str, Value], digits: int = 4, index: str = "method"
) -> pd.DataFrame:
    """Return one row a method, one column a value: mean and sample deviation over the runs that have not diverged."""
    rows = [
        {index: method}
        | {
            name: _ended([value(run) for run in own if run.diverged is None], own, 0 if name in COUNTS else digits)
            for name, value in columns.items()
        }
        | {"seeds": len(own), "diverged": sum(run.diverged is not None for run in own)}
        for method, own in runs.items()
    ]
    return table(rows, index)


def settings(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Stack frames of one kind, each under the name of its setting.

    Example:
        >>> frame = pd.DataFrame({"x": [1]}, index=pd.Index(["SGD"], name="method"))
        >>> settings({"with": frame, "without": frame}).index.tolist()
        [('with', 'SGD'), ('without', 'SGD')]
    """
    return pd.concat({name: frame.fillna("") for name, frame in frames.items()}, names=["setting"]).fillna("")


def table(rows: Sequence[Mapping[str, object]], index: str) -> pd.DataFrame:
    """Return rows as a frame under an index; a frame that says so where there are none yet.

    Example:
        >>> table([], "method").iloc[0, 0]
        'not run yet'
    """
    return pd.DataFrame(rows).set_index(index) if rows else pd.DataFrame({index: ["not run yet"]}, index=[""])


def differences(contrasts: Sequence[Contrast], digits: int = 4) -> pd.DataFrame:
    """Return paired differences with 95 % Student intervals and the mark of Holm's correction.

    A mean that is not finite says that a run diverged: the values given for such runs must not be finite either.
    """
    if not contrasts:
        reason = "not given: runs of preset cpu are missing, or this is another preset"
        return pd.DataFrame({"difference": [reason]}, index=[""])
    rows = [
        {
            "difference": c.name,
            "mean": f"{c.mean:+.{digits}f}" if np.isfinite(c.mean) else "a run diverged",
            "95 % interval": f"[{c.low:+.{digits}f}, {c.high:+.{digits}f}]"
            if np.isfinite(c.low)
            else "one seed" * (c.seeds == 1),
            "p": f"{c.p:.2g}" if np.isfinite(c.low) else "",
            "significant (Holm)": "not decided yet" if c.significant is None else "yes" if c.significant else "no",
            "seeds": c.seeds,
        }
        for c in contrasts
    ]
    return pd.DataFrame(rows).set_index("difference")


def verdicts(judged: Sequence[Verdict]) -> pd.DataFrame:
    """Return claims, verdicts and reasons."""
    rows = [{"claim": v.claim, "verdict": v.word, "reason": v.reason} for v in judged]
    return pd.DataFrame(rows).set_index("claim")
