"""From-scratch rules are torch's where torch has them; each check has a named false variant that it tells apart."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from varred.optim import reference

STEPS = 100
START = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64)


def loss(w: Tensor) -> Tensor:
    """A smooth function with coupled variables and three curvatures."""
    return torch.log(torch.cosh(w[0])) + 0.5 * (w[1] - 0.3 * w[0] ** 2) ** 2 + 0.05 * (w[2] - w[1]) ** 2


gradient = torch.func.grad(loss)


def with_torch(optimizer: type[torch.optim.Optimizer], **options: Any) -> list[Tensor]:
    w = START.clone().requires_grad_()
    rule = optimizer([w], **options)
    path = [w.detach().clone()]
    for _ in range(STEPS):
        rule.zero_grad()
        loss(w).backward()
        rule.step()
        path.append(w.detach().clone())
    return path


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


RULES: dict[str, tuple[Callable[[], list[Tensor]], Callable[[], list[Tensor]], Callable[[], list[Tensor]]]] = {
    # name: (ours, torch's, a named false variant)
    "gradient descent": (
        lambda: reference.gradient_descent(gradient, START, STEPS, 0.1),
        lambda: with_torch(torch.optim.SGD, lr=0.1),
        lambda: reference.heavy_ball(gradient, START, STEPS, 0.1, 0.01),
    ),
    "stochastic gradients": (
        lambda: reference.sgd(lambda w, i: gradient(w) * (1 + 0 * i), START, range(STEPS), 0.1),
        lambda: with_torch(torch.optim.SGD, lr=0.1),
        lambda: reference.sgd(lambda w, i: gradient(w), START, range(STEPS), lambda k: 0.1 / k),
    ),
    "heavy ball": (
        lambda: reference.heavy_ball(gradient, START, STEPS, 0.05, 0.9),
        lambda: with_torch(torch.optim.SGD, lr=0.05, momentum=0.9),
        lambda: with_torch(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=0.9),  # a mean, not a sum, of gradients
    ),
    "AdaGrad": (
        lambda: reference.adagrad(gradient, START, STEPS, 0.1),
        lambda: with_torch(torch.optim.Adagrad, lr=0.1),
        lambda: with_torch(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.1),
    ),
    "RMSProp": (
        lambda: reference.rmsprop(gradient, START, STEPS, 0.01),
        lambda: with_torch(torch.optim.RMSprop, lr=0.01),
        lambda: with_torch(torch.optim.RMSprop, lr=0.01, centered=True),
    ),
    "Adadelta": (
        lambda: reference.adadelta(gradient, START, STEPS),
        lambda: with_torch(torch.optim.Adadelta),
        lambda: with_torch(torch.optim.Adadelta, eps=1e-5),
    ),
    "Adam": (
        lambda: reference.adam(gradient, START, STEPS, 0.01),
        lambda: with_torch(torch.optim.Adam, lr=0.01),
        lambda: with_torch(torch.optim.NAdam, lr=0.01),  # with Nesterov's look-ahead in the first moment
    ),
    "AdaMax": (
        lambda: reference.adamax(gradient, START, STEPS),
        lambda: with_torch(torch.optim.Adamax),
        lambda: with_torch(torch.optim.Adamax, betas=(0.9, 0.99)),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rule_agrees_with_torch_over_100_steps(name: str) -> None:
    ours, theirs, false = RULES[name]
    assert apart(ours(), theirs()) < 1e-10
    assert apart(false(), theirs()) > 1e-6, "the comparison has no teeth"


def test_torch_iterates_nesterovs_extrapolated_points() -> None:
    """torch's phi_k is y_k = w_k + beta (w_k - w_{k-1}); equal names would compare different points."""
    eta, beta = 0.05, 0.9
    path = reference.nesterov(gradient, START, STEPS, eta, beta)
    theirs = with_torch(torch.optim.SGD, lr=eta, momentum=beta, nesterov=True)
    extrapolated = [START, *(w + beta * (w - before) for before, w in pairwise(path))]
    assert apart(extrapolated, theirs) < 1e-10
    assert apart(path, theirs) > 1e-3, "the comparison has no teeth"


def test_eps_inside_the_root_is_another_optimizer_where_gradients_are_tiny() -> None:
    """Sources 002 and 004 print RMSProp's eps under the root: a floor of 1e-4, not of 1e-8, at eps = 1e-8."""
    small = lambda w: 1e-6 * gradient(w)  # noqa: E731
    outside = reference.rmsprop(small, START, STEPS, 0.01)
    inside = reference.rmsprop(small, START, STEPS, 0.01, eps_inside=True)
    assert apart(inside, outside) > 0.1


POINTS = torch.tensor([[1.0, 0.5], [-2.0, 1.0], [0.3, -1.5], [0.7, 2.0], [-0.4, 0.2]], dtype=torch.float64)
ETA = 0.3


def sample_gradient(w: Tensor, batch: tuple[int, ...]) -> Tensor:
    """The mean gradient of log cosh <x_i, w> over a batch of 5 points."""
    x = POINTS[list(batch)]
    return (torch.tanh(x @ w)[:, None] * x).mean(0)


def whole(w: Tensor) -> Tensor:
    return sample_gradient(w, tuple(range(5)))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_streaming_svrg_with_fresh_batches_is_unbiased_over_mega_batches(size: int) -> None:
    """Over all mega-batches and inner draws the mean of v is the mean of grad F(w); SCSG's inner draws bias it."""
    w = torch.tensor([0.8, -0.6], dtype=torch.float64)

    def means(fresh: bool) -> tuple[Tensor, Tensor, Tensor]:
        estimates, gradients = [], []
        for mega in combinations(range(5), size):
            for i in range(5) if fresh else mega:
                inner = [
                    (0,),
                    (i,),
                ]  # at the first step w is the snapshot: v is the mega-batch's mean whatever is drawn
                path = reference.streaming_svrg(sample_gradient, w, [([(j,) for j in mega], inner)], ETA)
                estimates.append(torch.stack([(a - b) / ETA for a, b in pairwise(path)]))
                gradients.append(whole(path[1]))
        first, second = torch.stack(estimates).mean(0)
        return first, second, torch.stack(gradients).mean(0)

    first, second, exact = means(fresh=True)
    assert (first - whole(w)).abs().max() < 1e-15
    assert (second - exact).abs().max() < 1e-15
    assert (exact - whole(w)).abs().max() > 1e-2  # the point has moved
    first, second, exact = means(fresh=False)
    assert (first - whole(w)).abs().max() < 1e-15
    assert (second - exact).abs().max() > 1e-3


def test_streaming_svrg_whose_mega_batch_is_the_whole_set_is_svrg() -> None:
    w = torch.tensor([0.8, -0.6], dtype=torch.float64)
    orders = [[(i,) for i in torch.randperm(5, generator=torch.Generator().manual_seed(k)).tolist()] for k in range(4)]
    svrg = reference.svrg(sample_gradient, w, [[(batch, 1) for batch in order] for order in orders], ETA)
    streaming = reference.streaming_svrg(sample_gradient, w, [(order, order) for order in orders], ETA)
    part = reference.streaming_svrg(sample_gradient, w, [(order[:4], order) for order in orders], ETA)
    assert len(streaming) == 21
    assert apart(streaming, svrg) < 1e-14
    assert apart(part, svrg) > 1e-2, "the comparison has no teeth"


def test_adagrads_eps_lies_outside_the_root() -> None:
    w = START.clone().requires_grad_()
    rule = torch.optim.Adagrad([w], lr=0.1)
    for _ in range(20):
        rule.zero_grad()
        (1e-6 * loss(w)).backward()
        rule.step()
    assert (reference.adagrad(lambda w: 1e-6 * gradient(w), START, 20, 0.1)[-1] - w.detach()).abs().max() < 1e-10


def test_saga_and_sag_hold_their_table() -> None:
    targets = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    slope = lambda w, i: (i + 1) * (w - targets[i])  # noqa: E731
    start, draws, n = torch.zeros(1, dtype=torch.float64), [0, 2, 2, 1, 0, 1], 3
    for rule, share in ((reference.saga, 1), (reference.sag, n)):
        w, met = start, [start] * n  # the point at which each sample was met last
        for i, ours in zip(draws, rule(slope, start, draws, n, 0.1)[1:], strict=True):
            mean = torch.stack([slope(point, j) for j, point in enumerate(met)]).mean(0)
            v = (slope(w, i) - slope(met[i], i)) / share + mean
            met[i], w = w, w - 0.1 * v
            assert (ours - w).abs().max() < 1e-14
