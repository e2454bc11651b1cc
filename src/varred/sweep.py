"""Many configs: on this machine through joblib, or on a Dask cluster with the same call."""

from __future__ import annotations

import itertools
import os
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, NamedTuple

import joblib
from tqdm import tqdm

from varred import data
from varred.config import Config, Device, Execution, Observation, execution
from varred.files import remove_stale
from varred.record import Run
from varred.runs import RecordError, Store, commit
from varred.timing import estimate
from varred.train import train

# glibc gives large blocks back to the system at every free, and page faults then cost a fifth of a LeNet step.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_TOP_PAD_": "67108864",
}


# torch's random generator, that of weights and dropout, belongs to the process: its threads train one after the other.
_TRAINING = threading.Lock()


class SweepError(RuntimeError):
    """Some runs could not be trained; the message names each with its reason, the others are recorded."""


class Failure(NamedTuple):
    """A run that raised: its identity, the reason in a line, and the traceback."""

    identity: str
    reason: str
    trace: str


class Phase(NamedTuple):
    """A step of a queue.

    Attributes:
        name: what it is called.
        configs: what it trains, as far as the records of earlier phases decide it.
        observation: what is measured on the way.
        planned: number of its runs once all is decided; None where that is ``len(configs)``.

    """

    name: str
    configs: list[Config]
    observation: Observation | None = None
    planned: int | None = None


def sweep(
    configs: Sequence[Config],
    store: Store,
    *,
    jobs: int = 1,
    execution: Execution | None = None,
    client: Any = None,
    checkpoints: Path | None = None,
    observation: Observation | None = None,
) -> list[Run]:
    """Train the configs that have no record, and return all records in the configs' order.

    Workers return records and only the caller writes them, one by one as they come, so a sweep can be killed at any
    moment and loses at most what the checkpoints don't hold. A run that raises doesn't stop the others. A process
    trains one run at a time, whatever its threads.

    Args:
        configs: what to train, most wanted first.
        store: where records lie.
        jobs: processes on this machine. Two single-threaded ones beat one with two threads.
        execution: device, threads and compilation. By default one thread a process where there may be several (on a
            cluster, or with ``jobs`` above 1), else as many as torch chooses.
        client: a ``dask.distributed.Client``; then ``jobs`` is the cluster's affair, and so are devices and data.
        checkpoints: folder for checkpoints, seen by all workers; None for no checkpoints.
        observation: what to measure on the way; a record that lacks it is made again.

    Raises:
        ValueError: ``jobs`` is below 1, or the device is not there.
        DataError: the data can't be had.
        RecordError: the folder of the checkpoints can't be made, or a record can't be read or written.
        SweepError: runs have failed; raised at the end.

    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    store.available(configs)  # a damaged record is named now, not after the last run
    missing = store.missing(configs, observation)
    if checkpoints is not None:  # left by a sweep that was killed between record and removal
        for identity in {config.identity for config in configs} - {config.identity for config in missing}:
            (checkpoints / f"{identity}.pt").unlink(missing_ok=True)
    if missing:
        execution = execution or Execution(threads=1 if jobs > 1 or client is not None else None)
        if client is None:
            execution.resolve()
            for name, size in dict.fromkeys((config.data.name, config.data.size) for config in missing):
                data.load(name, size)  # once, before the workers would all download it
        if checkpoints is not None:
            try:
                checkpoints.mkdir(parents=True, exist_ok=True)
            except OSError as refused:
                reason = f"{checkpoints}: can't be made ({refused.strerror})"
                raise RecordError(f"{reason}; make its folder writable, or name another one") from refused
            remove_stale(checkpoints)
        remove_stale(store.folder)
        if client is not None:
            results = _on_cluster(client, missing, execution, checkpoints, observation)
        else:
            wanted = (config for config in missing if _wanted(store, config, observation))
            results = _on_this_machine(wanted, execution, checkpoints, observation, jobs)
        failures = []
        for run in tqdm(results, total=len(missing), desc="runs"):
            if isinstance(run, Failure):
                failures.append(run)
                continue
            store.put(run)
            if checkpoints is not None:
                _checkpoint(run.config, checkpoints).unlink(missing_ok=True)  # type: ignore[union-attr]
        if failures:
            error = SweepError("; ".join(f"run {failure.identity} failed: {failure.reason}" for failure in failures))
            for failure in failures:
                error.add_note(failure.trace)
            raise error
    return [store.get(config) for config in configs]


def _wanted(store: Store, config: Config, observation: Observation | None) -> bool:
    """Return whether no other sweep of the same folder has recorded the run meanwhile."""
    try:
        return bool(store.missing([config], observation))
    except RecordError:
        return False  # named at the end: raised here it would end the runs in progress


def _checkpoint(config: Config, folder: Path | None) -> Path | None:
    return None if folder is None else folder / f"{config.identity}.pt"


def _train_one(
    config: Config,
    execution: Execution,
    checkpoints: Path | None,
    observation: Observation | None,
    caller: int | None = None,
) -> Run | Failure:
    checkpoint = _checkpoint(config, checkpoints)

    def stop_alone(epoch: int, epochs: int) -> None:
        # In a process of the sweep's whose sweep was killed, nobody waits for the record.
        if caller not in (None, os.getpid(), os.getppid()):
            os._exit(1)

    with _TRAINING:
        try:
            return train(
                config,
                execution,
                checkpoint=checkpoint,
                progress=stop_alone,
                commit=commit(),  # of the code in this process, which may have started after the tree moved on
                observation=observation,
            )
        except Exception as error:  # whatever torch refuses with
            return _failure(config, error)


def _failure(config: Config, error: Exception) -> Failure:
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    return Failure(config.identity, reason, "".join(traceback.format_exception(error)))


def _on_this_machine(
    configs: Iterable[Config],
    execution: Execution,
    checkpoints: Path | None,
    observation: Observation | None,
    jobs: int,
) -> Iterator[Run | Failure]:
    for name, value in _ALLOCATOR.items():
        os.environ.setdefault(name, value)
    begun: dict[str, Config] = {}

    def call(config: Config, jobs: int) -> Any:
        begun[config.identity] = config
        caller = os.getpid() if jobs > 1 else None  # one job is done in this process
        return joblib.delayed(_train_one)(config, execution, checkpoints, observation, caller)

    def parallel(configs: Iterable[Config], jobs: int) -> Iterator[Run | Failure]:
        pool = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)
        for result in pool(call(config, jobs) for config in configs):
            del begun[result.identity if isinstance(result, Failure) else result.config.identity]
            yield result

    configs = iter(configs)
    try:
        yield from parallel(configs, jobs)
        return
    except BrokenExecutor:  # a process was killed, for want of memory perhaps; whose it was isn't said
        print("a training process was killed: what it trained and the rest go on one at a time", flush=True)
    for config in itertools.chain(list(begun.values()), configs):
        try:
            yield from parallel([config], 2)  # in a process of its own
        except BrokenExecutor as error:
            yield _failure(config, error)


def _on_cluster(
    client: Any,
    configs: Sequence[Config],
    execution: Execution,
    checkpoints: Path | None,
    observation: Observation | None,
) -> Iterator[Run | Failure]:
    from distributed import as_completed

    futures = {
        client.submit(_train_one, config, execution, checkpoints, observation, pure=False, priority=-place): config
        for place, config in enumerate(configs)
    }
    for future in as_completed(futures):
        try:
            result: Run | Failure = future.result()
        except Exception as error:  # its workers were lost, again and again
            result = _failure(futures[future], error)
        yield result


def work_through(
    phases: Iterable[Phase],
    store: Store,
    *,
    jobs: int = 2,
    device: Device = "auto",
    times: dict[str, dict[str, float]] | None = None,
) -> None:
    """Train a queue's missing runs phase by phase, saying before each what it will take.

    Runs that fail stop neither their phase nor the next ones.

    Args:
        phases: in order of need; later ones may depend on the records of those before.
        store: where records lie.
        jobs: processes; two single-threaded ones beat one with two threads.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        times: measured times, for the estimate.

    Raises:
        ValueError: the device is unknown or not there, or ``jobs`` is below 1.
        DataError: the data can't be had.
        RecordError: as in :func:`sweep`.
        SweepError: runs have failed; raised at the end.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    where = execution(device, threads=1 if jobs > 1 else None)
    commit()  # of the code in memory, before the repository moves on
    checkpoints = store.folder / ".checkpoints"
    failures: dict[str, SweepError] = {}
    for name, configs, observation, _ in phases:
        missing = store.missing(configs, observation)
        seconds = estimate(missing, times or {}, jobs)
        took = (
            ""
            if seconds is None or not missing
            else f", steps and snapshots about {seconds / 60:.0f} minutes on the timed machine"
        )
        print(f"{name}: {len(set(configs)) - len(missing)} recorded, {len(missing)} to train{took}", flush=True)
        try:
            sweep(configs, store, jobs=jobs, execution=where, checkpoints=checkpoints, observation=observation)
        except SweepError as error:
            print(f"{name}: {error}", flush=True)
            failures[str(error)] = error
    if failures:
        raise SweepError("; ".join(failures)) from next(iter(failures.values()))
