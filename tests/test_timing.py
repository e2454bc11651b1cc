"""Seconds of a run from the times of its steps: estimates, runs that were given up, the file of measured times."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from test_runs import CPU, RULES, make
from varred import timing
from varred.runs import RecordError
from varred.train import Trainer, train

OWN = {"step": 2.0, "snapshot": 0.5}
WILD: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 1e20},
    "SVRG": {"base": {"name": "sgd", "learning_rate": 1e20}},
    "STORM": {"k": 1e20},
}


@pytest.mark.parametrize("rule", WILD)
def test_a_whole_run_takes_what_was_estimated(rule: str) -> None:
    run = train(make(rule), CPU)
    times = {timing.kind(run.config): OWN}
    snapshots = [150.0, 0.0, 150.0] if rule == "SVRG" else [0.0] * 3  # 300 images at 0.5 seconds, every second epoch
    expected = [0.0]
    for snapshot in snapshots:
        expected.append(expected[-1] + 10 * 2.0 + snapshot)
    assert timing.seconds(run, times) == expected
    assert timing.estimate([run.config], times) == expected[-1]
    assert timing.estimate([run.config], {}) is None


@pytest.mark.parametrize("rule", WILD)
def test_of_a_run_given_up_the_steps_made_count(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, step = [], Trainer.step
    monkeypatch.setattr("varred.train.LOOK_EVERY", 4)
    monkeypatch.setattr(Trainer, "step", lambda self, batch: (made.append(batch), step(self, batch))[1])
    run = train(make(rule, optimizer={**RULES[rule], **WILD[rule]}), CPU)
    assert run.diverged is not None
    assert run.diverged.epoch == 0
    assert len(made) in (4, 8)  # of 10
    (start, end) = timing.seconds(run, {timing.kind(run.config): OWN})
    assert (start, end) == (0.0, len(made) * 2.0 + (150.0 if rule == "SVRG" else 0.0))


def test_a_kind_that_was_not_timed_is_named() -> None:
    run = train(make(epochs=1), CPU)
    with pytest.raises(KeyError, match=r"no time for .*measure it with"):
        timing.seconds(run, {})


@pytest.mark.parametrize("damaged", [b"{", b"\xff\xfe\x00", b"[1]", b'{"a": 1}'])
def test_a_damaged_file_of_times_is_named(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    assert timing.read(path) == {}
    path.write_bytes(damaged)
    with pytest.raises(RecordError, match=r"cpu\.json: not a file of measured times") as caught:
        timing.read(path)
    assert "\n" not in str(caught.value)


def test_times_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timing, "measure", lambda configs, _: [OWN] * len(configs))
    path = tmp_path / "cpu.json"
    timing.update(path, [make()])
    before = path.read_bytes()
    assert list(json.loads(before).values()) == [OWN]
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            timing.update(path, [make("STORM")])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    timing.update(path, [make("STORM")])
    assert len(timing.read(path)) == 2


def test_a_clock_that_ticks_once_a_gradient_reads_what_a_step_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ticks(trainer: Trainer, name: str, work: Callable[[], object]) -> float:
        before = trainer.state.samples
        work()
        return float(trainer.state.samples - before)

    monkeypatch.setattr(timing, "_timed", ticks)
    found = timing.measure([make(rule) for rule in ("SGD", "SVRG", "STORM")], CPU)
    assert [own["step"] for own in found] == [32, 64, 64]
    assert [own["snapshot"] for own in found] == [0, 1, 0]


def test_two_jobs_take_half() -> None:
    config, times = make(), {timing.kind(make()): OWN}
    assert timing.estimate([config, config], times, jobs=2) == timing.estimate([config], times)


def test_the_least_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(1)
    monkeypatch.setattr(timing, "_timed", lambda trainer, name, work: (work(), float(next(ticks)))[1])
    (found,) = timing.measure([make()], CPU)
    assert found["step"] == 3  # after two to warm up
