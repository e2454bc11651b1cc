"""Configs, the training loop, records and sweeps: identities, counts, pairing, resuming, refusing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from typer import Exit

from varred.__main__ import INTERRUPTED, verify_records
from varred.config import Config, Execution, MLPModel, Observation, explain
from varred.data import DataError, load
from varred.measure import gradient_noise
from varred.optim import SVRG
from varred.record import Curves, Run
from varred.runs import RecordError, Store, _losses, commit, curves, frame, verify
from varred.sweep import Phase, SweepError, _train_one, sweep, work_through
from varred.train import CheckpointError, Trainer, _Progress, build_model, evaluate, gradient_computations, train

CPU = Execution(device="cpu", threads=1)
RULES: dict[str, dict[str, Any]] = {
    "SGD": {"name": "sgd", "learning_rate": 0.1},
    "Adam": {"name": "adam", "learning_rate": 1e-3},
    "AdaGrad": {"name": "adagrad", "learning_rate": 0.01},
    "SVRG": {
        "name": "svrg",
        "base": {"name": "sgd", "learning_rate": 0.01},
        "snapshot": {"every": 2, "batch_size": 64},
    },
    "STORM": {"name": "storm", "k": 0.1, "c": 100.0, "granularity": "tensor"},
}


def make(rule: str = "SGD", **changes: Any) -> Config:
    """A run of seconds: 300 images of the sample, a perceptron; the last batch of 32 is short."""
    settings: dict[str, Any] = {
        "data": {"name": "mnist", "size": "sample", "subset": 300},
        "model": {"name": "mlp", "hidden": (16,)},
        "optimizer": RULES[rule],
        "batch_size": 32,
        "epochs": 3,
        "seed": 0,
    }
    return Config(**{**settings, **changes})


def essence(run: Run) -> dict[str, Any]:
    """What a resumed run must share with one never stopped: everything but clocks."""
    return json.loads(run.model_dump_json(exclude={"seconds"}))


def test_a_field_at_its_default_is_not_part_of_the_identity() -> None:
    config = make()
    assert json.loads(config.canonical).keys() == {"data", "model", "optimizer", "batch_size", "epochs", "seed"}
    assert make(precision="float32", redraw_order=1).identity == config.identity
    assert make(seed=1).identity != config.identity
    assert make(redraw_order=2).identity != config.identity


def test_identities_stay_what_they_are() -> None:
    # The name of a record in the book: if this changes, every record made so far is lost.
    config = Config(
        data={"name": "mnist"}, model={"name": "lenet"}, optimizer=RULES["SGD"], batch_size=32, epochs=100, seed=1
    )
    assert config.canonical == (
        '{"batch_size":32,"data":{"name":"mnist"},"epochs":100,"model":{"name":"lenet"},'
        '"optimizer":{"learning_rate":0.1,"name":"sgd"},"seed":1}'
    )
    assert config.identity == "d7c5e63034ee2f63"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1, got 0"),
        ({"batchsize": 3}, "batchsize: Extra inputs are not permitted, got 3"),
        ({"optimizer": {"name": "sgd", "learning_rate": "fast"}}, "got 'fast'"),
        ({"optimizer": {"name": "lion", "learning_rate": 1.0}}, "optimizer"),
        ({"data": {"name": "mnist", "holdout": {"kind": "folds", "folds": 4, "fold": 4}}}, "fold must be below"),
        ({"optimizer": {**RULES["Adam"], "betas": (0.9, 1.0)}}, "betas.1: Input should be less than 1, got 1.0"),
        ({"optimizer": {**RULES["Adam"], "betas": (-0.1, 0.9)}}, "betas.0: Input should be greater than or equal to 0"),
        ({"optimizer": {**RULES["Adam"], "betas": (math.nan, 0.9)}}, "betas.0: Input should be"),
        ({"optimizer": {**RULES["SGD"], "nesterov": True}}, "optimizer.sgd: nesterov needs momentum above 0, got 0.0"),
    ],
)
def test_a_bad_config_is_explained_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    line = explain(caught.value)
    assert message in line
    assert "\n" not in line
    assert len(line) < 250


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "hidden": (16,), "normalization": "batch"},
        {"name": "lenet", "normalization": "batch"},
        {"name": "resnet18"},
        {"name": "torchvision", "architecture": "vgg11"},
    ],
)
def test_larger_snapshot_batches_are_refused_with_batch_normalization(model: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        make("SVRG", model=model)
    line = explain(caught.value)
    assert line.startswith("config: optimizer.snapshot.batch_size must be left out where the network may have batch")
    assert f"as this {model['name']}:" in line
    assert line.endswith("got 64")
    assert "\n" not in line
    make("SVRG", model=model, optimizer={**RULES["SVRG"], "snapshot": {"every": 2}})
    make("SVRG", model={"name": "resnet18", "normalization": "none"})


def test_a_device_that_is_not_there_is_named() -> None:
    absent = next(name for name in ("cuda", "mps") if not Execution._there()[name])
    with pytest.raises(ValueError, match=f"device '{absent}' is not available here: choose auto or one of"):
        train(make(), Execution(device=absent))


@pytest.mark.parametrize("rule", RULES)
def test_gradient_computations_are_counted_in_samples(rule: str) -> None:
    run = train(make(rule), CPU)
    n, epochs = 300, 3
    expected = {
        "SVRG": [0, 3 * n, 5 * n, 8 * n],  # snapshots at epochs 0 and 2, two gradients a step
        "STORM": [0, 2 * n - 32, 4 * n - 32, 6 * n - 32],  # two gradients a step but for the first
    }.get(rule, [n * epoch for epoch in range(epochs + 1)])
    assert run.curves.samples == expected
    assert gradient_computations(run.config) == expected[-1]


def test_paired_runs_see_identical_weights_and_batches() -> None:
    trainers = [Trainer(make(rule), CPU) for rule in RULES]
    torch.rand(3)
    first = [torch.cat([p.flatten() for p in t.model.parameters()]) for t in trainers]
    assert all(torch.equal(first[0], other) for other in first)
    for trainer in trainers:
        trainer.epoch(0)  # whatever each evaluates must not move what the next epoch draws
    batches = [[batch.targets for batch in trainer.batches(1)] for trainer in trainers]
    assert all(torch.equal(a, b) for other in batches for a, b in zip(batches[0], other, strict=True))


def test_the_snapshot_is_the_weighted_mean_whatever_its_batches() -> None:
    small = Trainer(make("SVRG", precision="float64"), CPU)
    rule = {**RULES["SVRG"], "snapshot": {"every": 2}}
    large = Trainer(make("SVRG", optimizer=rule, precision="float64"), CPU)
    for trainer in (small, large):
        trainer.snapshot(0)
    for a, b in zip(small.optimizer.full_gradient, large.optimizer.full_gradient, strict=True):
        assert (a - b).abs().max() < 1e-14


@pytest.mark.parametrize("rule", RULES)
def test_a_killed_run_resumes_bit_for_bit(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varred.train.CHECKPOINT_SECONDS", -1.0)
    whole = train(make(rule), CPU)

    def kill(epoch: int, _: int) -> None:
        if epoch == 3:
            raise KeyboardInterrupt  # after epoch 2's checkpoint, in the third epoch's shadow

    checkpoint = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(make(rule), CPU, checkpoint=checkpoint, progress=kill)
    resumed = Trainer(make(rule), CPU)
    resumed.load(checkpoint)
    assert resumed.state.epoch == 2
    assert essence(train(make(rule), CPU, checkpoint=checkpoint)) == essence(whole)


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    Trainer(make(), CPU).save(path)
    with pytest.raises(ValueError, match="is a checkpoint of run"):
        Trainer(make(seed=1), CPU).load(path)
    path.write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="the checkpoint is damaged"):
        Trainer(make(), CPU).load(path)


def test_a_run_starts_afresh_where_its_checkpoint_is_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.pt"
    for damage in (b"half a file", b""):
        path.write_bytes(damage)
        assert essence(train(make(), CPU, checkpoint=path)) == essence(train(make(), CPU))
        assert not path.exists()
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        assert lines[0].endswith("run.pt: the checkpoint is damaged; it is dropped, and the run starts afresh")


def test_a_checkpoint_that_cannot_serve_is_dropped_and_one_that_cannot_be_opened_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, watch = tmp_path / "run.pt", Observation(epochs=(0,))
    monkeypatch.setattr("varred.train.CHECKPOINT_SECONDS", -1.0)
    train(make("SVRG", epochs=1), CPU, checkpoint=path)
    with pytest.raises(CheckpointError, match="lacks what is to be observed"):
        Trainer(make("SVRG", epochs=1), CPU, observation=watch).load(path)
    assert train(make("SVRG", epochs=1), CPU, checkpoint=path, observation=watch).observed(watch)

    saved = torch.load(path)
    torch.save({**saved, "progress": {**saved["progress"], "unheard": 1}}, path)
    with pytest.raises(CheckpointError, match="of another version"):
        Trainer(make("SVRG", epochs=1), CPU).load(path)

    def refuse(_: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            train(make("SVRG", epochs=1), CPU, checkpoint=path)
    assert path.exists()


def test_a_resumed_record_names_the_programs_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varred.train.CHECKPOINT_SECONDS", -1.0)
    path, store = tmp_path / "run.pt", Store(tmp_path)

    def part(version: str, end: int | None) -> Run:
        def kill(epoch: int, _: int) -> None:
            if epoch == end:
                raise KeyboardInterrupt

        return train(make(), CPU, checkpoint=path, commit=version, progress=kill)

    for version, end in (("first", 2), ("first", 2), ("second", 3)):
        with pytest.raises(KeyboardInterrupt):
            part(version, end)
    run = part("third", None)
    torch_ = torch.__version__
    assert run.provenance.commit == "third"
    assert [(p.commit, p.torch) for p in run.provenance.earlier] == [("first", torch_), ("second", torch_)]
    store.put(run)
    assert essence(store.get(run.config)) == essence(run)


def test_a_run_of_one_program_names_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    Trainer(make(), CPU, commit="first").save(path)
    run = train(make(), CPU, checkpoint=path, commit="first")
    assert run.provenance.earlier == []
    assert "earlier" not in essence(run)["provenance"]


def test_a_resume_with_another_number_of_threads_is_on_record(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    Trainer(make(), CPU.model_copy(update={"threads": 2}), commit="same").save(path)
    run = train(make(), CPU, checkpoint=path, commit="same")
    assert [(p.commit, p.device, p.threads) for p in run.provenance.earlier] == [("same", "cpu", 2)]


def test_an_audit_takes_the_records_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def start(self: Trainer, config: Config, execution: Execution, *rest: Any) -> None:
        seen.append(execution.threads)
        raise KeyboardInterrupt

    run = train(make(epochs=1), CPU)
    monkeypatch.setattr(Trainer, "__init__", start)
    for asked in (None, 2):
        with pytest.raises(KeyboardInterrupt):
            verify(run, Execution(device="cpu", threads=asked))
    assert seen == [1, 2]


def test_a_record_without_curves_contradicts_itself() -> None:
    run = train(make(epochs=1), CPU)
    assert run.contradiction() is None
    assert run.model_copy(update={"curves": Curves()}).contradiction() == "its curves are empty"


def test_a_diverged_run_stops_early_and_is_recorded(tmp_path: Path) -> None:
    run = train(make(optimizer={"name": "sgd", "learning_rate": 1e6}, epochs=50), CPU)
    assert run.diverged is not None
    assert len(run.curves.samples) == run.diverged.epoch + 2 < 51
    store = Store(tmp_path)
    store.put(run)
    assert essence(store.get(run.config)) == essence(run)
    assert bool(frame([store.get(run.config)])["diverged"][0])


def with_test(record: dict[str, Any], *also: str, **values: float) -> dict[str, Any]:
    """A record with other final values on the test set, and with ``"curves"`` the same at its curves' ends."""
    changed = json.loads(json.dumps(record))
    changed["final"]["test"] |= values
    if also:
        for name, value in values.items():
            changed["curves"][f"test_{name}"][-1] = value
    return changed


def test_records_refuse_what_they_do_not_know_and_what_contradicts_itself(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = train(make(epochs=1), CPU)
    path = store.put(run)
    whole = json.loads(path.read_text())
    for damaged, message in (
        ({**whole, "note": "hand-made"}, "note: Extra inputs are not permitted"),
        ({**whole, "version": 2}, "version"),
        ({**whole, "config": {**whole["config"], "seed": 9}}, "its config is that of run"),
        (with_test(whole, loss=2.0), "its final test loss is not the last of the curve"),
        (with_test(whole, loss=1.01 * run.final.test.loss), "its final test loss is not the last of the curve"),
        (with_test(whole, accuracy=0.99), "its final test accuracy is not the last of the curve"),
        (with_test(whole, "curves", loss=2.0), "its final test accuracy and losses don't fit"),
        ({**whole, "curves": {**whole["curves"], "test_loss": [1.0]}}, "the curve test_loss has 1 entries"),
        (
            {**whole, "curves": {name: values[:1] for name, values in whole["curves"].items()}},
            "it has 0 of 1 epochs, and no divergence",
        ),
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(RecordError, match=message):
            store.get(run.config)
    path.write_text("{")
    with pytest.raises(RecordError, match="not a valid run record"):
        store.get(run.config)
    path.write_bytes(b"\xff" + path.read_bytes())
    with pytest.raises(RecordError, match=rf"{path.name}: can't be read .*codec") as caught:
        store.all()
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    run = train(make(epochs=1), CPU)
    for step in ("replace", "write_bytes"):
        monkeypatch.setattr(Path, step, full)
        with pytest.raises(RecordError, match="No space left on device"):
            Store(tmp_path).put(run)
        assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_costs_the_resume_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varred.train.CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(Path, "replace", full)
    run = train(make(), CPU, checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # one an epoch
    assert all("run.pt: can't be written" in line and "No space left on device" in line for line in lines)
    assert essence(run) == essence(train(make(), CPU))


def test_a_sweep_removes_what_killed_writers_left_and_nothing_younger(tmp_path: Path) -> None:
    store, checkpoints = Store(tmp_path / "results"), tmp_path / "checkpoints"
    for folder in (store.folder, checkpoints):
        folder.mkdir()
        for name, age in (("dead", 7200), ("alive", 10)):
            (folder / f"{name}.1.partial").touch()
            os.utime(folder / f"{name}.1.partial", (time.time() - age,) * 2)
    sweep([make(epochs=1)], store, checkpoints=checkpoints, execution=CPU)
    left = [path.name for folder in (store.folder, checkpoints) for path in folder.glob("*.partial")]
    assert left == ["alive.1.partial"] * 2


def test_verify_holds_a_true_record_and_catches_an_altered_one() -> None:
    run = train(make("SVRG"), CPU)
    assert verify(run, CPU).deviation == 0
    assert verify(run, CPU, whole=True).deviation == 0
    altered = run.model_copy(update={"fingerprint": [loss * 1.01 for loss in run.fingerprint]})
    assert not verify(altered, CPU).holds
    for fingerprint in ([], run.fingerprint[:1]):  # fewer losses than the audit compares
        assert not verify(run.model_copy(update={"fingerprint": fingerprint}), CPU).holds
    assert not verify(run.model_copy(update={"data_checksum": "another"}), CPU).holds
    better = [loss * 0.97 for loss in run.curves.test_loss]
    altered = run.model_copy(update={"curves": run.curves.model_copy(update={"test_loss": better})})
    assert verify(altered, CPU).holds  # the first steps' losses say nothing about the test set
    assert not verify(altered, CPU, whole=True).holds


def test_the_audit_of_a_folder_retrains_its_records_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(make("SVRG", epochs=1), CPU)
    losses = [1.01 * loss for loss in run.curves.train_loss]
    altered = train(make("SGD", epochs=1), CPU)
    altered = altered.model_copy(update={"curves": altered.curves.model_copy(update={"train_loss": losses})})
    store = Store(tmp_path)
    store.put(run)
    verify_records(count=0, whole=True, device="cpu", seed=0, folder=tmp_path)
    assert "1 of 1 records hold" in capsys.readouterr().out
    store.put(altered)
    verify_records(count=0, whole=False, device="cpu", seed=0, folder=tmp_path)
    assert "2 of 2 records hold" in capsys.readouterr().out
    with pytest.raises(Exit):
        verify_records(count=0, whole=True, device="cpu", seed=0, folder=tmp_path)
    assert "1 of 2 records hold" in capsys.readouterr().out


def test_the_audit_allows_what_rounding_does_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # Batch normalization and rectifiers at a large step: rounding is amplified beyond any fixed tolerance in few steps.
    data = {"name": "cifar10", "size": "sample", "subset": 640}
    settings = {"data": data, "model": {"name": "resnet18", "width": 2}, "epochs": 1}

    def record(rate: float = 0.5, seed: int = 0, rounding: float = 0.0) -> Run:
        def build(*arguments: Any) -> nn.Module:
            model = build_model(*arguments)
            source = torch.Generator().manual_seed(9)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + rounding * torch.randn(parameter.shape, generator=source))
            return model

        with monkeypatch.context() as patched:
            patched.setattr("varred.train.build_model", build)
            return train(make(**settings, optimizer={"name": "sgd", "learning_rate": rate}, seed=seed), CPU)

    true = record()
    for rounding in (1e-7, 3e-7):
        audit = verify(record(rounding=rounding), CPU)
        assert 1e-3 < audit.deviation <= audit.allowed
    for false in (record(rate=0.55), record(seed=1)):
        assert not verify(true.model_copy(update={"fingerprint": false.fingerprint}), CPU).holds


def test_a_nan_on_one_side_fails_and_on_both_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(make(optimizer={"name": "sgd", "learning_rate": 1e6}), CPU)
    assert any(math.isnan(loss) for loss in [*run.fingerprint, *run.curves.train_loss])
    assert verify(run, CPU).deviation == 0
    assert verify(run, CPU, whole=True).deviation == 0
    sound = train(make(), CPU)
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: step(self, batch) * math.nan)
    assert verify(sound, CPU).deviation == math.inf
    altered = run.model_copy(update={"fingerprint": sound.fingerprint})
    assert not verify(altered, CPU).holds


class Dropping(nn.Sequential):
    """A perceptron with dropout: no network of the book has randomness of its own."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("rule", ["SGD", "SVRG", "STORM"])
def test_verify_holds_a_true_record_of_a_network_with_dropout(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLPModel, "build", lambda *_: Dropping())
    run = train(make(rule, epochs=1), CPU)
    torch.rand(3)
    assert verify(run, CPU).deviation == 0


@pytest.mark.parametrize("recorded_ends", ["before", "after"])
def test_a_retraining_of_another_length_fails(recorded_ends: str) -> None:
    run = train(make(), CPU)
    losses = {"train_loss": run.curves.train_loss, "test_loss": run.curves.test_loss}
    other = {n: loss[:-1] if recorded_ends == "before" else [*loss, loss[-1]] for n, loss in losses.items()}
    altered = run.model_copy(update={"curves": run.curves.model_copy(update=other)})
    audit = verify(altered, CPU, whole=True)
    assert audit.deviation == math.inf
    assert not audit.holds


def test_metainit_without_a_finite_quotient_is_a_diverged_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(initialization={"name": "metainit", "steps": 2, "batch_size": 4})
    sound = train(config, CPU)
    assert sound.diverged is None
    with monkeypatch.context() as broken:
        broken.setattr("varred.init.gradient_quotient", lambda *_: torch.tensor(math.nan))
        (run,) = sweep([config], Store(tmp_path), execution=CPU)
        assert run.diverged is not None
        assert run.diverged.reason == "non-finite gradient quotient"
        assert (run.diverged.epoch, run.curves.samples, run.fingerprint, run.metainit) == (0, [0], [], None)
        assert verify(run, CPU).holds
        assert verify(run, CPU, whole=True).holds
        assert not verify(sound, CPU).holds
        assert not verify(sound, CPU, whole=True).holds
    assert not verify(run, CPU).holds
    assert not verify(run, CPU, whole=True).holds


def test_precise_statistics_are_those_of_the_final_weights() -> None:
    # One batch is the whole set: statistics averaged over it are its own, up to the factor 300 / 299 of the variance
    # that torch keeps. So evaluation mode must give what the batch itself gives; with running statistics it doesn't.
    model = {"name": "mlp", "hidden": (16,), "normalization": "batch"}
    trainer = Trainer(make(model=model, batch_size=300), CPU)
    run = trainer.run()
    assert run.precise is not None
    (batch,) = trainer.batches(2)
    assert trainer.model.training
    with torch.no_grad():
        exact = nn.functional.cross_entropy(trainer.model(batch.inputs), batch.targets).item()
    assert run.precise.train.loss == pytest.approx(exact, rel=2e-3)
    assert abs(run.final.train.loss / exact - 1) > 0.05
    # Nothing of the run has moved.
    again = Trainer(make(model=model, batch_size=300), CPU)
    again._precise = lambda: None  # type: ignore[method-assign]
    assert essence(again.run()) == {name: value for name, value in essence(run).items() if name != "precise"}
    kept, moved = again.model.state_dict(), Trainer(make(model=model, batch_size=300), CPU)
    moved.run()
    assert all(torch.equal(value, moved.model.state_dict()[name]) for name, value in kept.items())
    # Records say nothing where there is nothing to say.
    assert "precise" not in essence(train(make(), CPU))
    rate = {"name": "sgd", "learning_rate": 1e6}
    assert "precise" not in essence(train(make(model=model, optimizer=rate, epochs=50), CPU))


@pytest.mark.parametrize(
    ("holdout", "count"),
    [({"kind": "folds", "folds": 4, "fold": 1}, 500), ({"kind": "fraction", "fraction": 0.05}, 100)],
    ids=["folds", "fraction"],
)
def test_validation_images_are_not_trained_on(holdout: dict[str, Any], count: int) -> None:
    data = {"name": "mnist", "size": "sample", "holdout": holdout}
    run = train(make(data=data, epochs=1), CPU)
    assert run.training_images == 2000 - count
    assert run.final.validation is not None
    trainer = Trainer(make(data=data), CPU)
    held = {image.numpy().tobytes() for image in trainer.parts.validation[0]}
    assert len(held) == count
    assert not held & {image.numpy().tobytes() for image in trainer.parts.train.inputs}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "mnist", "size": "sample", "holdout": {"kind": "fraction", "fraction": 1e-5}}}, "0 for val"),
        (
            {"data": {"name": "mnist", "size": "sample", "holdout": {"kind": "fraction", "fraction": 0.9999}}},
            "leaves 0",
        ),
        (
            {
                "data": {"name": "mnist", "size": "sample", "subset": 65},
                "model": {"name": "mlp", "hidden": (8,), "normalization": "batch"},
            },
            "leaves a last batch of one image",
        ),
        (
            {"batch_size": 1, "model": {"name": "mlp", "hidden": (8,), "normalization": "batch"}},
            "leaves a last batch of one image",
        ),
    ],
)
def test_parts_too_small_to_train_on_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(make(**changes), CPU)


def test_one_image_is_batch_enough_where_every_map_has_several_pixels() -> None:
    data = {"name": "cifar10", "size": "sample", "subset": 65}
    model = {"name": "resnet18", "width": 2}
    before = torch.get_rng_state()
    trainer = Trainer(make(data=data, model=model), CPU)  # the smallest maps have 4 x 4
    assert torch.equal(torch.get_rng_state(), before)
    assert all(not buffer.any() for name, buffer in trainer.model.named_buffers() if name.endswith("running_mean"))


def test_frames_hold_every_run_and_every_epoch() -> None:
    runs = [train(make(rule, epochs=2), CPU) for rule in ("SGD", "STORM")]
    assert frame(runs)["method"].tolist() == ["SGD", "STORM"]
    assert frame(runs)["passes"].tolist() == [run.passes[-1] for run in runs]
    table = curves(runs)
    assert table["epoch"].tolist() == [0, 1, 2] * 2
    assert table.groupby("method")["passes"].last().round(3).to_dict() == {"SGD": 2.0, "STORM": 3.893}


def test_a_sweep_trains_what_is_missing_once(tmp_path: Path) -> None:
    store, configs = Store(tmp_path / "results"), [make(seed=seed, epochs=1) for seed in (0, 1, 0)]
    runs = sweep(configs, store, jobs=2, checkpoints=tmp_path / "checkpoints")
    assert [run.config.seed for run in runs] == [0, 1, 0]
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    sweep(configs, store, jobs=2)
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before
    assert len(before) == 2
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        sweep(configs, store, jobs=0)


def test_a_sweep_in_threads_of_this_process_trains_here(tmp_path: Path) -> None:
    with joblib.parallel_config(backend="threading"):
        runs = sweep([make(epochs=1, seed=seed) for seed in (0, 1)], Store(tmp_path), jobs=2, execution=CPU)
    assert [run.config.seed for run in runs] == [0, 1]


def test_a_sweep_goes_on_after_a_training_process_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from joblib.externals.loky import reusable_executor

    def kill_one() -> None:
        while True:
            pool = reusable_executor._executor
            if pool is not None and pool._processes and not pool._flags.broken:
                os.kill(next(iter(pool._processes)), signal.SIGKILL)
                return
            time.sleep(0.05)

    if reusable_executor._executor is not None:  # another test's processes are warm, and would be done before the kill
        reusable_executor._executor.shutdown(wait=True, kill_workers=True)
    configs = [make(seed=seed, epochs=1) for seed in range(3)]
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill_one)
        runs = sweep(configs, Store(tmp_path), jobs=2)
        killed.result()
    assert [run.config for run in runs] == configs
    assert "a training process was killed" in capsys.readouterr().out


ENDLESS = """
import sys
from varred import __main__, experiments
from varred.config import Config
from varred.sweep import Phase

data, model = {"name": "mnist", "size": "sample"}, {"name": "mlp", "hidden": (16,)}
rule = {"name": "sgd", "learning_rate": 0.1}
config = Config(data=data, model=model, optimizer=rule, batch_size=32, epochs=10**6, seed=0)
configs = [config.model_copy(update={"seed": seed}) for seed in range(2)]
experiments.queue = lambda *_: [Phase("endless", configs)]
sys.argv = ["varred", "train", "endless", "--device", "cpu", "--folder", sys.argv[1]]
__main__.main()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_of_a_killed_sweep_end(how: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], start_new_session=True) as sweep:

        def workers() -> dict[int, float]:
            """Its processes, and the seconds of a CPU that each has used."""
            found = {}
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    values = path.read_text().rpartition(")")[2].split()
                    state, session, ticks = values[0], int(values[3]), int(values[11])
                    if (
                        session == sweep.pid
                        and state != "Z"
                        and b"popen_loky" in (path.parent / "cmdline").read_bytes()
                    ):
                        found[int(path.parent.name)] = ticks / os.sysconf("SC_CLK_TCK")
                except OSError:
                    continue  # it has ended meanwhile
            return found

        def training() -> bool:  # imports take less
            return sum(seconds > 8 for seconds in workers().values()) == 2

        def wait(seconds: float, until: Callable[[], bool]) -> bool:
            end = time.monotonic() + seconds
            while not until() and time.monotonic() < end:
                time.sleep(0.2)
            return until()

        try:
            assert wait(120, training)
            os.kill(sweep.pid, how)
            sweep.wait(60)
            assert wait(60, lambda: not workers())
        finally:
            sweep.kill()
            for worker in workers():
                os.kill(worker, signal.SIGKILL)
    assert sweep.returncode == (INTERRUPTED if how == signal.SIGTERM else -how)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_stops_no_other_and_is_named_at_the_end(jobs: int, tmp_path: Path) -> None:
    bad = make(data={"name": "mnist", "size": "sample", "subset": 5000})
    good = [make(seed=seed, epochs=1) for seed in range(2)]
    store = Store(tmp_path)
    reason = "ValueError: subset = 5000 is more than the 2000 training images there are"
    with pytest.raises(SweepError) as caught:
        sweep([bad, *good], store, jobs=jobs)
    assert str(caught.value) == f"run {bad.identity} failed: {reason}"
    assert "in prepare" in caught.value.__notes__[0]  # the traceback, for who looks for the cause
    assert store.missing([bad, *good]) == [bad]


def test_a_queue_goes_on_after_a_run_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = make(data={"name": "mnist", "size": "sample", "subset": 5000})
    good, store = make(epochs=1), Store(tmp_path)
    phases = [Phase("one", [bad]), Phase("one again", [bad]), Phase("two", [good])]
    with pytest.raises(SweepError) as caught:
        work_through(phases, store, jobs=1, device="cpu")
    assert str(caught.value).count(bad.identity) == 1
    assert store.missing([good]) == []
    assert f"one: run {bad.identity} failed: ValueError" in capsys.readouterr().out


def test_the_data_are_loaded_before_any_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, size: str) -> None:
        raise DataError(f"{name} {size} is not here")

    monkeypatch.setattr("varred.data.load", absent)
    monkeypatch.setattr("varred.sweep._on_this_machine", None)
    with pytest.raises(DataError, match="mnist sample is not here"):
        sweep([make()], Store(tmp_path), execution=CPU)


def test_a_cluster_has_its_own_devices_and_one_thread_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = make(epochs=1), []
    run = train(config, CPU)

    def cluster(_: object, configs: list[Config], execution: Execution, *__: object) -> Iterator[Run]:
        asked.append(execution)
        yield run

    monkeypatch.setattr("varred.sweep._on_cluster", cluster)
    monkeypatch.setattr(Execution, "resolve", None)  # the caller's devices are not asked for
    assert sweep([config], Store(tmp_path), client=object())[0].config == config
    assert asked == [Execution(threads=1)]


def test_threads_of_one_process_train_what_they_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    build = MLPModel.build

    def slow(self: MLPModel, shape: tuple[int, int, int], classes: int) -> nn.Module:
        time.sleep(0.1)  # between the seed and the draws, as long as another thread needs to seed the generator anew
        return build(self, shape, classes)

    configs = [make(seed=seed, epochs=1) for seed in (0, 1)]
    alone = [essence(train(config, CPU, commit=commit())) for config in configs]
    monkeypatch.setattr(MLPModel, "build", slow)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda config: _train_one(config, CPU, None, None), configs))
    assert [essence(run) for run in together] == alone


def test_a_sweep_survives_a_killed_dask_worker(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    store = Store(tmp_path / "results")
    configs = [make(seed=seed, epochs=12) for seed in range(6)]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        landed: list[Path] = []
        original = store.put

        def put_and_kill(run: Run) -> Path:
            path = original(run)
            if not landed:
                os.kill(pids[0], signal.SIGKILL)
                time.sleep(0.2)
            landed.append(path)
            return path

        store.put = put_and_kill  # type: ignore[method-assign]
        runs = sweep(configs, store, client=client, execution=CPU)
    assert sorted(path.name for path in landed) == sorted(f"{config.identity}.json" for config in configs)
    assert [run.config.seed for run in runs] == list(range(6))
    assert all(len(run.curves.samples) == 13 for run in runs)
    assert essence(runs[3]) == essence(train(configs[3], CPU)) | {"provenance": essence(runs[3])["provenance"]}


# What a record says


def test_an_evaluation_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2]]).double().log()
    result = evaluate(lambda part: part, nn.Identity(), p, torch.tensor([0, 1, 2]))
    assert (result.accuracy, result.confidence_right, result.confidence_wrong) == pytest.approx((2 / 3, 0.65, 0.5))
    assert (result.loss_right, result.loss_wrong) == pytest.approx((-math.log(0.42) / 2, -math.log(0.2)))
    assert result.loss == pytest.approx(-math.log(0.084) / 3)


def test_curves_are_on_the_sets_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(make(), CPU)
    run = trainer.run()
    trainer.model.eval()
    with torch.no_grad():
        exact = nn.functional.cross_entropy(trainer.model(trainer.parts.train.inputs), trainer.parts.train.targets)
    assert run.final.train.loss == pytest.approx(exact.item(), rel=1e-5)
    assert run.curves.train_loss[-1] == pytest.approx(exact.item(), rel=1e-5)  # 300 images: the curve has them all
    assert abs(run.final.test.loss / exact.item() - 1) > 1e-3
    monkeypatch.setattr("varred.train.CURVE_IMAGES", 50)
    few = train(make(), CPU)
    assert few.curve_images == 50
    assert few.final.train.loss == run.final.train.loss
    assert abs(few.curves.train_loss[-1] / exact.item() - 1) > 1e-3


def test_the_running_loss_weighs_the_short_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "epoch", lambda self, epoch: torch.arange(1.0, 11.0))
    weighted = (32 * sum(range(1, 10)) + 12 * 10) / 300
    assert train(make(epochs=1), CPU).curves.running_loss[1] == pytest.approx(weighted)  # the plain mean is 5.5


@pytest.mark.parametrize(("level", "given_up"), [(9.9, False), (10.1, True)])
def test_ten_times_the_first_batchs_loss_ends_a_run(
    level: float, given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = torch.full((10,), 5.0)
    first[0] = 1.0
    epochs = iter([first, torch.full((10,), level), torch.ones(10)])
    monkeypatch.setattr(Trainer, "epoch", lambda self, epoch: next(epochs))
    run = train(make(), CPU)
    assert (run.diverged is not None) is given_up
    if run.diverged is not None:
        assert (run.diverged.epoch, run.diverged.reason) == (1, "loss above 10 times the first")


def test_weights_that_are_no_numbers_at_the_end_are_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_step(self: Trainer, epoch: int) -> Tensor:
        with torch.no_grad():
            next(self.model.parameters()).fill_(math.nan)
        return torch.ones(10)

    monkeypatch.setattr(Trainer, "epoch", last_step)
    run = train(make(epochs=1), CPU)
    assert run.diverged is not None
    assert (run.diverged.epoch, run.diverged.reason) == (0, "non-finite weights")


@pytest.mark.parametrize(("c", "share"), [(1e9, 1.0), (0.0, 0.0), (100.0, None)])
def test_the_recorded_share_is_of_a_equal_to_1(c: float, share: float | None) -> None:
    trainer = Trainer(make("STORM", optimizer={**RULES["STORM"], "c": c}, epochs=1), CPU)
    run = trainer.run()
    assert run.path is not None
    sums = torch.tensor([float(state["accumulator"]) for state in trainer.optimizer.state.values()]).double()
    eta = 0.1 / (0.1 + sums) ** (1 / 3)
    assert run.path.clipped == [float((c * eta**2 >= 1).double().mean())]
    assert share is None or run.path.clipped == [share]
    assert run.path.momentum[-1][-1] == pytest.approx(float((c * eta**2).clamp(max=1).max()), rel=1e-5)
    assert run.path.learning_rate[-1][0] == pytest.approx(float(eta.min()), rel=1e-5)


def test_seeds_differ_in_weights_order_and_transforms_and_share_the_images() -> None:
    data = {"name": "cifar10", "size": "sample", "subset": 300, "augmentation": "crop_flip"}
    a, b = (Trainer(make(data=data, seed=seed), CPU) for seed in (0, 1))
    assert torch.equal(a.parts.train.inputs, b.parts.train.inputs)
    assert not torch.equal(next(a.model.parameters()), next(b.model.parameters()))
    first, second = (list(trainer.batches(0)) for trainer in (a, b))
    targets = [torch.cat([batch.targets for batch in own]) for own in (first, second)]
    assert not torch.equal(*targets)
    images = [{image.numpy().tobytes() for batch in own for image in batch.inputs} for own in (first, second)]
    assert images[0] != images[1]  # whatever the order


def test_images_are_standardized_and_the_border_is_black() -> None:
    data = {"name": "cifar10", "size": "sample", "augmentation": "crop_flip"}
    parts = Trainer(make(data=data, precision="float64"), CPU).parts
    plain, padded = parts.plain_train[0], parts.train.inputs
    assert plain.mean((0, 2, 3)).abs().max() < 1e-10
    assert (plain.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-10
    assert torch.equal(padded[:, 4:-4, 4:-4].permute(0, 3, 1, 2), plain)
    pixels = load("cifar10", "sample").train_inputs.double()
    black = -pixels.mean((0, 2, 3)) / pixels.std((0, 2, 3), correction=0)
    assert (padded[:, 0, 0] - black).abs().max() < 1e-10


def test_precise_statistics_average_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"name": "mlp", "hidden": (16,), "normalization": "batch"}
    trainer = Trainer(make(model=model, batch_size=100), CPU)
    final, seen = trainer._final, []

    def spy() -> Any:
        seen.append(trainer.model[2].running_mean.clone())  # type: ignore[index]
        return final()

    monkeypatch.setattr(trainer, "_final", spy)
    trainer.run()
    features = trainer.model[1](trainer.model[0](trainer.parts.train.inputs)).detach()  # type: ignore[index]
    assert torch.allclose(seen[-1], features.mean(0), atol=1e-5)
    assert not torch.allclose(seen[-1], features[:100].mean(0), atol=1e-3)  # of a part of the images
    assert not torch.allclose(seen[0], features.mean(0), atol=1e-3)  # the running ones


def test_through_the_config_alpha_0_is_sgd() -> None:
    def losses(**optimizer: Any) -> list[float]:
        return train(make(precision="float64", optimizer=optimizer), CPU).curves.train_loss

    zero, one = (losses(name="svrg", base=RULES["SGD"], alpha=alpha) for alpha in (0.0, 1.0))
    assert zero == losses(**RULES["SGD"])
    assert abs(one[-1] / zero[-1] - 1) > 1e-4


def test_curve_images_are_a_permutations_first_whatever_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varred.train.CURVE_IMAGES", 50)
    one, other = (Trainer(make(seed=seed), CPU).parts for seed in (0, 1))
    assert torch.equal(one.curve[0], other.curve[0])
    assert not torch.equal(one.curve[0], one.plain_train[0][:50])


def test_a_subset_is_no_prefix() -> None:
    parts, whole = (
        Trainer(make(data={"name": "mnist", "size": "sample", "subset": count}), CPU).parts for count in (300, 2000)
    )
    assert not torch.equal(parts.plain_train[0], whole.plain_train[0][:300])


def test_precise_statistics_are_of_the_last_epochs_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(make(model={"name": "mlp", "hidden": (16,), "normalization": "batch"}), CPU)
    batches, asked = trainer.batches, []
    monkeypatch.setattr(trainer, "batches", lambda epoch, size=None: (asked.append(epoch), batches(epoch, size))[1])
    trainer.run()
    assert asked == [0, 1, 2, 2]


def test_dropout_draws_other_masks_in_each_epoch() -> None:
    trainer, states = Trainer(make(), CPU), []
    for epoch in (0, 1, 0):
        trainer.begin(epoch)
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[0], states[1])


def test_seconds_are_those_of_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = [0.0], SVRG.snapshot

    def snapshot(self: SVRG, *arguments: Any) -> None:
        clock[0] += 10
        taken(self, *arguments)

    def measured(*arguments: Any, **options: Any) -> Any:
        clock[0] += 100
        return gradient_noise(*arguments, **options)

    monkeypatch.setattr(SVRG, "snapshot", snapshot)
    monkeypatch.setattr("varred.train.gradient_noise", measured)
    monkeypatch.setattr("varred.train.time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=lambda: clock[0]))
    watch = Observation(epochs=(0,), fractions=(0.5, 1.0))
    spent = train(make("SVRG"), CPU, observation=watch).seconds
    assert (spent.steps, spent.snapshots, spent.evaluation) == (0, 20, 200)  # snapshots at epochs 0 and 2


def test_twins_differ_and_a_fingerprint_has_20_losses() -> None:
    run = train(make(epochs=1), CPU)
    assert len({tuple(_losses(run, CPU, False, twin)) for twin in range(4)}) == 4
    assert len(train(make(batch_size=8, epochs=1), CPU).fingerprint) == 20


def test_a_killed_run_from_metainit_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varred.train.CHECKPOINT_SECONDS", -1.0)
    config = make(initialization={"name": "metainit", "steps": 2, "batch_size": 4})
    whole, checkpoint = train(config, CPU), tmp_path / "run.pt"

    def kill(epoch: int, _: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, CPU, checkpoint=checkpoint, progress=kill)
    assert essence(train(config, CPU, checkpoint=checkpoint)) == essence(whole)


def test_a_checkpoint_holds_all_progress(tmp_path: Path) -> None:
    trainer, other = Trainer(make(), CPU), Trainer(make(), CPU)
    seconds = dict.fromkeys(trainer.state.seconds, 2.5)
    trainer.state = _Progress(epoch=1, samples=300, fingerprint=[1.0], metainit={"samples": 1}, seconds=seconds)
    trainer.save(tmp_path / "run.pt")
    other.load(tmp_path / "run.pt")
    assert vars(other.state) == vars(trainer.state)


def test_a_changed_tree_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"rev-parse": "0123456789ab\n", "status": " M src/varred/train.py\n"}
    monkeypatch.setattr("varred.runs.subprocess.run", lambda arguments, **_: SimpleNamespace(stdout=said[arguments[3]]))
    assert commit.__wrapped__() == "0123456789ab+changes"


def test_two_jobs_have_one_thread_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, asked = make(epochs=1), []
    run = train(config, CPU)
    monkeypatch.setattr(
        "varred.sweep._on_this_machine", lambda configs, execution, *_: (asked.append(execution), iter([run]))[1]
    )
    sweep([config], Store(tmp_path), jobs=2)
    assert asked == [Execution(threads=1)]


def test_a_sweep_observes(tmp_path: Path) -> None:
    watch = Observation(epochs=(0,))
    (run,) = sweep([make("SVRG", epochs=1)], Store(tmp_path), execution=CPU, observation=watch)
    assert run.observed(watch)


def test_a_sweep_resumes_from_its_checkpoint_and_removes_it(tmp_path: Path) -> None:
    config, folder = make(), tmp_path / "checkpoints"
    folder.mkdir()
    Trainer(config, CPU, commit="first").save(folder / f"{config.identity}.pt")
    (run,) = sweep([config], Store(tmp_path / "results"), execution=CPU, checkpoints=folder)
    assert [program.commit for program in run.provenance.earlier] == ["first"]
    assert list(folder.iterdir()) == []
