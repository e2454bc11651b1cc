"""Small problems in float64 that the tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from varred.optim import Batch


@dataclass
class Problem:
    """A classifier on 50 points, as a module and as a function of one flat vector."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def sections(self) -> list[int]:
        return [p.numel() for p in self.parameters]

    def vector(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters]).clone()

    def load(self, vector: Tensor) -> None:
        with torch.no_grad():
            for parameter, part in zip(self.parameters, vector.split(self.sections), strict=True):
                parameter.copy_(part.view_as(parameter))

    def batch(self, index: int, part: Tensor) -> Batch:
        return Batch(index, self.inputs[part], self.targets[part])

    def closure(self, batch: Batch) -> Tensor:
        loss = functional.cross_entropy(self.model(batch.inputs), batch.targets)
        loss.backward()
        return loss

    def gradient(self, vector: Tensor, part: Tensor) -> Tensor:
        """The mean gradient over the samples ``part`` at ``vector``, by autograd on a functional call."""
        leaves = [
            piece.view_as(p).detach().requires_grad_()
            for piece, p in zip(vector.split(self.sections), self.parameters, strict=True)
        ]
        named = dict(zip(dict(self.model.named_parameters()), leaves, strict=True))
        logits = torch.func.functional_call(self.model, named, (self.inputs[part],))
        loss = functional.cross_entropy(logits, self.targets[part])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])


@pytest.fixture(autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def make_problem(float64: None) -> Callable[..., Problem]:
    def make(*extra: nn.Module) -> Problem:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), *extra, nn.Tanh(), nn.Linear(4, 3))
        return Problem(model, torch.randn(50, 5), torch.randint(3, (50,)))

    return make


@pytest.fixture
def problem(make_problem: Callable[..., Problem]) -> Problem:
    return make_problem()


def partition(seed: int, size: int = 8, count: int = 50) -> list[Tensor]:
    """One epoch's batches of indices; the last one is short."""
    return list(torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(size))
