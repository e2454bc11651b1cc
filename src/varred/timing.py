"""Times of a step and of a snapshot pass, each configuration measured alone on an idle machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from varred.config import Config, Execution, SVRGRule
from varred.record import Run
from varred.runs import Store
from varred.train import Trainer, device_name, training_images

STEPS = 300
REPEATS = 5


def kind(config: Config) -> str:
    """Name what decides the time of a step: everything but seed, splits, epochs and the rule's numbers.

    Example:
        >>> a = Config(data={"name": "mnist"}, model={"name": "lenet"}, batch_size=32, epochs=2, seed=0,
        ...     optimizer={"name": "sgd", "learning_rate": 0.1})
        >>> kind(a) == kind(a.replace(seed=3, epochs=1))
        True
    """
    rule = config.optimizer
    name: str = rule.name
    if isinstance(rule, SVRGRule):
        name += f"({rule.base.name}, snapshot batch {rule.snapshot.batch_size or config.batch_size})"
    elif rule.name == "storm":
        name += f"({rule.granularity})"
    model = " ".join(str(value) for value in config.model.model_dump().values())
    images = f"{config.data.name}, batch {config.batch_size}, {config.data.augmentation}"
    return f"{name}; {model}; {images}, {config.precision}"


def estimate(configs: Sequence[Config], times: dict[str, dict[str, float]], jobs: int = 1) -> float | None:
    """Return the seconds that training the configs takes on the timed machine, evaluations left out.

    None if a kind of configuration among them has not been timed.
    """
    total = 0.0
    for config in configs:
        own = times.get(kind(config))
        if own is None:
            return None
        steps = -(-training_images(config) // config.batch_size)
        total += config.epochs * steps * own["step"]
        if isinstance(config.optimizer, SVRGRule):
            total += own["snapshot"] * sum(config.optimizer.snapshot.due(epoch) for epoch in range(config.epochs))
    return total / jobs


def measure(config: Config, execution: Execution | None = None) -> dict[str, float | str | int]:
    """Time the steps and the snapshot pass of a config; call it with nothing else running.

    Returns:
        Seconds per step and per snapshot pass (medians), device and threads.
    """
    trainer = Trainer(config, execution)
    trainer.model.train()
    trainer.snapshot(0)
    steps, snapshots = [], []
    batches = [batch for batch in trainer.batches(0) if batch.index < STEPS]
    for repeat in range(REPEATS + 1):
        before = trainer.state.seconds["steps"]
        with trainer.timed("steps"):
            for batch in batches:
                trainer.step(batch)
        if repeat:
            steps.append((trainer.state.seconds["steps"] - before) / len(batches))
    if isinstance(config.optimizer, SVRGRule):
        for _ in range(3):
            start = time.perf_counter()
            with trainer.timed("snapshots"):
                trainer.snapshot(0)
            snapshots.append(time.perf_counter() - start)
    return {
        "step": statistics.median(steps),
        "snapshot": statistics.median(snapshots) if snapshots else 0.0,
        "device": device_name(trainer.device),
        "threads": trainer.threads,
    }


def seconds(run: Run, times: dict[str, dict[str, float]]) -> list[float]:
    """Return the training time at each of the curves' points: steps and snapshot passes times their own times.

    Raises:
        KeyError: this kind of configuration has not been timed.
    """
    config = run.config
    if kind(config) not in times:
        raise KeyError(f"no time for {kind(config)!r}: measure it with python -m varred time, on an idle machine")
    own = times[kind(config)]
    per_epoch = -(-run.training_images // config.batch_size) * own["step"]
    rule = config.optimizer
    total, points = 0.0, [0.0]
    for epoch in range(len(run.curves.samples) - 1):
        if isinstance(rule, SVRGRule) and rule.snapshot.due(epoch):
            total += own["snapshot"]
        total += per_epoch
        points.append(total)
    return points


def read(path: Path) -> dict[str, dict[str, float]]:
    """Read the measured times; empty if there are none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def update(path: Path, configs: Sequence[Config], execution: Execution | None = None) -> None:
    """Measure one config of each kind and write the file."""
    times: dict[str, object] = dict(read(path))
    for config in {kind(config): config for config in configs}.values():
        times[kind(config)] = measure(config, execution)
    path.write_text(json.dumps(times, indent=1, sort_keys=True) + "\n")


def times_path(store: Store) -> Path:
    """Return the file of measured times that belongs to a store."""
    return store.folder / "times" / "cpu.json"


def bench_page(path: Path) -> str:
    """Return the table of ``make bench`` as the book shows it; a sentence that says so where there is none."""
    if not path.exists():
        return "Not measured yet: `make bench`.\n"
    report = json.loads(path.read_text())
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    lines = ["| ratio | median | range | bound | |", "|---|---|---|---|---|"]
    for row in report["rows"]:
        met = "met" if row["met"] else "**not met**"
        span = f"{row['least']:.3f} to {row['largest']:.3f}"
        lines.append(f"| {row['what']} | {row['median']:.3f} | {span} | {row['bound']} | {met} |")
    return "\n".join([*lines, "", f"Measured on: {machine}."]) + "\n"
