"""Run records on disk: read, written whole or not at all, found by the config's identity, audited."""

from __future__ import annotations

import errno
import itertools
import math
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import pandas as pd
import torch
from pydantic import ValidationError

from varred import data
from varred.config import Config, Execution, Observation, Preset, explain
from varred.files import write_atomically
from varred.record import Run
from varred.train import FINGERPRINT, Trainer

TOLERANCE, ACROSS = 1e-3, 1e-2  # of a retrained loss: on the same kind of device, across kinds
_AGAIN = "restore it with git, or remove it and train again"
PERTURBATION, TWINS, MARGIN = 1e-6, 3, 10.0  # of the twins' weights, their number; on what they show


def repository() -> Path | None:
    """Return the root of the repository this package is imported from, or None."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "_toc.yml").is_file() else None


def results(preset: str) -> Store:
    """Return a preset's store: the book's own records, or a scratch folder for smoke runs.

    Raises:
        ValueError: the preset is unknown.
    """
    if preset not in get_args(Preset):
        raise ValueError(f"preset must be one of {', '.join(get_args(Preset))}, got {preset!r}")
    root = repository() or Path.cwd()
    return Store(root / ".varred" / "smoke" if preset == "smoke" else root / "book" / "results")


@cache
def commit() -> str:
    """Return the repository's commit, with ``+changes`` where the package's files differ from it.

    It is looked up once: the code in memory doesn't move with the repository.
    """
    root = repository()
    if root is None:
        return "unknown"
    try:

        def git(*arguments: str) -> str:
            return subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()

        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class RecordError(RuntimeError):
    """A record can't be read or doesn't say what it should; the message names the file."""


class Store:
    """A folder of run records, one JSON file a run, named by the config's identity.

    Args:
        folder: where the records lie; made when the first one is written.

    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def path(self, config: Config) -> Path:
        """Return the file of a config's record."""
        return self.folder / f"{config.identity}.json"

    def __contains__(self, config: Config) -> bool:
        return self.path(config).exists()

    def missing(self, configs: Iterable[Config], observation: Observation | None = None) -> list[Config]:
        """Return the configs without a record, or with one that lacks what is asked; each once, in order.

        Raises:
            RecordError: with an observation, a record can't be read or contradicts itself.

        """
        seen = {config.identity: config for config in configs}
        return [
            config
            for config in seen.values()
            if config not in self or (observation is not None and not self.get(config).observed(observation))
        ]

    def get(self, config: Config) -> Run:
        """Read one record.

        Raises:
            KeyError: there is none.
            RecordError: it can't be read, is of another config, or contradicts itself.

        """
        path = self.path(config)
        if not path.exists():
            raise KeyError(f"no record {path.name} in {self.folder}: train it with make run")
        return self._read(path)

    def available(self, configs: Iterable[Config]) -> list[Run]:
        """Read the records that are there, in the configs' order; errors as in :meth:`get`."""
        return [self.get(config) for config in configs if config in self]

    def all(self) -> list[Run]:
        """Read every record of the folder, in the order of their names; errors as in :meth:`get`."""
        return [self._read(path) for path in sorted(self.folder.glob("*.json"))]

    def put(self, run: Run) -> Path:
        """Write a record, whole or not at all.

        Raises:
            RecordError: it can't be written.

        """
        path = self.path(run.config)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (run.model_dump_json(indent=1) + "\n").encode())
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "free some space" if full else "make the folder writable"
            raise RecordError(f"{path}: can't be written ({error.strerror}); {advice} and run again") from error
        return path

    @staticmethod
    def _read(path: Path) -> Run:
        try:
            run = Run.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise RecordError(f"{path}: not a valid run record ({explain(error)[:200]}); {_AGAIN}") from error
        except OSError as error:
            raise RecordError(f"{path}: can't be read ({error.strerror}); mend that and run again") from error
        except ValueError as error:
            raise RecordError(f"{path}: can't be read ({error}); {_AGAIN}") from error
        if run.config.identity != path.stem:
            raise RecordError(f"{path}: its config is that of run {run.config.identity}; {_AGAIN}")
        contradiction = run.contradiction()
        if contradiction is not None:
            raise RecordError(f"{path}: {contradiction}; {_AGAIN}")
        return run


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row a run: the config's fields, flattened, and the final values.

    Example:
        >>> from varred.train import train
        >>> config = Config(
        ...     data={"name": "mnist", "size": "sample", "subset": 100}, model={"name": "lenet"},
        ...     optimizer={"name": "sgd", "learning_rate": 0.1}, batch_size=50, epochs=2, seed=0)
        >>> table = frame([train(config, Execution(device="cpu"))])
        >>> table[["method", "optimizer.learning_rate", "passes"]].values.tolist()
        [['SGD', 0.1, 2.0]]

    """
    rows = []
    for run in runs:
        row: dict[str, object] = {"identity": run.config.identity, "method": run.config.method}
        row |= {
            str(name): value for name, value in pd.json_normalize(run.config.model_dump(mode="json")).iloc[0].items()
        }
        for part in ("train", "validation", "test"):
            result = getattr(run.final, part)
            if result is not None:
                row |= {f"{part}_{name}": value for name, value in result.model_dump().items()}
        row |= {"passes": run.passes[-1], "diverged": run.diverged is not None}
        row |= {f"seconds_{name}": value for name, value in run.seconds.model_dump().items()}
        row |= run.provenance.model_dump()
        rows.append(row)
    return pd.DataFrame(rows)


def curves(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row a run and epoch: identity, method, seed, epoch, passes and the curves' values."""
    parts = []
    for run in runs:
        columns = {name: values for name, values in run.curves.model_dump().items() if values}
        part = pd.DataFrame(columns)
        part.insert(0, "passes", run.passes)
        part.insert(0, "epoch", range(len(part)))
        part.insert(0, "seed", run.config.seed)
        part.insert(0, "method", run.config.method)
        part.insert(0, "identity", run.config.identity)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


@dataclass(frozen=True)
class Audit:
    """What retraining the first steps of a recorded run, or the whole of it, gave.

    Attributes:
        identity: the run.
        deviation: relative difference between recorded and retrained loss where it is largest against what is
            allowed; infinite where only one of the two is finite, one of the two runs ended before the other, or a twin
            parts from the start.
        allowed: there.

    """

    identity: str
    deviation: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the record stands."""
        return self.deviation <= self.allowed


def verify(run: Run, execution: Execution | None = None, *, whole: bool = False) -> Audit:
    """Retrain the first steps of a recorded run and compare their losses, or the whole of it and compare its results.

    Rounding differs between machines and numbers of threads, and training amplifies it: a rectifier that rounding
    turns on or off changes the gradient at once. How much is measured, on three twins whose weights are scaled by
    random factors within 1e-6 of 1. Recorded loss number :math:`t` may deviate by a relative 1e-3 (1e-2 across kinds of
    devices) and 10 times the largest deviation of a twin up to :math:`t`. From where a
    twin has no finite loss on, nothing is compared. (One twin may by chance end near the run: of two normal deviations
    the first is over 10 times the second in 6 % of cases. That all three do is rare.)

    Args:
        run: the record.
        execution: device, threads, compilation; on the CPU the record's number of threads, where none is given.
        whole: retrain to the end and compare training and test loss, all along and on all images at the end, instead
            of the first steps' losses.

    Raises:
        ValueError: the device is not there.
        DataError: the data can't be had.

    """
    execution = execution or Execution()
    if data.load(run.config.data.name, run.config.data.size).checksum != run.data_checksum:
        return Audit(run.config.identity, math.inf, 0.0)
    if execution.threads is None and execution.resolve().type == run.provenance.device == "cpu":
        execution = execution.model_copy(update={"threads": run.provenance.threads})
    recorded = _results(run) if whole else run.fingerprint
    again = _losses(run, execution, whole)
    if len(recorded) != len(again):
        return Audit(run.config.identity, math.inf, 0.0)
    if recorded == again:  # to the bit: no need to ask what rounding does
        return Audit(run.config.identity, 0.0, TOLERANCE)
    allowed = TOLERANCE if execution.resolve().type == run.provenance.device.split(":")[0] else ACROSS
    spread = [0.0] * len(again)
    for twin in range(1, TWINS + 1):
        pairs = itertools.zip_longest(again, _losses(run, execution, whole, twin), fillvalue=math.nan)  # given up early
        spread = [max(a, _difference(*pair)) for a, pair in zip(spread, pairs, strict=False)]
    deviations = [_difference(a, b) for a, b in zip(recorded, again, strict=True)]
    limits = [allowed + MARGIN * value for value in itertools.accumulate(spread, max)]
    # A limit is infinite where rounding decides whether a run diverges; nothing can be said from there on.
    found = [(a, b) for a, b in zip(deviations, limits, strict=True) if math.isfinite(b)] or [(math.inf, allowed)]
    return Audit(run.config.identity, *max(found, key=lambda pair: pair[0] / pair[1]))


def _results(run: Run) -> list[float]:
    """Return training and test loss in the order of time."""
    curves = zip(run.curves.train_loss, run.curves.test_loss, strict=True)
    return [*itertools.chain.from_iterable(curves), run.final.train.loss, run.final.test.loss]


def _losses(run: Run, execution: Execution, whole: bool, twin: int = 0) -> list[float]:
    """Retrain, or train a twin; return its results, or the losses of the first steps."""
    trainer = Trainer(run.config, execution)
    if twin:
        source = torch.Generator().manual_seed(twin)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                noise = 2 * torch.rand(parameter.shape, generator=source) - 1
                parameter.mul_(1 + PERTURBATION * noise.to(parameter))
    if whole:
        return _results(trainer.run())
    trainer.initialize()
    if trainer.state.diverged is not None:
        return []
    trainer.begin(0)
    return [trainer.step(batch).item() for batch in itertools.islice(trainer.batches(0), FINGERPRINT)]


def _difference(recorded: float, again: float) -> float:
    if recorded == again or (math.isnan(recorded) and math.isnan(again)):
        return 0.0
    difference = abs(recorded - again) / max(abs(recorded), 1e-12)
    return difference if math.isfinite(difference) else math.inf  # max() would drop a NaN
