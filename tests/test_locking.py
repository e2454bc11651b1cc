"""Switches of a run: locking to the snapshot, buffers, observation, state; and the layout that the device prefers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from varred.config import Config, Execution, Observation
from varred.measure import GradientNoise, gradient_noise
from varred.models import resnet18
from varred.models.resnet import Subsample
from varred.optim import SVRG, Batch
from varred.optim.batch import placed, take_gradients
from varred.record import Run
from varred.runs import Store
from varred.train import Trainer, train

CPU = Execution(device="cpu", threads=1)
SGD = {"name": "sgd", "learning_rate": 0.01}
PLAIN = {"name": "mlp", "hidden": (8,)}
BATCH = {**PLAIN, "normalization": "batch"}
KEPT = {"redraw_order": 5, "redraw_transforms": 5}


def make(snapshot: dict[str, Any], model: dict[str, Any] = PLAIN, **changes: Any) -> Config:
    """SVRG on 60 cropped and flipped images: batches of 16, 16, 16 and 12."""
    settings: dict[str, Any] = {
        "data": {"name": "cifar10", "size": "sample", "subset": 60, "augmentation": "crop_flip"},
        "model": model,
        "optimizer": {"name": "svrg", "base": SGD, "snapshot": snapshot},
        "batch_size": 16,
        "epochs": 3,
        "seed": 0,
        "precision": "float64",
    }
    return Config(**{**settings, **changes})


def svrg(trainer: Trainer) -> SVRG:
    assert isinstance(trainer.optimizer, SVRG)
    return trainer.optimizer


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def move(trainer: Trainer) -> None:
    """Leave the snapshot for an arbitrary point."""
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=noise, dtype=p.dtype))


def gradient(trainer: Trainer, batch: Batch) -> Tensor:
    trainer.closure(batch)
    return flat(take_gradients(svrg(trainer).parameters))


def at_snapshot(trainer: Trainer, batch: Batch) -> Tensor:
    with placed(svrg(trainer).parameters, svrg(trainer).snapshot_point):
        return gradient(trainer, batch)


def mean(trainer: Trainer, epoch: int, value: Callable[[Trainer, Batch], Tensor]) -> Tensor:
    """Weigh each batch of an epoch by its size."""
    batches = list(trainer.batches(epoch))
    assert [batch.size for batch in batches] == [16, 16, 16, 12]
    return torch.stack([batch.size / 60 * value(trainer, batch) for batch in batches]).sum(0)


def estimate(trainer: Trainer, batch: Batch) -> Tensor:
    """SVRG's v, written out."""
    mu = flat(svrg(trainer).full_gradient)
    return gradient(trainer, batch) - at_snapshot(trainer, batch) + mu


def moved_since_a_snapshot(config: Config) -> Trainer:
    trainer = Trainer(config, CPU)
    trainer.model.train()
    trainer.snapshot(0)
    move(trainer)
    return trainer


@pytest.mark.parametrize("model", [PLAIN, BATCH, {"name": "resnet18", "width": 1}])
def test_locked_the_mean_of_the_estimates_is_the_steps_full_gradient(model: dict[str, Any]) -> None:
    trainer = moved_since_a_snapshot(make({"every": 5}, model, **KEPT))
    v, exact = mean(trainer, 3, estimate), mean(trainer, 3, gradient)
    assert (v - exact).abs().max() < 1e-12
    assert (exact - flat(svrg(trainer).full_gradient)).abs().max() > 1e-3  # w is not w~
    unweighted = torch.stack([estimate(trainer, batch) for batch in trainer.batches(3)]).mean(0)
    assert (unweighted - exact).abs().max() > 1e-4  # the mean that forgets the short batch is another vector


@pytest.mark.parametrize("model", [PLAIN, BATCH])
def test_unlocked_it_misses_by_the_offset(model: dict[str, Any]) -> None:
    trainer = moved_since_a_snapshot(make({"every": 5}, model))
    mu = flat(svrg(trainer).full_gradient)
    offset = mu - mean(trainer, 3, at_snapshot)
    miss = mean(trainer, 3, estimate) - mean(trainer, 3, gradient)
    assert (miss - offset).abs().max() < 1e-12
    assert offset.norm() > 0.1 * mu.norm()  # to call the unlocked estimate unbiased is the false variant
    optimizer = svrg(trainer)
    noise = gradient_noise(
        optimizer.parameters,
        optimizer.snapshot_point,
        optimizer.full_gradient,
        trainer.batches(3),
        trainer.closure,
        buffers=trainer.model.buffers(),
    )
    assert noise.offset == pytest.approx(float(offset.square().sum()), rel=1e-10)


@pytest.mark.parametrize(("model", "locked"), [(PLAIN, True), (BATCH, False)])
def test_transforms_alone_lock_only_without_batch_normalization(model: dict[str, Any], locked: bool) -> None:
    trainer = moved_since_a_snapshot(make({"every": 5}, model, redraw_transforms=5))
    miss = (mean(trainer, 3, estimate) - mean(trainer, 3, gradient)).abs().max()
    assert miss < 1e-12 if locked else miss > 1e-4  # a redrawn partition normalizes over other batches


def drawn(trainer: Trainer, epoch: int) -> Tensor:
    """What an epoch's order and transforms make of the images."""
    return torch.cat([batch.inputs.flatten(1) for batch in trainer.batches(epoch)])


def snapshots(trainer: Trainer, epochs: int) -> list[int]:
    taken = []
    for epoch in range(epochs):
        before = svrg(trainer).full_gradient
        trainer.snapshot(epoch)
        if svrg(trainer).full_gradient is not before:
            taken.append(epoch)
    return taken


def test_snapshots_and_draws_at_0_and_5_then_never() -> None:
    trainer = Trainer(make({"every": 5, "last": 5}, **KEPT, redraw_last=5), CPU)
    assert snapshots(trainer, 13) == [0, 5]
    first, second = drawn(trainer, 0), drawn(trainer, 5)
    assert all(torch.equal(drawn(trainer, epoch), first) for epoch in range(5))
    assert all(torch.equal(drawn(trainer, epoch), second) for epoch in range(5, 13))
    assert not torch.equal(first, second)
    endless = Trainer(make({"every": 5}, **KEPT), CPU)  # without an end both go on at 10
    assert snapshots(endless, 13) == [0, 5, 10]
    assert not torch.equal(drawn(endless, 10), drawn(endless, 5))


@pytest.mark.parametrize("redraw_last", [0, None])
def test_for_ever_is_one_draw_and_the_steps_see_the_batches_of_the_snapshot(redraw_last: int | None) -> None:
    trainer = Trainer(make({"last": 0}, redraw_last=redraw_last), CPU)
    seen: list[Tensor] = []
    closure = trainer.closure

    def watched(batch: Batch) -> Tensor:
        seen.append(batch.inputs)
        return closure(batch)

    trainer.closure = watched  # type: ignore[method-assign]
    trainer.snapshot(0)
    passed = list(seen)
    seen.clear()
    trainer.epoch(7)
    assert (len(passed), len(seen)) == (4, 8)  # no second snapshot; each step looks twice
    same = all(torch.equal(a, b) for two in (seen[::2], seen[1::2]) for a, b in zip(passed, two, strict=True))
    kept = all(torch.equal(drawn(trainer, epoch), drawn(trainer, 0)) for epoch in range(1, 13))
    assert same is kept is (redraw_last == 0)  # without redraw_last neither


@pytest.mark.parametrize("model", [{"name": "lenet", "normalization": "batch"}, {"name": "resnet18", "width": 2}])
def test_running_statistics_after_a_step_are_those_of_the_iterate_alone(model: dict[str, Any]) -> None:
    def deviation(reset: bool) -> float:
        rule = {"name": "svrg", "base": SGD, "reset_buffers": reset}
        trainer = Trainer(make({}, model, optimizer=rule), CPU)
        alone = copy.deepcopy(trainer.model).train()
        trainer.model.train()
        trainer.snapshot(0)
        move(trainer)
        alone.load_state_dict(dict(trainer.model.named_parameters()), strict=False)
        batch = next(trainer.batches(0))
        trainer.step(batch)
        alone(batch.inputs)
        return max(float((a - b).abs().max()) for a, b in zip(trainer.model.buffers(), alone.buffers(), strict=True))

    assert deviation(reset=True) == 0
    assert deviation(reset=False) > 1e-3


OBSERVATION = Observation(epochs=(0, 1), fractions=(0.5, 1.0))


def essence(run: Run, *excluded: str) -> dict[str, Any]:
    return json.loads(run.model_dump_json(exclude={"seconds", *excluded}))


def test_observing_changes_no_bit_and_a_store_knows_who_was_observed(tmp_path: Path) -> None:
    config, store = make({}, BATCH), Store(tmp_path)
    blind, seen = train(config, CPU), train(config, CPU, observation=OBSERVATION)
    assert essence(blind, "noise") == essence(seen, "noise")
    assert blind.noise == []
    assert [(n.epoch, n.step, n.fraction) for n in seen.noise] == [(0, 2, 0.5), (0, 4, 1.0), (1, 2, 0.5), (1, 4, 1.0)]
    assert all(n.offset < 1e-28 < n.centred for n in seen.noise)  # one snapshot an epoch is locked by nature
    assert store.missing([config, config], OBSERVATION) == [config]
    store.put(blind)
    assert store.missing([config]) == []
    assert store.missing([config], OBSERVATION) == [config]
    store.put(seen)
    assert store.missing([config], OBSERVATION) == []
    assert store.missing([config], Observation(epochs=(2,), fractions=(1.0,))) == [config]
    assert store.missing([config], Observation(epochs=(3,))) == []  # beyond its end there is nothing to observe


def test_observing_without_putting_buffers_back_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make({}, BATCH, epochs=1)
    blind = train(config, CPU)

    def careless(*arguments: Any, alpha: float, buffers: Any) -> GradientNoise:
        return gradient_noise(*arguments)

    monkeypatch.setattr("varred.train.gradient_noise", careless)
    assert essence(train(config, CPU, observation=OBSERVATION), "noise") != essence(blind, "noise")


@pytest.mark.parametrize(
    ("changes", "observation"),
    [
        pytest.param({"optimizer": SGD}, OBSERVATION, id="SGD"),
        pytest.param({}, Observation(epochs=(0,)), id="fractions that fall on one step"),
    ],
)
def test_a_run_made_with_an_observation_holds_it(
    changes: dict[str, Any], observation: Observation, tmp_path: Path
) -> None:
    config, store = make({}, epochs=1, **changes), Store(tmp_path)
    store.put(train(config, CPU, observation=observation))
    assert store.missing([config], observation) == []


def test_an_observed_run_resumes_bit_for_bit_noise_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varred.train.CHECKPOINT_SECONDS", -1.0)
    config, checkpoint = make({"every": 2}, BATCH), tmp_path / "run.pt"
    whole = train(config, CPU, observation=OBSERVATION)

    def kill(epoch: int, _: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt  # epoch 1 is measured, but only epoch 0 is in the checkpoint

    with pytest.raises(KeyboardInterrupt):
        train(config, CPU, checkpoint=checkpoint, progress=kill, observation=OBSERVATION)
    saved = checkpoint.read_bytes()
    assert essence(train(config, CPU, checkpoint=checkpoint, observation=OBSERVATION)) == essence(whole)
    checkpoint.write_bytes(saved)
    assert len(train(config, CPU, checkpoint=checkpoint).noise) == 2  # resumed unobserved: epoch 0's alone


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("base", [SGD, {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9}])
def test_persistent_state_is_two_copies_beside_the_base_optimizers(base: dict[str, Any]) -> None:
    config = make({"every": 2}, optimizer={"name": "svrg", "base": base, "snapshot": {"every": 2}})
    trainer = Trainer(config, CPU, observation=OBSERVATION)
    for epoch in range(3):
        trainer.epoch(epoch)
    copies = sum(p.numel() for p in trainer.model.parameters())
    total, own = (sum(t.numel() for t in tensors(o.state_dict())) for o in (svrg(trainer), svrg(trainer).base))
    assert total - own == 2 * copies
    assert own == (copies if "momentum" in base else 0)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_channels_last_gradients_agree_with_contiguous_ones(width: int, normalization: str) -> None:
    torch.manual_seed(width)
    exact = resnet18(width, normalization, "tanh").double()  # smooth: no kink that rounding could cross
    inputs, targets = torch.randn(12, 3, 32, 32), torch.randint(10, (12,))

    def slopes(layout: torch.memory_format, dtype: torch.dtype) -> Tensor:
        model = copy.deepcopy(exact).to(dtype=dtype, memory_format=layout)
        images = inputs.to(dtype=dtype, memory_format=layout)
        functional.cross_entropy(model(images), targets).backward()
        return flat([p.grad for p in model.parameters() if p.grad is not None]).double()

    reference = slopes(torch.contiguous_format, torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert (slopes(layout, torch.float32) - reference).norm() < 1e-4 * reference.norm()
    assert (slopes(torch.channels_last, torch.float64) - reference).norm() < 1e-12 * reference.norm()


def test_subsampling_before_a_1x1_convolution_is_its_stride(float64: None) -> None:
    torch.manual_seed(0)
    strided = nn.Conv2d(8, 16, 1, stride=2, bias=False)
    dense = nn.Conv2d(8, 16, 1, bias=False)
    dense.load_state_dict(strided.state_dict())

    def slopes(layer: Callable[[Tensor], Tensor], weight: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        output = layer(images)
        return (output, *torch.autograd.grad(output.square().sum(), [images, weight]))

    images = torch.randn(3, 8, 9, 9, requires_grad=True)  # an odd side as well
    ours = slopes(lambda x: dense(Subsample(2)(x)), dense.weight, images)
    theirs = slopes(strided, strided.weight, images)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    odd = slopes(lambda x: dense(x[:, :, 1::2, 1::2]), dense.weight, images[:, :, :8, :8])
    assert not torch.allclose(odd[0], slopes(strided, strided.weight, images[:, :, :8, :8])[0])  # the other phase
