"""MetaInit: rescale a network's initial weights until its gradient changes little over a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from varred.models.layers import evaluating

SMALLEST = 0.01  # share of its initial value below which no norm falls


def gradient_quotient(loss: Tensor, parameters: Iterable[Tensor], eps: float = 1e-5) -> Tensor:
    r"""Return the gradient quotient of a loss, differentiable in the parameters.

    .. math:: \mathrm{GQ} = \frac1N \Bigl\| \frac{g - Hg}{g + \epsilon_s} - 1 \Bigr\|_1, \qquad
        \epsilon_s = \epsilon (2 \cdot 1[g \ge 0] - 1)

    with :math:`g` the gradient and :math:`H` the Hessian over all :math:`N` parameters. :math:`g - Hg` is the Taylor
    form of the gradient after a step of size 1, the one that published code computes.

    A parameter that the loss doesn't reach has :math:`g = Hg = 0` and counts as 1.

    Args:
        loss: a scalar whose graph is twice differentiable.
        parameters: the tensors that count, biases included.
        eps: keeps the denominator away from zero, with the gradient's own sign.

    Returns:
        A scalar tensor, differentiable in the parameters; where the gradient doesn't depend on them, a constant.

    Raises:
        ValueError: ``eps`` is not positive.

    References:
        Dauphin and Schoenholz (2019); source 000, equation 2.13, which has the exact form.

    Example:
        On a separable quadratic it is the mean curvature.

        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = 0.5 * (torch.tensor([0.5, 0.1]) * w ** 2).sum()
        >>> round(gradient_quotient(loss, [w], eps=1e-12).item(), 4)
        0.3

    """
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    tensors = list(parameters)
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
    half_square = sum((0.5 * g.square().sum() for g in gradients), start=loss.new_zeros(()))
    if half_square.requires_grad:
        products = torch.autograd.grad(half_square, tensors, create_graph=True, materialize_grads=True)
    else:  # the gradient doesn't depend on the parameters: H = 0
        products = tuple(torch.zeros_like(g) for g in gradients)
    total = loss.new_zeros(())
    for g, product in zip(gradients, products, strict=True):
        signed = eps * torch.where(g.detach() >= 0, torch.ones_like(g), -torch.ones_like(g))
        total = total + ((g - product) / (g + signed) - 1).abs().sum()
    return total / sum(p.numel() for p in tensors)


def he_normal(model: nn.Module) -> None:
    r"""Draw two-dimensional convolutions and dense layers anew from He's normal distribution, in place; biases are 0.

    .. math:: W \sim \mathcal N(0,\, 2 / \text{fan-in})

    References:
        He et al. (2015), equation 10.

    Example:
        >>> layer = nn.Linear(1000, 1000)
        >>> _ = torch.manual_seed(0)
        >>> he_normal(layer)
        >>> round(layer.weight.var().item() * 1000, 1)
        2.0

    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def relative_cost(model: nn.Module, shape: tuple[int, ...], classes: int) -> float:
    """Return what a step of MetaInit costs, in gradients of the same batch, by floating-point operations.

    Matrix products and convolutions are counted, in forward and in all backward passes.

    Args:
        model: the network.
        shape: of one input, without the batch.
        classes: number of logits.

    Example:
        >>> model = nn.Sequential(nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 4))
        >>> 3 < relative_cost(model, (50,), 4) < 6
        True

    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    inputs = torch.zeros(2, *shape, device=parameters[0].device, dtype=parameters[0].dtype)
    targets = torch.zeros(2, dtype=torch.long, device=parameters[0].device)
    counts = []
    for quotient in (False, True):
        with evaluating(model), FlopCounterMode(display=False) as counter:
            value = functional.cross_entropy(model(inputs), targets)
            if quotient:
                value = gradient_quotient(value, parameters)
            torch.autograd.grad(value, parameters, allow_unused=True)
        counts.append(counter.get_total_flops())
    return float(counts[1] / counts[0])


class QuotientError(ValueError):
    """A gradient quotient is not finite: MetaInit can't go on."""


@dataclass(frozen=True)
class MetaInit:
    """What :func:`metainit` did.

    Attributes:
        quotients: the gradient quotient before each step, each on its own random batch.
        norms: name of each rescaled tensor, with its norm before and after.

    """

    quotients: list[float]
    norms: dict[str, tuple[float, float]]


def metainit(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    *,
    steps: int = 500,
    batch_size: int = 32,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    eps: float = 1e-5,
    seed: int = 0,
) -> MetaInit:
    r"""Rescale the weight tensors of ``model`` in place so that its gradient quotient falls.

    For each tensor :math:`p` of two or more dimensions, with a fresh batch of noise and random labels at each step,

    .. math:: s = \operatorname{sign} \frac{\langle p, \partial \mathrm{GQ} / \partial p \rangle}{\|p\|}, \qquad
        u \leftarrow \beta u - \eta s, \qquad p \leftarrow p\, \frac{\|p\| + u}{\|p\|} .

    That is the sign method with momentum on the *norms*: directions, biases and the affine parameters of normalization
    layers stay as they were drawn, tensors of norm 0 and frozen ones too. A norm isn't let below a hundredth of its
    initial value: published code lets it cross zero, which turns the weights around. The model is in evaluation mode
    meanwhile. No training data are seen.

    Args:
        model: the network, on any device.
        shape: of one input, without the batch.
        classes: number of logits.
        steps: number of updates.
        batch_size: of the noise.
        learning_rate: :math:`\eta`, in units of the norms, whatever these are.
        momentum: :math:`\beta`.
        eps: of the gradient quotient.
        seed: of the noise.

    Raises:
        ValueError: an argument is out of range, or the model has no trainable weight tensor.
        QuotientError: the quotient is not finite, or its slope is NaN; the model is left as the steps before made it.

    References:
        Dauphin and Schoenholz (2019), figure 2; source 000, section 2.8.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 4))
        >>> _ = net[0].weight.data.mul_(3), net[2].weight.data.mul_(3)
        >>> result = metainit(net, (20,), 4, steps=40)
        >>> before, after = result.norms["0.weight"]
        >>> sorted(result.norms), len(result.quotients), 0.4 < after / before < 0.7
        (['0.weight', '2.weight'], 40, True)

    """
    if steps < 0 or batch_size < 1 or not learning_rate > 0 or not 0 <= momentum < 1:
        raise ValueError(
            "metainit needs steps >= 0, batch_size >= 1, learning_rate > 0 and 0 <= momentum < 1, "
            f"got {steps}, {batch_size}, {learning_rate}, {momentum}"
        )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("metainit needs a model with trainable parameters")
    first = {n: p.detach().norm() for n, p in parameters.items() if p.dim() >= 2 and bool(p.detach().norm() > 0)}
    if not first:
        raise ValueError("metainit needs a trainable weight tensor of two or more dimensions whose norm is not 0")
    memory = {name: torch.zeros_like(norm) for name, norm in first.items()}
    sample = next(iter(parameters.values()))
    noise = torch.Generator().manual_seed(seed)
    quotients: list[float] = []
    with evaluating(model):
        for _ in range(steps):
            inputs = torch.randn(batch_size, *shape, generator=noise).to(sample)
            targets = torch.randint(classes, (batch_size,), generator=noise).to(sample.device)
            quotient = gradient_quotient(functional.cross_entropy(model(inputs), targets), parameters.values(), eps)
            if not bool(quotient.isfinite()):
                raise QuotientError(f"the gradient quotient is {quotient.item()} after {len(quotients)} steps")
            quotients.append(quotient.item())
            slopes = torch.autograd.grad(quotient, [parameters[name] for name in first], materialize_grads=True)
            with torch.no_grad():
                along = [(parameters[name] * slope).sum() for name, slope in zip(first, slopes, strict=True)]
                if bool(torch.stack(along).isnan().any()):  # its sign is 0: the norms would stay, without a word
                    raise QuotientError(f"the gradient quotient's slope is NaN after {len(quotients) - 1} steps")
                for name, slope in zip(first, along, strict=True):
                    p = parameters[name]
                    norm = p.norm()
                    memory[name] = momentum * memory[name] - learning_rate * slope.sign()
                    p.mul_((norm + memory[name]).clamp(min=SMALLEST * first[name]) / norm)
    norms = {name: (norm.item(), parameters[name].detach().norm().item()) for name, norm in first.items()}
    return MetaInit(quotients, norms)
