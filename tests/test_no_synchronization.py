"""No step and no snapshot waits for the device.

On the ``meta`` device there are no values, so ``.item()`` and ``bool(tensor)`` raise; on CUDA, torch's own debug mode
raises on every synchronizing call.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adagrad, Adam

from varred.models import MLP, LeNet
from varred.optim import STORM, SVRG, Batch

BUILDERS: dict[str, Callable[[nn.Module], object]] = {
    "SGD": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9),
    "Adam": lambda model: Adam(model.parameters()),
    "AdaGrad": lambda model: Adagrad(model.parameters()),
    "SVRG": lambda model: SVRG(SGD(model.parameters(), lr=0.1), buffers=model.buffers()),
    "SVRG Adam": lambda model: SVRG(Adam(model.parameters()), buffers=model.buffers(), alpha=0.5),
    "STORM global": lambda model: STORM(model.parameters(), buffers=model.buffers()),
    "STORM tensor": lambda model: STORM(model.parameters(), granularity="tensor", buffers=model.buffers()),
    "STORM coordinate": lambda model: STORM(model.parameters(), granularity="coordinate", buffers=model.buffers()),
}


def steps(build: Callable[[nn.Module], object], device: str, model: nn.Module) -> None:
    """A snapshot where there is one, then two steps; the third batch is short."""
    model.to(device)
    optimizer = build(model)
    batches = [
        Batch(i, torch.zeros(n, 1, 28, 28, device=device), torch.zeros(n, dtype=torch.long, device=device))
        for i, n in enumerate((4, 4, 3))
    ]

    def closure(batch: Batch) -> torch.Tensor:
        loss = functional.cross_entropy(model(batch.inputs), batch.targets)
        loss.backward()
        return loss

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        if isinstance(optimizer, SVRG):
            optimizer.snapshot(batches, closure)
        for batch in batches:
            if isinstance(optimizer, SVRG | STORM):
                optimizer.step(batch, closure)
            else:
                optimizer.zero_grad()
                closure(batch)
                optimizer.step()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_snapshot_and_steps_on_meta(name: str, normalization: str) -> None:
    steps(BUILDERS[name], "meta", LeNet(normalization=normalization))


@pytest.mark.parametrize("name", BUILDERS)
def test_steps_of_a_state_loaded_from_the_cpu_on_meta(name: str) -> None:
    model = LeNet()
    optimizer = BUILDERS[name](model)
    steps(lambda _: optimizer, "cpu", model)
    state = optimizer.state_dict()

    def resumed(model: nn.Module) -> object:
        fresh = BUILDERS[name](model)
        fresh.load_state_dict(state)
        return fresh

    steps(resumed, "meta", LeNet())


def test_a_synchronizing_step_fails_on_meta() -> None:
    class Peeking(SGD):
        def step(self, closure: object = None) -> None:
            if self.param_groups[0]["params"][0].grad.norm().item() > 0:
                super().step()

    with pytest.raises(RuntimeError):
        steps(lambda model: Peeking(model.parameters(), lr=0.1), "meta", MLP((784, 10)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; the same path runs on meta above")
@pytest.mark.parametrize("name", BUILDERS)
def test_snapshot_and_steps_under_cuda_sync_debug(name: str) -> None:
    steps(BUILDERS[name], "cuda", LeNet(normalization="batch"))
