"""STORM: agreement with the literal reference, its limits, and what each false variant breaks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from conftest import Problem, partition
from varred.measure import gradient_noise
from varred.optim import STORM, SVRG, reference

SAMPLES = list(chain.from_iterable(partition(epoch) for epoch in range(8)))
K, C, W0 = 0.3, 20.0, 0.1


def drive(problem: Problem, optimizer: STORM, samples: list[torch.Tensor]) -> list[torch.Tensor]:
    path = [problem.vector()]
    for part in samples:
        optimizer.step(problem.batch(0, part), problem.closure)
        path.append(problem.vector())
    return path


def distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("granularity", ["global", "tensor", "coordinate"])
def test_50_steps_agree_with_the_reference(problem: Problem, granularity: str) -> None:
    start = problem.vector()
    expected = reference.storm(
        problem.gradient, start, SAMPLES, K, C, W0, granularity=granularity, sections=problem.sections
    )
    assert len(SAMPLES) >= 50
    assert distance(drive(problem, STORM(problem.parameters, K, C, W0, granularity), SAMPLES), expected) < 1e-12
    # Another granularity is another method.
    other = {"global": "tensor", "tensor": "coordinate", "coordinate": "global"}[granularity]
    false = reference.storm(problem.gradient, start, SAMPLES, K, C, W0, granularity=other, sections=problem.sections)
    assert distance(expected, false) > 1e-3


def recursion(problem: Problem, start: torch.Tensor, stored: bool, sign: float) -> list[torch.Tensor]:
    """Algorithm 2 with constant step and momentum, or a false form of it.

    ``stored`` keeps the old sample's gradient at the old point; ``sign`` is that of equation 2.10's last gradient.
    """
    path, previous, d, old = [start], start, torch.zeros_like(start), torch.zeros_like(start)
    w, a, eta = start, 0.3, 0.2
    for t, part in enumerate(SAMPLES):
        g = problem.gradient(w, part)
        stale = old if stored else problem.gradient(previous, part)
        d = g if t == 0 else (1 - a) * d + a * g + (1 - a) * (g + sign * stale)
        old, previous, w = g, w, w - eta * d
        path.append(w)
    return path


def test_equation_2_10_with_a_minus_is_algorithm_2_and_false_forms_are_not(problem: Problem) -> None:
    start = problem.vector()
    exact = reference.storm_constant(problem.gradient, start, SAMPLES, 0.2, 0.3)
    assert distance(recursion(problem, start, stored=False, sign=-1), exact) < 1e-12
    assert distance(recursion(problem, start, stored=True, sign=-1), exact) > 1e-3  # the stored gradient
    assert distance(recursion(problem, start, stored=False, sign=1), exact) > 1e-3  # the printed sign


def test_with_a_equal_to_one_it_is_sgd_with_the_shrinking_step(problem: Problem) -> None:
    start = problem.vector()
    path = drive(problem, STORM(problem.parameters, K, c=1e9, w0=W0), SAMPLES)  # a is clipped at 1 throughout
    total, w = 0.0, start
    for part, ours in zip(SAMPLES, path[1:], strict=True):
        g = problem.gradient(w, part)
        total += float(g @ g)
        w = w - K / (W0 + total) ** (1 / 3) * g
        assert (ours - w).abs().max() < 1e-12


def test_with_one_sample_the_estimate_is_the_full_gradient_for_every_a(problem: Problem) -> None:
    everything = [torch.arange(50)] * 20
    optimizer = STORM(problem.parameters, K, c=3.0, w0=W0)
    for part in everything:
        before = problem.vector()
        optimizer.step(problem.batch(0, part), problem.closure)
        rate = optimizer.path()[0][0]
        assert ((before - problem.vector()) / rate - problem.gradient(before, part)).abs().max() < 1e-10


def test_without_clipping_a_exceeds_one(problem: Problem) -> None:
    free = STORM(problem.parameters, 0.1, 100.0, 0.1, clip=False)
    clipped = STORM(problem.parameters, 0.1, 100.0, 0.1)
    with pytest.raises(RuntimeError, match="no step yet"):
        clipped.path()
    for optimizer, largest in ((free, lambda a: a > 1), (clipped, lambda a: a == 1)):
        drive(problem, optimizer, SAMPLES[:1])
        assert largest(max(float(a.max()) for a in optimizer.path()[1]))


def test_a_resumed_run_equals_one_never_stopped_bit_for_bit(make_problem: Callable[..., Problem]) -> None:
    def run(stop: bool) -> torch.Tensor:
        problem = make_problem()
        optimizer = STORM(problem.parameters, K, C, W0, "tensor")
        for step, part in enumerate(SAMPLES[:20]):
            if stop and step == 7:
                saved, weights = optimizer.state_dict(), problem.vector()
                problem = make_problem()
                problem.load(weights)
                optimizer = STORM(problem.parameters, K, C, W0, "tensor")
                optimizer.load_state_dict(saved)
            optimizer.step(problem.batch(0, part), problem.closure)
        return problem.vector()

    assert torch.equal(run(stop=True), run(stop=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0.0}, "k must be positive and finite, got 0.0"),
        ({"c": -1.0}, "c must be finite and not negative, got -1.0"),
        ({"c": math.inf}, "c must be finite and not negative, got inf"),
        ({"w0": 0.0}, "w0 must be positive and finite, got 0.0"),
        ({"granularity": "layer"}, "granularity must be one of global, tensor, coordinate, got 'layer'"),
    ],
)
def test_bad_values_are_named(problem: Problem, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STORM(problem.parameters, **arguments)


def test_a_copy_steps_as_the_original(problem: Problem) -> None:
    optimizer = STORM(problem.parameters, K, C, W0, "tensor", buffers=problem.model.buffers())
    optimizer.step(problem.batch(0, SAMPLES[0]), problem.closure)
    other, its = copy.deepcopy((problem, optimizer))
    for part in SAMPLES[1:4]:
        optimizer.step(problem.batch(0, part), problem.closure)
        its.step(other.batch(0, part), other.closure)
    assert torch.equal(problem.vector(), other.vector())


def test_a_second_group_and_half_precision_are_refused(problem: Problem) -> None:
    optimizer = STORM(problem.parameters)
    with pytest.raises(ValueError, match="pass one parameter group"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.bfloat16"):
        STORM([torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))])


def test_statistics_and_masks_are_those_of_the_iterate_alone(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    optimizer = STORM(problem.parameters, K, C, W0, buffers=problem.model.buffers())
    optimizer.step(problem.batch(0, SAMPLES[0]), problem.closure)
    alone, draws = copy.deepcopy(problem), []
    for step in (
        lambda: optimizer.step(problem.batch(0, SAMPLES[1]), problem.closure),
        lambda: alone.closure(alone.batch(0, SAMPLES[1])),
    ):
        torch.manual_seed(5)
        step()
        draws.append(torch.rand(1))
    assert torch.equal(*draws)
    for ours, theirs in zip(problem.model.buffers(), alone.model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("granularity", ["global", "tensor", "coordinate"])
def test_a_frozen_parameter_stays_and_the_rest_steps_as_if_it_were_not_there(
    make_problem: Callable[..., Problem], granularity: str
) -> None:
    def run(parameters: Callable[[Problem], list[torch.nn.Parameter]]) -> tuple[Problem, STORM]:
        problem = make_problem()
        problem.parameters[0].requires_grad_(False)
        optimizer = STORM(parameters(problem), K, C, W0, granularity)
        drive(problem, optimizer, SAMPLES[:5])
        return problem, optimizer

    (problem, optimizer), (alone, _) = run(lambda p: p.parameters), run(lambda p: p.parameters[1:])
    assert torch.equal(problem.vector(), alone.vector())
    # Frozen on the way it stays as well, and unfrozen it has no estimate.
    held = problem.parameters[1].detach().clone()
    problem.parameters[1].requires_grad_(False)
    drive(problem, optimizer, SAMPLES[5:8])
    assert torch.equal(problem.parameters[1], held)
    problem.parameters[1].requires_grad_(True)
    with pytest.raises(RuntimeError, match="build a new one"):
        optimizer.path()
    with pytest.raises(RuntimeError, match="build a new one"):
        drive(problem, optimizer, SAMPLES[8:9])
    for parameter in problem.parameters:
        parameter.requires_grad_(False)
    with pytest.raises(RuntimeError, match="nothing to step"):
        drive(problem, optimizer, SAMPLES[8:9])


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="complex64"):
        STORM([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


def test_gradients_that_the_caller_has_left_do_not_count_and_losses_are_detached(problem: Problem) -> None:
    start, ends = problem.vector(), []
    for leave in (problem.model.zero_grad, lambda: problem.closure(problem.batch(0, torch.arange(20)))):
        problem.load(start)
        problem.model.zero_grad()
        optimizer = STORM(problem.parameters, K, C, W0)
        for part in SAMPLES[:3]:
            leave()
            assert not optimizer.step(problem.batch(0, part), problem.closure).requires_grad
        ends.append(problem.vector())
    assert torch.equal(*ends)


def test_a_copy_keeps_the_statistics_clean(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(nn.BatchNorm1d(4))
    optimizer = STORM(problem.parameters, 0.3, 20.0, 0.1, "tensor", buffers=problem.model.buffers())
    parts = partition(0)
    optimizer.step(problem.batch(0, parts[0]), problem.closure)
    other, its = copy.deepcopy((problem, optimizer))
    for part in parts[1:4]:
        optimizer.step(problem.batch(0, part), problem.closure)
        its.step(other.batch(0, part), other.closure)
    assert all(torch.equal(a, b) for a, b in zip(problem.model.buffers(), other.model.buffers(), strict=True))


def test_an_unreached_parameter_has_gradient_zero() -> None:
    w, aside = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0]))

    def closure(reached: bool) -> Tensor:
        loss = (w.square() + (aside.square() if reached else 0)).sum() / 2
        loss.backward()
        return loss

    optimizer = STORM([w, aside], k=1.0, c=0.0, w0=1.0, granularity="tensor")
    optimizer.step(False, closure)
    assert aside.item() == 2.0
    assert optimizer.path()[0][1].item() == 1.0  # nothing has been accumulated


@pytest.mark.parametrize("method", ["SVRG", "STORM"])
def test_steps_and_measurements_work_where_gradients_are_off(problem: Problem, method: str) -> None:
    batches = [problem.batch(i, part) for i, part in enumerate(partition(0))]
    with torch.no_grad():
        base = torch.optim.SGD(problem.parameters, lr=0.1)
        optimizer = STORM(problem.parameters) if method == "STORM" else SVRG(base)
        if isinstance(optimizer, SVRG):
            optimizer.snapshot(batches, problem.closure)
        for batch in batches[:2]:
            assert not optimizer.step(batch, problem.closure).requires_grad
        p = problem.parameters
        gradient_noise(p, [v + 1 for v in p], [v + 1 for v in p], batches, problem.closure)


@pytest.mark.parametrize("granularity", ["global", "tensor", "coordinate"])
def test_storms_state_is_two_copies_and_the_accumulators(problem: Problem, granularity: str) -> None:
    optimizer = STORM(problem.parameters, granularity=granularity)
    optimizer.step(problem.batch(0, partition(0)[0]), problem.closure)
    copies, tensors = sum(problem.sections), len(problem.sections)
    held = sum(t.numel() for state in optimizer.state_dict()["state"].values() for t in state.values())
    assert held == 2 * copies + (copies if granularity == "coordinate" else tensors)
