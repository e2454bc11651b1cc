"""SVRG: identities, exact agreement with the literal reference, and what each false variant breaks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from conftest import Problem, partition
from varred.optim import SVRG, Batch, reference
from varred.optim.batch import take_gradients

EPOCHS, EVERY = 8, 3


def snapshot(problem: Problem, optimizer: SVRG, parts: list[torch.Tensor]) -> None:
    optimizer.snapshot([problem.batch(i, part) for i, part in enumerate(parts)], problem.closure)


def estimate(problem: Problem, optimizer: SVRG, part: torch.Tensor) -> torch.Tensor:
    """The direction that the base optimizer (SGD with learning rate 1) steps against; the iterate is put back."""
    before = problem.vector()
    optimizer.step(problem.batch(0, part), problem.closure)
    v = before - problem.vector()
    problem.load(before)
    return v


def plain(problem: Problem) -> SVRG:
    return SVRG(torch.optim.SGD(problem.parameters, lr=1.0))


def test_full_gradient_weights_a_short_last_batch_by_its_size(problem: Problem) -> None:
    optimizer, parts = plain(problem), partition(0)
    snapshot(problem, optimizer, parts)
    mu = torch.cat([g.flatten() for g in optimizer.full_gradient])
    exact = problem.gradient(problem.vector(), torch.arange(50))
    unweighted = torch.stack([problem.gradient(problem.vector(), part) for part in parts]).mean(0)
    assert (mu - exact).abs().max() < 1e-15
    assert (unweighted - exact).abs().max() > 1e-4  # the mean of batch means is another vector


def test_a_size_taken_from_the_tuple_is_refused(problem: Problem) -> None:
    pairs = [(problem.inputs[part], problem.targets[part]) for part in partition(0)]

    def closure(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        loss = functional.cross_entropy(problem.model(pair[0]), pair[1])
        loss.backward()
        return loss

    with pytest.raises(TypeError, match="does not say how many samples"):
        plain(problem).snapshot(pairs, closure)
    with pytest.raises(ValueError, match="a batch of 0 samples"):
        plain(problem).snapshot([problem.batch(0, torch.arange(0))], problem.closure)
    sized = SVRG(torch.optim.SGD(problem.parameters, lr=1.0), size=lambda pair: len(pair[1]))
    sized.snapshot(pairs, closure)
    mu = torch.cat([g.flatten() for g in sized.full_gradient])
    assert (mu - problem.gradient(problem.vector(), torch.arange(50))).abs().max() < 1e-15
    wrong = SVRG(torch.optim.SGD(problem.parameters, lr=1.0), size=len)  # len of a pair is 2
    wrong.snapshot(pairs, closure)
    assert (torch.cat([g.flatten() for g in wrong.full_gradient]) - mu).abs().max() > 1e-4


def test_a_closure_that_zeroes_gradients_gives_the_same_full_gradient_and_step(problem: Problem) -> None:
    start, batches = problem.vector(), [problem.batch(i, part) for i, part in enumerate(partition(0))]

    def zeroing(batch: Batch) -> torch.Tensor:
        problem.model.zero_grad()
        return problem.closure(batch)

    found = []
    for closure in (problem.closure, zeroing):
        problem.load(start)
        optimizer = plain(problem)
        optimizer.snapshot(batches, closure)
        problem.load(start + 0.3)
        optimizer.step(batches[0], closure)
        found.append((torch.cat([g.flatten() for g in optimizer.full_gradient]), problem.vector()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_estimate_is_the_full_gradient_at_the_snapshot(problem: Problem) -> None:
    optimizer, parts = plain(problem), partition(0)
    snapshot(problem, optimizer, parts)
    mu = torch.cat([g.flatten() for g in optimizer.full_gradient])
    for part in parts:
        assert (estimate(problem, optimizer, part) - mu).abs().max() < 1e-15
        assert (problem.gradient(problem.vector(), part) - mu).abs().max() > 1e-3  # SGD's estimate is not


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_weighted_mean_of_the_estimate_is_the_full_gradient_anywhere(problem: Problem, alpha: float) -> None:
    parts = partition(0)
    optimizer = SVRG(torch.optim.SGD(problem.parameters, lr=1.0), alpha=alpha)
    snapshot(problem, optimizer, parts)
    problem.load(problem.vector() + 0.3)
    exact = problem.gradient(problem.vector(), torch.arange(50))
    estimates = [estimate(problem, optimizer, part) for part in parts]
    weighted = sum(len(part) / 50 * v for part, v in zip(parts, estimates, strict=True))
    assert (weighted - exact).abs().max() < 1e-14
    assert (torch.stack(estimates).mean(0) - exact).abs().max() > 1e-4  # the unweighted mean is not


def test_50_steps_agree_with_the_reference_with_momentum_and_weight_decay(problem: Problem) -> None:
    epochs = [[(part, len(part)) for part in partition(epoch)] for epoch in range(EPOCHS)]
    start = problem.vector()
    settings = {"learning_rate": 0.3, "every": EVERY, "momentum": 0.5, "weight_decay": 0.01}
    path = reference.svrg(problem.gradient, start, epochs, **settings)
    optimizer = SVRG(torch.optim.SGD(problem.parameters, lr=0.3, momentum=0.5, weight_decay=0.01))
    step = 0
    for epoch, parts in enumerate(epochs):
        if epoch % EVERY == 0:
            snapshot(problem, optimizer, [part for part, _ in parts])
        for part, _ in parts:
            optimizer.step(problem.batch(0, part), problem.closure)
            step += 1
            assert (problem.vector() - path[step]).abs().max() < 1e-12
    assert step >= 50
    # False variants leave the path: no weight decay, another snapshot period, one size for all batches.
    for false in ({**settings, "weight_decay": 0.0}, {**settings, "every": 1}):
        assert (reference.svrg(problem.gradient, start, epochs, **false)[-1] - path[-1]).abs().max() > 1e-3
    unweighted = [[(part, 1) for part, _ in parts] for parts in epochs]
    assert (reference.svrg(problem.gradient, start, unweighted, **settings)[-1] - path[-1]).abs().max() > 1e-5


def test_a_resumed_run_equals_one_never_stopped_bit_for_bit(make_problem: Callable[..., Problem]) -> None:
    def run(stop: bool) -> torch.Tensor:
        problem = make_problem()
        optimizer = SVRG(torch.optim.SGD(problem.parameters, lr=0.2, momentum=0.9))
        snapshot(problem, optimizer, partition(0))
        for step, part in enumerate(partition(1)):
            if stop and step == 3:
                saved, weights = optimizer.state_dict(), problem.vector()
                problem = make_problem()
                problem.load(weights)
                optimizer = SVRG(torch.optim.SGD(problem.parameters, lr=0.2, momentum=0.9))
                optimizer.load_state_dict(saved)
            optimizer.step(problem.batch(0, part), problem.closure)
        return problem.vector()

    assert torch.equal(run(stop=True), run(stop=False))


def test_the_state_holds_alpha_and_older_states_leave_it(problem: Problem) -> None:
    half = SVRG(torch.optim.SGD(problem.parameters, lr=0.2), alpha=0.5)
    snapshot(problem, half, partition(0))
    state = half.state_dict()
    other = plain(problem)
    other.load_state_dict(state)
    assert other.alpha == 0.5
    older = plain(problem)
    older.load_state_dict({key: value for key, value in state.items() if key != "alpha"})
    assert older.alpha == 1.0


def test_a_snapshot_of_other_parameters_is_refused_and_changes_nothing(problem: Problem) -> None:
    optimizer = plain(problem)
    snapshot(problem, optimizer, partition(0))
    state = optimizer.state_dict()
    for point, message in (
        ([v.flatten() for v in state["point"]], r"point\[0\] has shape \(20,\), the parameter has \(4, 5\)"),
        (state["point"][:3], "point has 3 tensors, the optimizer has 4 parameters"),
    ):
        fresh = plain(problem)
        with pytest.raises(ValueError, match=message):
            fresh.load_state_dict({**state, "point": point, "alpha": 0.5})
        assert fresh.alpha == 1.0
        assert fresh.snapshot_point == []
    with pytest.raises(ValueError, match="without the other"):
        plain(problem).load_state_dict({**state, "full_gradient": []})


def test_batch_normalization_statistics_are_those_of_the_iterate_alone(make_problem: Callable[..., Problem]) -> None:
    def statistics(reset: bool, only_iterate: bool = False) -> torch.Tensor:
        problem = make_problem(nn.BatchNorm1d(4))
        buffers = problem.model.buffers() if reset else ()
        optimizer = SVRG(torch.optim.SGD(problem.parameters, lr=1.0), buffers=buffers)
        before = [b.clone() for b in problem.model.buffers()]
        snapshot(problem, optimizer, partition(0))
        if reset:  # a snapshot pass leaves no trace
            assert all(torch.equal(a, b) for a, b in zip(before, problem.model.buffers(), strict=True))
        problem.load(problem.vector() + 0.5)
        if only_iterate:
            problem.closure(problem.batch(0, partition(1)[0]))
        else:
            optimizer.step(problem.batch(0, partition(1)[0]), problem.closure)
        return torch.cat([b.double().flatten() for b in problem.model.buffers()])

    expected = statistics(reset=True, only_iterate=True)
    assert torch.equal(statistics(reset=True), expected)
    assert not torch.allclose(statistics(reset=False), expected)


def test_dropout_draws_the_same_mask_at_both_points(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(nn.Dropout(0.5))
    optimizer = plain(problem)
    optimizer.snapshot([problem.batch(0, torch.arange(50))], problem.closure)
    mu = torch.cat([g.flatten() for g in optimizer.full_gradient])
    torch.manual_seed(5)
    assert (estimate(problem, optimizer, torch.arange(8)) - mu).abs().max() < 1e-15
    # The state moves on by one draw, whatever was evaluated: the paired SGD run sees the same masks.
    torch.manual_seed(5)
    problem.closure(problem.batch(0, torch.arange(8)))
    after_sgd = torch.rand(1)
    torch.manual_seed(5)
    estimate(problem, optimizer, torch.arange(8))
    assert torch.equal(torch.rand(1), after_sgd)


@pytest.mark.parametrize("out", ["frozen", "unreached"])
def test_what_gets_no_gradient_is_left_out_of_the_step(make_problem: Callable[..., Problem], out: str) -> None:
    def run(alpha: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        problem = make_problem()
        aside = problem.parameters[1] if out == "frozen" else nn.Parameter(torch.ones(3))
        aside.requires_grad_(out != "frozen")
        parameters = problem.parameters + ([aside] if out == "unreached" else [])
        base = torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=0.1)
        optimizer = base if alpha is None else SVRG(base, alpha=alpha)
        before = aside.detach().clone()
        if isinstance(optimizer, SVRG):
            snapshot(problem, optimizer, partition(0))
        for part in partition(1):
            if isinstance(optimizer, SVRG):
                optimizer.step(problem.batch(0, part), problem.closure)
            else:
                optimizer.zero_grad()
                problem.closure(problem.batch(0, part))
                optimizer.step()
        return problem.vector(), aside.detach() - before

    (plain_sgd, _), (without, _), (corrected, moved) = run(None), run(0.0), run(1.0)
    assert torch.equal(without, plain_sgd)
    assert not torch.equal(corrected, plain_sgd)
    assert not moved.any()


def test_persistent_state_is_two_parameter_copies(problem: Problem) -> None:
    optimizer = plain(problem)
    snapshot(problem, optimizer, partition(0))
    state = optimizer.state_dict()
    extra = sum(t.numel() for t in [*state["point"], *state["full_gradient"]])
    assert extra == 2 * sum(problem.sections)
    assert not state["base"]["state"]


def test_errors_say_what_to_do(problem: Problem) -> None:
    with pytest.raises(RuntimeError, match="call snapshot"):
        plain(problem).step(problem.batch(0, torch.arange(8)), problem.closure)
    with pytest.raises(ValueError, match="at least one batch"):
        plain(problem).snapshot([], problem.closure)
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        SVRG(torch.optim.SGD(problem.parameters, lr=1.0), alpha=float("nan"))
    with pytest.raises(TypeError, match="LBFGS evaluates its closure several times"):
        SVRG(torch.optim.LBFGS(problem.parameters))
    optimizer = plain(problem)
    snapshot(problem, optimizer, partition(0))
    before = problem.vector()

    def broken(_: Batch) -> torch.Tensor:
        raise KeyboardInterrupt

    problem.load(before + 1)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(problem.batch(0, torch.arange(8)), broken)
    assert torch.equal(problem.vector(), before + 1)  # the iterate is back after an interrupted step


def test_a_full_gradient_in_half_precision_is_a_mean_of_any_number_of_batches() -> None:
    w = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = SVRG(torch.optim.SGD([w], lr=1.0), size=lambda _: 32)

    def closure(slope: float) -> torch.Tensor:
        loss = slope * w.sum()
        loss.backward()
        return loss

    optimizer.snapshot([2.0] * 1500, closure)  # summed in bfloat16 it would stop at 0.34
    assert torch.equal(optimizer.full_gradient[0], torch.full_like(w, 2.0))


def test_a_parameter_added_after_the_snapshot_asks_for_another_and_moves_nothing(problem: Problem) -> None:
    optimizer = plain(problem)
    snapshot(problem, optimizer, partition(0))
    problem.load(problem.vector() + 1)
    before = problem.vector()
    optimizer.base.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(RuntimeError, match="not those of the snapshot: take another"):
        optimizer.step(problem.batch(0, torch.arange(8)), problem.closure)
    assert torch.equal(problem.vector(), before)
    snapshot(problem, optimizer, partition(0))
    optimizer.step(problem.batch(0, torch.arange(8)), problem.closure)
    assert not torch.equal(problem.vector(), before)


def test_any_base_optimizer_takes_the_estimate(problem: Problem) -> None:
    alone, part = copy.deepcopy(problem), partition(0)[0]

    def adamw(gradient: torch.Tensor) -> torch.Tensor:
        """What AdamW itself makes of a gradient in its first step."""
        own = copy.deepcopy(alone)
        for parameter, piece in zip(own.parameters, gradient.split(own.sections), strict=True):
            parameter.grad = piece.view_as(parameter).clone()
        torch.optim.AdamW(own.parameters, lr=0.01, eps=1e-2).step()
        return own.vector()

    optimizer = SVRG(torch.optim.AdamW(problem.parameters, lr=0.01, eps=1e-2))
    snapshot(problem, optimizer, partition(0))
    mu = torch.cat([g.flatten() for g in optimizer.full_gradient])
    optimizer.step(problem.batch(0, part), problem.closure)
    assert (problem.vector() - adamw(mu)).abs().max() < 1e-12  # at the snapshot the estimate is mu
    assert (problem.vector() - adamw(alone.gradient(alone.vector(), part))).abs().max() > 1e-4


def test_gradients_that_are_views_of_a_bucket_are_copied() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    bucket = torch.zeros(5)  # as DistributedDataParallel keeps it
    taken = []
    for value in (1.0, 2.0):
        w.grad = bucket[:3]
        bucket.fill_(value)
        taken += take_gradients([w])
    assert [float(gradient[0]) for gradient in taken] == [1.0, 2.0]


def test_a_parameter_unfrozen_after_the_snapshot_asks_for_another(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem()
    problem.parameters[0].requires_grad_(False)
    optimizer = plain(problem)
    snapshot(problem, optimizer, partition(0))
    state = copy.deepcopy(optimizer.state_dict())
    problem.parameters[0].requires_grad_(True)
    resumed = plain(problem)
    resumed.load_state_dict(state)
    for one in (optimizer, resumed):
        with pytest.raises(RuntimeError, match="unfrozen since the snapshot"):
            one.step(problem.batch(0, partition(0)[0]), problem.closure)
    snapshot(problem, optimizer, partition(0))
    assert problem.parameters[0].detach().equal(optimizer.snapshot_point[0])
    optimizer.step(problem.batch(0, partition(0)[0]), problem.closure)
    assert not problem.parameters[0].detach().equal(optimizer.snapshot_point[0])


def test_gradients_that_the_caller_has_left_do_not_count(problem: Problem) -> None:
    start, ends = problem.vector(), []
    for leave in (problem.model.zero_grad, lambda: problem.closure(problem.batch(0, torch.arange(20)))):
        problem.load(start)
        problem.model.zero_grad()
        optimizer = plain(problem)
        leave()
        snapshot(problem, optimizer, partition(0))
        problem.load(start + 0.3)
        leave()
        optimizer.step(problem.batch(0, partition(0)[0]), problem.closure)
        ends.append(problem.vector())
    assert torch.equal(*ends)


def test_a_snapshot_needs_no_grad_mode_and_leaves_the_random_state(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(nn.Dropout(0.5))
    before = torch.get_rng_state()
    with torch.no_grad():
        snapshot(problem, plain(problem), partition(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_reference_agrees_for_another_coefficient(problem: Problem) -> None:
    epochs = [[(part, len(part)) for part in partition(epoch)] for epoch in range(3)]
    path = reference.svrg(problem.gradient, problem.vector(), epochs, 0.3, alpha=0.5)
    optimizer = SVRG(torch.optim.SGD(problem.parameters, lr=0.3), alpha=0.5)
    for parts in epochs:
        snapshot(problem, optimizer, [part for part, _ in parts])
        for part, _ in parts:
            optimizer.step(problem.batch(0, part), problem.closure)
    assert (problem.vector() - path[-1]).abs().max() < 1e-12
