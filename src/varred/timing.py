"""Times of a step and of a snapshot pass, each configuration measured alone on an idle machine."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from varred.config import Config, Execution, Rule, SVRGRule
from varred.files import write_atomically
from varred.optim import SVRG, Batch
from varred.record import Run
from varred.runs import RecordError, Store
from varred.train import Trainer, device_name, processor_name, training_images

STEPS = 50
ROUNDS = 15
ROUND_SECONDS = 0.5
SECONDS_EACH = 20.0  # a config that has taken longer gets no third round


def kind(config: Config) -> str:
    """Name what decides the time of a step: everything but seed, splits, epochs and the rule's numbers.

    Example:
        >>> a = Config(data={"name": "mnist"}, model={"name": "lenet"}, batch_size=32,
        ...     optimizer={"name": "sgd", "learning_rate": 0.1}, epochs=2, seed=0)
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


def estimate(configs: Sequence[Config], times: Mapping[str, Mapping[str, float]], jobs: int = 1) -> float | None:
    """Return the seconds that the configs' steps and snapshot passes take on the timed machine.

    Evaluations, measurements of noise and MetaInit come on top.

    None if a kind of configuration among them has not been timed.
    """
    total = 0.0
    for config in configs:
        own = times.get(kind(config))
        if own is None:
            return None
        images = training_images(config)
        steps = -(-images // config.batch_size)
        total += _cumulative(config, own, images, [steps] * config.epochs)[-1]
    return total / jobs


def _cumulative(config: Config, own: Mapping[str, float], images: int, steps: Sequence[int]) -> list[float]:
    """Return the training time at the start and after each epoch: its steps and, if one is due, a snapshot pass."""
    total, points = 0.0, [0.0]
    for epoch, count in enumerate(steps):
        if isinstance(config.optimizer, SVRGRule) and config.optimizer.snapshot.due(epoch):
            total += own["snapshot"] * images
        total += count * own["step"]
        points.append(total)
    return points


def measure(configs: Sequence[Config], execution: Execution | None = None) -> list[dict[str, float | str | int]]:
    """Time the steps and the snapshot passes of several configs in turns; call it with nothing else running.

    The least over rounds counts: whatever else a machine does can only add to it, and turns spread its moods evenly. In
    a round, a config makes steps for about half a second, 50 at most, and a snapshot pass over half as many batches.

    Returns:
        For each config: seconds per step, seconds per image of a snapshot pass, device, threads, processor and torch.
    """
    trainers = [Trainer(_small(config), execution) for config in configs]
    batches, passes = [], []
    for trainer in trainers:
        trainer.model.train()
        some = list(itertools.islice(trainer.batches(0), STEPS))
        whole: list[Batch] = []
        if isinstance(trainer.optimizer, SVRG):
            size = _snapshot_batch(trainer.config.optimizer)
            whole = list(itertools.islice(trainer.batches(0, size), STEPS))
            trainer.optimizer.snapshot(whole[:1], trainer.closure)
        _timed(trainer, "steps", lambda trainer=trainer, some=some: trainer.step(some[0]))  # type: ignore[misc]
        one = _timed(trainer, "steps", lambda trainer=trainer, some=some: trainer.step(some[0]))  # type: ignore[misc]
        kept = max(1, min(STEPS, int(ROUND_SECONDS / one)))
        batches.append(some[:kept])
        passes.append(whole[: max(1, kept // 2)])
    steps: list[float] = [float("inf")] * len(configs)
    snapshots: list[float] = [float("inf")] * len(configs)
    spent = [0.0] * len(configs)
    for round_ in range(ROUNDS):
        for place, trainer in enumerate(trainers):
            if round_ >= 2 and spent[place] > SECONDS_EACH:
                continue
            began = time.perf_counter()

            def step(trainer: Trainer = trainer, place: int = place) -> None:
                for batch in batches[place]:
                    trainer.step(batch)

            steps[place] = min(steps[place], _timed(trainer, "steps", step) / len(batches[place]))
            if isinstance(trainer.optimizer, SVRG):
                optimizer, some = trainer.optimizer, passes[place]

                def snapshot(optimizer: SVRG = optimizer, some: list[Batch] = some, own: Trainer = trainer) -> None:
                    optimizer.snapshot(some, own.closure)

                images = sum(batch.size for batch in some)
                snapshots[place] = min(snapshots[place], _timed(trainer, "snapshots", snapshot) / images)
            spent[place] += time.perf_counter() - began
    return [
        {
            "step": own,
            "snapshot": whole if whole < float("inf") else 0.0,
            "device": device_name(trainer.device),
            "threads": trainer.threads,
            "processor": processor_name(),
            "torch": str(torch.__version__),
        }
        for own, whole, trainer in zip(steps, snapshots, trainers, strict=True)
    ]


def _small(config: Config) -> Config:
    """Return the config on as many images as are timed, so that many kinds fit into memory at once."""
    images = min(training_images(config), STEPS * config.batch_size)
    return config.replace(data=config.data.model_copy(update={"subset": images}))


def _snapshot_batch(rule: Rule) -> int | None:
    return rule.snapshot.batch_size if isinstance(rule, SVRGRule) else None


def _timed(trainer: Trainer, name: str, work: Callable[[], object]) -> float:
    start = trainer.state.seconds[name]
    with trainer.timed(name):
        work()
    return trainer.state.seconds[name] - start


def seconds(run: Run, times: dict[str, dict[str, float]]) -> list[float]:
    """Return the training time at each of the curves' points: steps and snapshot passes times their own times.

    Of an epoch in which the run was given up, the steps that were made count.

    Raises:
        KeyError: this kind of configuration has not been timed.
    """
    config = run.config
    if kind(config) not in times:
        raise KeyError(f"no time for {kind(config)!r}: measure it with python -m varred time, on an idle machine")
    steps = [_steps(run, epoch) for epoch in range(len(run.curves.samples) - 1)]
    return _cumulative(config, times[kind(config)], run.training_images, steps)


def _steps(run: Run, epoch: int) -> int:
    """Return the number of steps made in an epoch, from its count of gradient computations."""
    rule, samples = run.config.optimizer, run.curves.samples
    count = samples[epoch + 1] - samples[epoch]
    if isinstance(rule, SVRGRule):
        count = (count - run.training_images * rule.snapshot.due(epoch)) // 2
    elif rule.name == "storm":
        # The first step evaluates its batch once.
        count = (count + (min(run.config.batch_size, run.training_images) if epoch == 0 else 0)) // 2
    return -(-count // run.config.batch_size)


def read(path: Path) -> dict[str, dict[str, float]]:
    """Read the measured times; empty if there are none yet.

    Raises:
        RecordError: the file is damaged.

    """
    if not path.exists():
        return {}
    try:
        times: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
        for name, own in times.items():
            if not all(isinstance(own.get(key), int | float) for key in ("step", "snapshot")):
                raise TypeError(f"{name}: step and snapshot must be numbers")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a file of measured times ({error}); restore it or measure again") from error
    return times


def update(path: Path, configs: Sequence[Config], execution: Execution | None = None) -> None:
    """Measure one config of each kind and write the file."""
    kinds = {kind(config): config for config in configs}
    read(path)  # a damaged file is named before the minutes of measuring
    found = measure(list(kinds.values()), execution)
    times: dict[str, object] = {**read(path), **dict(zip(kinds, found, strict=True))}
    write_atomically(path, (json.dumps(times, indent=1, sort_keys=True) + "\n").encode())


def times_path(store: Store) -> Path:
    """Return the file of measured times that belongs to a store."""
    return store.folder / "times" / "cpu.json"


def bench_page(path: Path) -> str:
    """Return the table of ``make bench`` as the book shows it; a sentence that says so where there is none.

    What rows have in common of the machines that they were measured on is said below, the rest beside each row.

    Raises:
        RecordError: the file is damaged.

    """
    if not path.exists():
        return "Not measured yet: `make bench`.\n"
    try:
        return _bench_table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"{path}: not the table of make bench ({error}); restore it or measure again") from error


def _bench_table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "Not measured yet: `make bench`.\n"
    names = dict.fromkeys(name for row in rows for name in row["machine"])
    own = [name for name in names if len({row["machine"].get(name) for row in rows}) > 1]
    shared = [f"{name} {rows[0]['machine'][name]}" for name in names if name not in own]
    heads = ["what", "least / least", "range over rounds", "bound", "", *own]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        span = f"{row['least']:.3f} to {row['largest']:.3f}"
        met = "met" if row["met"] else "**not met**"
        cells = [
            row["what"],
            f"{row['ratio']:.3f}",
            span,
            row["bound"],
            met,
            *(str(row["machine"].get(x, "not noted")) for x in own),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", f"All measured on: {', '.join(shared)}."] if shared else [])]) + "\n"
