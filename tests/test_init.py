"""MetaInit: the gradient quotient's value and slope, and what the algorithm changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from varred.init import QuotientError, gradient_quotient, metainit, relative_cost
from varred.models import LeNet
from varred.optim import reference


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(8, 6, generator=noise).double(), torch.randint(3, (8,), generator=noise)


def test_gradient_quotient_agrees_with_the_literal_reference() -> None:
    model = network()
    inputs, targets = batch(1)
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def gradient(w: Tensor) -> Tensor:
        parts = w.split([shape.numel() for shape in shapes])
        named = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        loss = lambda named: functional.cross_entropy(functional_call(model, named, inputs), targets)  # noqa: E731
        return torch.cat([g.flatten() for g in torch.func.grad(loss)(named).values()])

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    literal = reference.gradient_quotient(gradient, flat)
    fast = gradient_quotient(functional.cross_entropy(model(inputs), targets), model.parameters())
    assert abs(fast / literal - 1) < 1e-8  # where g is near 0, the quotient magnifies its rounding errors
    exact = reference.gradient_quotient(gradient, flat, taylor=False)
    assert abs(exact / literal - 1) > 1e-4, "the exact form is another number"


def test_gradient_quotient_of_a_separable_quadratic_is_its_mean_curvature() -> None:
    w = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    h = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64)
    assert abs(gradient_quotient(0.5 * (h * w * w).sum(), [w], eps=1e-14) - h.mean()) < 1e-10
    quotient_of_double = gradient_quotient((h * w * w).sum(), [w], eps=1e-14)
    assert abs(quotient_of_double - 2 * h.mean()) < 1e-10


def test_metainit_agrees_with_the_literal_reference_and_changes_norms_only() -> None:
    model = network()
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = metainit(model, (6,), 3, steps=10, batch_size=8, learning_rate=0.01, seed=4)
    noise = torch.Generator().manual_seed(4)
    batches = [
        (torch.randn(8, 6, generator=noise).double(), torch.randint(3, (8,), generator=noise)) for _ in range(10)
    ]
    biases = {name: p.clone().requires_grad_() for name, p in first.items() if p.dim() == 1}
    weights = [name for name in first if name not in biases]

    def quotient(tensors: list[Tensor], i: tuple[Tensor, Tensor]) -> Tensor:
        named = {**dict(zip(weights, tensors, strict=True)), **biases}
        named = {name: named[name] for name in first}
        loss = functional.cross_entropy(functional_call(model, named, i[0]), i[1])
        return gradient_quotient(loss, named.values())

    literal = reference.metainit(quotient, [first[name] for name in weights], batches, learning_rate=0.01)[-1]
    now = dict(model.named_parameters())
    for name, expected in zip(weights, literal, strict=True):
        assert (now[name] - expected).abs().max() < 1e-10
        assert functional.cosine_similarity(now[name].flatten(), first[name].flatten(), 0) > 1 - 1e-12
        assert abs(now[name].norm() - first[name].norm()) > 1e-3
        assert result.norms[name] == pytest.approx((first[name].norm().item(), now[name].norm().item()))
    for name in biases:
        assert torch.equal(now[name], first[name])


def test_metainit_keeps_norms_positive_where_the_published_rule_turns_weights_around() -> None:
    ratios = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = LeNet(activation="relu")
        first = model[0].weight.detach().clone()
        result = metainit(model, (1, 28, 28), 10, steps=1, batch_size=4, learning_rate=1e3, seed=seed)
        ratios += [after / before for before, after in result.norms.values()]
        assert (model[0].weight * first).sum() > 0
    assert min(ratios) == pytest.approx(0.01, rel=1e-4)  # the published rule's norm would be negative
    assert all(ratio < 0.0101 or ratio > 10 for ratio in ratios)  # at the floor, or far above it


def test_metainit_restores_the_mode_and_ignores_global_randomness() -> None:
    runs = []
    for disturbance in (0, 1):
        model = network().train()
        torch.manual_seed(disturbance)
        runs.append(metainit(model, (6,), 3, steps=3, batch_size=4, seed=9).quotients)
        assert model.training
    assert runs[0] == runs[1]


def test_metainit_leaves_frozen_weights_and_restores_the_mode_after_an_error() -> None:
    model = network().train()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.clone()
    assert list(metainit(model, (6,), 3, steps=2, batch_size=4).norms) == ["2.weight"]
    assert torch.equal(frozen, before)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        metainit(model, (7,), 3, steps=1, batch_size=4)
    assert model.training


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"eps": 0.0}])
def test_out_of_range_arguments_are_one_line(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"metainit needs|eps must be positive"):
        metainit(network(), (6,), 3, **{"steps": 1, **wrong})  # type: ignore[arg-type]


def test_the_guard_of_the_quotient_is_exact_in_double_precision() -> None:
    eps = 0.1  # not a number of single precision
    w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    quotient = gradient_quotient(w.square().sum() / 2, [w], eps=eps)  # g = 2, Hg = 2: |0 / 2.1 - 1|
    assert quotient.item() == 1.0
    quotient = gradient_quotient(w.pow(3).sum(), [w], eps=eps)  # g = 12, Hg = 144: |-132 / 12.1 - 1|
    assert quotient.item() == pytest.approx(132 / 12.1 + 1, rel=1e-15)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="trainable parameters"):
        metainit(nn.Flatten(), (6,), 3, steps=1, batch_size=4)


def test_a_gradient_that_does_not_depend_on_the_weights_has_no_hessian() -> None:
    w, aside = torch.tensor([1.0, -2.0], requires_grad=True), torch.ones(2, requires_grad=True)
    # g - Hg = g on the first, 0 on the second, which the loss doesn't reach: 0 and 1 in the mean.
    assert gradient_quotient((3 * w).sum(), [w], eps=1e-12).item() == pytest.approx(0, abs=1e-6)
    assert gradient_quotient((3 * w).sum(), [w, aside], eps=1e-12).item() == pytest.approx(0.5)


def test_metainit_leaves_a_layer_that_the_loss_does_not_reach() -> None:
    model = network()
    model.aside = nn.Linear(2, 2).double()
    model.forward = lambda inputs: model[2](model[1](model[0](inputs)))  # type: ignore[method-assign, operator]
    before = model.aside.weight.detach().clone()
    result = metainit(model, (6,), 3, steps=3)
    assert torch.equal(model.aside.weight, before)
    first, last = result.norms["0.weight"]
    assert first != last


def test_the_cost_of_a_step_is_that_of_the_trained_weights() -> None:
    model = network()
    whole = relative_cost(model, (6,), 3)
    model[0].weight.requires_grad_(False)
    assert 0 < relative_cost(model, (6,), 3) != whole


def test_metainit_leaves_a_tensor_of_norm_0() -> None:
    model = network()
    nn.init.zeros_(model[2].weight)
    assert list(metainit(model, (6,), 3, steps=2, batch_size=4).norms) == ["0.weight"]
    assert not model[2].weight.any()


def test_metainit_moves_no_statistics() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    metainit(model, (6,), 3, steps=2, batch_size=4)
    assert not model[1].running_mean.any()


def test_the_guards_sign_where_a_gradient_is_exactly_zero() -> None:
    w = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)  # g = (2, 0), Hg = (0, 2)
    quotient = gradient_quotient(w.prod(), [w], eps=0.1)
    assert quotient.item() == pytest.approx((abs(2 / 2.1 - 1) + abs(-2 / 0.1 - 1)) / 2, rel=1e-15)


def test_a_slope_that_is_not_finite_stops_metainit() -> None:
    class Power(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.relu().pow(1.5)  # its third derivative at 0 is NaN

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), Power(), nn.Linear(3, 3))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(QuotientError, match="slope is NaN after 0 steps"):
        metainit(model, (4,), 3, steps=3, batch_size=8)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
