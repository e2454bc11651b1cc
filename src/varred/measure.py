r"""How noisy is a gradient estimate? Variances over one frozen finite sum, in one streaming pass.

The finite sum is a partition of the data into mini-batches under fixed transforms. Over it,

.. math::
    \mathrm{sgd} &= \sum_B p_B \, \lVert g_B(w) - g(w) \rVert^2, \qquad p_B = |B| / n, \quad g = \sum_B p_B\, g_B, \\
    \mathrm{centred} &= \sum_B p_B \, \lVert (g_B(w) - \alpha g_B(\tilde w)) - (g(w) - \alpha g(\tilde w)) \rVert^2, \\
    \mathrm{offset} &= \alpha^2 \lVert \mu - g(\tilde w) \rVert^2 .

``centred`` is the variance of SVRG's estimate :math:`v_B = g_B(w) - \alpha (g_B(\tilde w) - \mu)` about its own mean;
``offset`` is the squared distance of that mean from the partition's gradient, zero where transforms are locked to the
snapshot (and, with batch normalization, the partition is the snapshot's own). SVRG's mean squared error is their sum,
and it reduces variance where that is below ``sgd``; at one snapshot an epoch it pays where the ratio is below 1/3 and
the offset, which is the same in every step of an epoch and doesn't average out, is negligible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varred.optim.batch import Closure, Size, placed, preserved, size_of, take_gradients, weight_of


@dataclass(frozen=True)
class GradientNoise:
    r"""What :func:`gradient_noise` found.

    Variances and ``offset`` are sums over all parameters; the rest are norms over all of them, or their ratio.

    Attributes:
        sgd: variance of the mini-batch gradient at :math:`w`.
        centred: variance of the SVRG estimate about its own mean.
        offset: squared distance of that mean from the partition's gradient at :math:`w`.
        distance: :math:`\lVert w - \tilde w \rVert`.
        curvature: mean over batches, weighted by their sizes, of
            :math:`\lVert g_B(w) - g_B(\tilde w) \rVert / \lVert w - \tilde w \rVert`
            (NaN at the snapshot itself).
        gradient_norm: :math:`\lVert g(w) \rVert`.
    """

    sgd: float
    centred: float
    offset: float
    distance: float
    curvature: float
    gradient_norm: float

    @property
    def ratio(self) -> float:
        """Mean squared error of the SVRG estimate over the variance of the mini-batch gradient; NaN over none."""
        return (self.centred + self.offset) / self.sgd if self.sgd else math.nan


def gradient_noise(
    parameters: Sequence[Tensor],
    snapshot: Sequence[Tensor],
    full_gradient: Sequence[Tensor],
    batches: Iterable[Any],
    closure: Closure,
    *,
    alpha: float = 1.0,
    buffers: Iterable[Tensor] = (),
    size: Size = size_of,
) -> GradientNoise:
    r"""Measure the noise of SGD's and SVRG's estimates over a partition; change nothing but drop existing gradients.

    One pass, two gradients a batch, a handful of copies of the parameters in memory whatever the number of batches:
    means are updated batch by batch in float64 (West's weighted form of Welford's recurrence). Both evaluations of a
    batch meet the same buffers and random draws (dropout's masks), the next batch meets others, as in the steps.

    Args:
        parameters: the model's parameters, at :math:`w`.
        snapshot: :math:`\tilde w`, a tensor a parameter.
        full_gradient: :math:`\mu`, a tensor a parameter.
        batches: the partition; each batch weighs by its size.
        closure: as for the optimizers: forward, backward, returns the loss.
        alpha: the coefficient of SVRG's control variate.
        buffers: ``model.buffers()``, put back afterwards; so is the random state. ``.grad`` is None afterwards.
        size: returns the number of samples of a batch.

    Raises:
        ValueError: there are no batches, or one is empty.
        TypeError: a batch does not know its size.

    References:
        Johnson and Zhang (2013), section 2; the protocol: Defazio and Bottou (2019), section 3; distance
        and curvature: there, section 5 and figure 3.

    Example:
        >>> from varred.optim import Batch
        >>> w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        >>> def closure(batch):
        ...     loss = (w * batch.inputs).square().mean() / 2
        ...     loss.backward()
        ...     return loss
        >>> samples, half = torch.tensor([1.0, 3.0]).double(), torch.full_like(w, 0.5)
        >>> batches = [Batch(i, x.view(1), torch.zeros(1)) for i, x in enumerate(samples)]
        >>> noise = gradient_noise([w], [half], [torch.full_like(w, 2.0)], batches, closure)
        >>> noise.sgd, noise.centred, noise.offset, noise.curvature
        (16.0, 4.0, 0.25, 5.0)
    """
    parameters = list(parameters)
    shapes = [p.shape for p in parameters]
    for name, values in (("snapshot", snapshot), ("full_gradient", full_gradient)):
        if [value.shape for value in values] != shapes:
            raise ValueError(
                f"{name} must hold one tensor a parameter, of its shape; got {len(values)} tensors for {len(shapes)} "
                "parameters: take a snapshot first, of these parameters"
            )
    if any(p.is_complex() for p in parameters):
        raise ValueError("gradient noise is measured for real parameters only")
    point = [value.detach().clone() for value in snapshot]
    moments = {name: _Moments() for name in ("here", "there", "estimate")}
    lengths = torch.zeros((), dtype=torch.float64)
    total = 0
    for parameter in parameters:
        parameter.grad = None
    kept = list(buffers)
    with preserved(kept, parameters):
        for batch in batches:
            weight = weight_of(batch, size)
            total += weight
            with preserved(kept, parameters), torch.enable_grad():
                closure(batch)
            here = _vector(take_gradients(parameters))
            with placed(parameters, point), torch.enable_grad():
                closure(batch)
            there = _vector(take_gradients(parameters))
            difference = here - there
            lengths = lengths + weight * torch.linalg.vector_norm(difference)
            estimate = difference if alpha == 1 else torch.sub(here, there, alpha=alpha)
            for name, value in (("here", here), ("there", there), ("estimate", estimate)):
                moments[name].add(value, weight)
    if not total:
        raise ValueError("gradient noise needs at least one batch, got none (an exhausted iterator?)")
    distance = float(torch.linalg.vector_norm(_vector(parameters) - _vector(point)))
    return GradientNoise(
        sgd=moments["here"].variance(),
        centred=moments["estimate"].variance(),
        offset=alpha**2 * float((_vector(full_gradient) - moments["there"].mean).square().sum()),
        distance=distance,
        curvature=float(lengths) / total / distance if distance else float("nan"),
        gradient_norm=float(torch.linalg.vector_norm(moments["here"].mean)),
    )


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 where it lies; on the CPU where it lies on MPS, which has no float64."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def _vector(values: Sequence[Tensor]) -> Tensor:
    return wide(torch.cat([value.detach().flatten() for value in values]))


class _Moments:
    """Weighted mean and variance of vectors that come one by one; float64, no table."""

    def __init__(self) -> None:
        self.mean = torch.zeros(1, dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        self.weight = 0

    def add(self, value: Tensor, weight: int) -> None:
        if not self.weight:
            self.mean, self.squares = torch.zeros_like(value), value.new_zeros(())
        self.weight += weight
        step = value - self.mean
        self.mean.add_(step, alpha=weight / self.weight)
        self.squares += weight * torch.dot(step, value - self.mean)

    def variance(self) -> float:
        return float(self.squares) / self.weight
