"""The streaming measurement against a brute-force table, and what transforms and snapshots do to it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conftest import Problem, partition
from varred.measure import GradientNoise, gradient_noise
from varred.optim import Batch


def pieces(problem: Problem, vector: torch.Tensor) -> list[torch.Tensor]:
    parts = vector.split(problem.sections)
    return [part.view_as(p) for part, p in zip(parts, problem.parameters, strict=True)]


def measure(
    problem: Problem, snapshot: torch.Tensor, mu: torch.Tensor, batches: list[Batch], alpha: float = 1.0
) -> object:
    return gradient_noise(
        problem.parameters,
        pieces(problem, snapshot),
        pieces(problem, mu),
        batches,
        problem.closure,
        alpha=alpha,
        buffers=problem.model.buffers(),
    )


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_it_agrees_with_a_brute_force_table(problem: Problem, alpha: float) -> None:
    parts = partition(3)
    batches = [problem.batch(i, part) for i, part in enumerate(parts)]
    w = problem.vector()
    snapshot, mu = w + 0.3 * torch.randn_like(w), torch.randn_like(w)
    noise = measure(problem, snapshot, mu, batches, alpha)
    weights = torch.tensor([len(part) / 50 for part in parts])
    here = torch.stack([problem.gradient(w, part) for part in parts])
    there = torch.stack([problem.gradient(snapshot, part) for part in parts])

    def variance(rows: torch.Tensor, weights: torch.Tensor) -> float:
        return float((weights * (rows - weights @ rows).square().sum(1)).sum())

    distance = float((w - snapshot).norm())
    assert noise.sgd == pytest.approx(variance(here, weights), rel=1e-8)
    assert noise.centred == pytest.approx(variance(here - alpha * there, weights), rel=1e-8)
    offset = float((alpha * (mu - weights @ there)).square().sum())
    assert noise.offset == pytest.approx(offset, rel=1e-8, abs=0)
    estimate = here - alpha * (there - mu)
    error = float((weights * (estimate - weights @ here).square().sum(1)).sum())  # squared bias included
    assert noise.ratio == pytest.approx(error / variance(here, weights), rel=1e-8)
    assert noise.distance == pytest.approx(distance, rel=1e-8)
    assert noise.curvature == pytest.approx(float(weights @ (here - there).norm(dim=1)) / distance, rel=1e-8)
    # The unweighted table, as published codes take it, is another number where the last batch is short.
    assert abs(variance(here, torch.full((7,), 1 / 7)) / noise.sgd - 1) > 1e-3


def test_at_the_snapshot_nothing_is_left_but_the_offset(problem: Problem) -> None:
    batches = [problem.batch(i, part) for i, part in enumerate(partition(0))]
    w = problem.vector()
    locked = measure(problem, w, problem.gradient(w, torch.arange(50)), batches)
    assert locked.centred < 1e-28
    assert locked.offset < 1e-28
    # Other transforms at the steps than at the snapshot: the centred variance stays 0, the offset doesn't.
    moved = [Batch(b.index, b.inputs + 0.5 * torch.randn_like(b.inputs), b.targets) for b in batches]
    unlocked = measure(problem, w, problem.gradient(w, torch.arange(50)), moved)
    assert unlocked.centred < 1e-28
    assert unlocked.offset > 1e-4


def test_it_changes_nothing(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(nn.BatchNorm1d(4), nn.Dropout(0.5))
    batches = [problem.batch(i, part) for i, part in enumerate(partition(0))]
    w, buffers = problem.vector(), [b.clone() for b in problem.model.buffers()]
    state = torch.get_rng_state()
    measure(problem, w + 1, w, batches)
    assert torch.equal(problem.vector(), w)
    assert all(torch.equal(a, b) for a, b in zip(buffers, problem.model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in problem.parameters)
    with pytest.raises(ValueError, match="at least one batch"):
        measure(problem, w, w, [])


def test_dropout_masks_differ_between_batches_and_agree_within_one(make_problem: Callable[..., Problem]) -> None:
    dropout = nn.Dropout(0.5)
    problem, masks = make_problem(dropout), []
    dropout.register_forward_hook(lambda _module, _inputs, outputs: masks.append(outputs == 0))
    w = problem.vector()
    measure(problem, w + 1, w, [problem.batch(i, part) for i, part in enumerate(partition(0, size=10))])
    here, there = masks[::2], masks[1::2]
    assert len(here) == 5
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert all(not torch.equal(a, b) for i, a in enumerate(here) for b in here[:i])


def test_the_ratio_over_no_noise_is_nan() -> None:
    noise = GradientNoise(sgd=0.0, centred=1.0, offset=0.0, distance=1.0, curvature=1.0, gradient_norm=1.0)
    assert math.isnan(noise.ratio)


def test_gradients_that_the_caller_has_left_do_not_count(problem: Problem) -> None:
    batches = [problem.batch(i, part) for i, part in enumerate(partition(0))]
    point = [p.detach() + 0.1 for p in problem.parameters]
    clean = gradient_noise(problem.parameters, point, point, batches, problem.closure)
    problem.closure(batches[0])
    assert gradient_noise(problem.parameters, point, point, batches, problem.closure) == clean


def test_the_norm_is_the_full_gradients_and_curvature_needs_a_distance(problem: Problem) -> None:
    batches = [problem.batch(i, part) for i, part in enumerate(partition(3))]
    here = [p.detach().clone() for p in problem.parameters]
    away = [p + 0.1 for p in here]
    noise = gradient_noise(problem.parameters, away, away, batches, problem.closure)
    exact = problem.gradient(problem.vector(), torch.arange(50)).norm()
    assert noise.gradient_norm == pytest.approx(float(exact), rel=1e-8)
    assert math.isnan(gradient_noise(problem.parameters, here, here, batches, problem.closure).curvature)


def test_variances_of_single_precision_gradients_are_taken_in_double() -> None:
    w, slopes = nn.Parameter(torch.zeros(1)), 1e3 + torch.randn(200, generator=torch.Generator().manual_seed(0))
    batches = [Batch(i, slope.view(1), torch.zeros(1)) for i, slope in enumerate(slopes)]

    def closure(batch: Batch) -> Tensor:
        loss = (w * batch.inputs).sum()
        loss.backward()
        return loss

    noise = gradient_noise([w], [w.detach()], [w.detach()], batches, closure)
    assert noise.sgd == pytest.approx(float(slopes.double().var(correction=0)), rel=1e-10)
