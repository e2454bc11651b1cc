"""Autocast: a context that the caller holds around whole steps gives what one inside the closure gives."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from varred.optim import STORM, SVRG, Batch

STEPS = 3


def autocast() -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16)


def path(method: str, outside: bool) -> list[Tensor]:
    """The iterates of a few steps; for SVRG with a second snapshot after the first step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [Batch(i, torch.randn(16, 6), torch.randint(3, (16,))) for i in range(STEPS)]

    def closure(batch: Batch) -> Tensor:
        with nullcontext() if outside else autocast():
            logits = model(batch.inputs)
        loss = functional.cross_entropy(logits.float(), batch.targets)
        loss.backward()
        return loss

    iterates = []
    with autocast() if outside else nullcontext():
        optimizer = (
            SVRG(torch.optim.SGD(model.parameters(), lr=0.5))
            if method == "SVRG"
            else STORM(model.parameters(), k=0.3, c=5.0)
        )
        for batch in batches:
            if isinstance(optimizer, SVRG) and batch.index < 2:
                optimizer.snapshot(batches, closure)
            optimizer.step(batch, closure)
            iterates.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return iterates


@pytest.mark.parametrize("method", ["SVRG", "STORM"])
def test_a_context_around_the_steps_gives_the_same_iterates(method: str) -> None:
    inside, outside = path(method, outside=False), path(method, outside=True)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("method", ["SVRG", "STORM"])
def test_a_context_around_everything_serves_no_stale_casts(method: str) -> None:
    def run(outside: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        batches = [Batch(i, torch.randn(16, 6), torch.randint(3, (16,))) for i in range(3)]
        inside = lambda: nullcontext() if outside else torch.autocast("cpu", torch.bfloat16)  # noqa: E731

        def closure(batch: Batch) -> Tensor:
            with inside():
                logits = model(batch.inputs)
            loss = functional.cross_entropy(logits.float(), batch.targets)
            loss.backward()
            return loss

        seen = []
        with torch.autocast("cpu", torch.bfloat16) if outside else nullcontext():
            if method == "SVRG":
                optimizer = SVRG(torch.optim.SGD(model.parameters(), lr=0.5))
                optimizer.snapshot(batches, closure)
            else:
                optimizer = STORM(model.parameters(), k=0.3, c=5.0)
            for batch in batches:
                optimizer.step(batch, closure)
                with inside():  # with gradients: only then are casts kept
                    seen.append(model(batches[0].inputs).detach().float())
                seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return seen

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))
