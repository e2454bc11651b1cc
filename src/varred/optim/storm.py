"""STORM: recursive momentum, a control variate that needs no snapshot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from varred.optim.batch import Closure, placed, preserved, take_gradients

Granularity = Literal["global", "tensor", "coordinate"]


class STORM(Optimizer):
    r"""Stochastic recursive momentum with a step size that shrinks as gradients accumulate.

    With :math:`g_t(w)` the gradient of mini-batch :math:`t` at :math:`w`, and :math:`d_1 = g_1(w_1)`,

    .. math::
        d_t &= g_t(w_t) + (1 - a_t)\,\bigl(d_{t-1} - g_t(w_{t-1})\bigr), \\
        \eta_t &= k \Big/ \Bigl(w_0 + \sum_{i \le t} G_i^2\Bigr)^{1/3}, \qquad a_{t+1} = c\,\eta_t^2, \\
        w_{t+1} &= w_t - \eta_t d_t .

    Both gradients of a step are taken on the *same, new* mini-batch. At :math:`a = 1` this is SGD with step
    :math:`\eta_t`.

    Args:
        params: the parameters, as for any torch optimizer.
        k: step-size numerator, > 0.
        c: momentum constant, >= 0.
        w0: offset of the accumulator, > 0 (the paper's *w*, a scalar unrelated to the weights).
        granularity: what :math:`G_t` is. ``"global"``: the norm of the whole gradient (the paper's algorithm).
            ``"tensor"``: the norm of each parameter tensor's gradient, so layers have steps of their own.
            ``"coordinate"``: the absolute value of each coordinate.
        clip: keep :math:`a_t \le 1`. Without it the recursion amplifies while the accumulator is small.
        buffers: ``model.buffers()``; after a step they are those of the evaluation at :math:`w_t` alone. Moving a
            model puts new tensors in their place: move it first, as for torch's optimizers.

    Cost: two mini-batch gradients a step (the first step: one). State: :math:`w_{t-1}`, :math:`d_{t-1}` and the
    accumulator (a scalar, a scalar per tensor, or one more copy of the parameters). Gradients must be dense, and the
    loss not scaled (``GradScaler``): the accumulator would be too. A parameter that a batch's loss doesn't reach has
    gradient zero there; a frozen one (``requires_grad`` is false) is left out of the step.

    Raises:
        ValueError: a hyper-parameter is out of range, there is a second parameter group, or a parameter is complex or
            has less than single precision, in which the accumulator would stop growing.
        RuntimeError: a parameter has been unfrozen after the first step: there is no estimate of its gradient.

    References:
        Cutkosky and Orabona (2019), algorithm 1.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> def closure(x):
        ...     loss = x * w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer = STORM([w], k=1.0, c=2.0, w0=7.0)
        >>> for x in (1.0, 2.0):  # eta_1 = 1/2, a_2 = 1/2, d_2 = 1 + (1 - 2) / 2
        ...     loss = optimizer.step(x, closure)
        ...     print(round(w.item(), 4))
        0.5
        0.2596

    """

    def __init__(
        self,
        params: Iterable[Any],
        k: float = 0.1,
        c: float = 100.0,
        w0: float = 0.1,
        granularity: Granularity = "global",
        clip: bool = True,
        buffers: Iterable[Tensor] = (),
    ) -> None:
        if not 0 < k < math.inf:
            raise ValueError(f"k must be positive and finite, got {k}")
        if not 0 <= c < math.inf:
            raise ValueError(f"c must be finite and not negative, got {c}")
        if not 0 < w0 < math.inf:
            raise ValueError(f"w0 must be positive and finite, got {w0}")
        if granularity not in get_args(Granularity):
            raise ValueError(f"granularity must be one of {', '.join(get_args(Granularity))}, got {granularity!r}")
        self._buffers = list(buffers)
        super().__init__(params, {"k": k, "c": c, "w0": w0, "granularity": granularity, "clip": clip})

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: torch's optimizers leave out attributes of their own."""
        return {**super().__getstate__(), "_buffers": self._buffers}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the first parameter group; a second one is refused, and so are half-precision and complex parameters."""
        if self.param_groups:
            raise ValueError("STORM has one step-size rule for all parameters: pass one parameter group")
        super().add_param_group(param_group)
        for parameter in self.param_groups[0]["params"]:
            if parameter.is_complex() or torch.finfo(parameter.dtype).bits < 32:
                raise ValueError(f"STORM needs parameters in float32 or float64, got {parameter.dtype}: use autocast")

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are trained, in order."""
        return [p for p in self.param_groups[0]["params"] if p.requires_grad]

    def step(self, batch: Any, closure: Closure) -> Tensor:  # type: ignore[override]
        """Evaluate the batch at the last two iterates, update the estimate, and step.

        Args:
            batch: the mini-batch.
            closure: ``closure(batch)`` computes the batch's mean loss, calls ``backward`` and returns the loss. It may
                zero the gradients first, as torch's closures do; where the loss reaches parameters that are not this
                optimizer's it must, since it is called twice (at the first step once).

        Returns:
            The loss at the iterate, before the step; detached.

        """
        parameters = self.parameters
        started = bool(self.state)
        self._check_trained(parameters)
        for parameter in self.state.keys() - set(parameters):
            del self.state[parameter]  # of one that is not trained any more
        self.zero_grad()
        if started:
            previous = self._column("previous")
            with preserved(self._buffers, parameters), placed(parameters, previous), torch.enable_grad():
                closure(batch)
            stale = take_gradients(parameters)  # g_t(w_{t-1})
        with torch.enable_grad():
            loss = closure(batch)
        gradients = take_gradients(parameters)  # g_t(w_t)
        with torch.no_grad():
            squares = self._squares(gradients)
            if started:
                sums = self._sums()
                estimate = self._column("estimate")
                torch._foreach_sub_(estimate, stale)
                torch._foreach_mul_(estimate, self._spread([1 - a for a in self._momenta(self._rates(sums))]))
                torch._foreach_add_(estimate, gradients)
                torch._foreach_add_(sums, squares)
                if not self._fine:
                    torch._foreach_copy_(self._column("accumulator"), self._spread(sums))
                torch._foreach_copy_(previous, parameters)
            else:
                sums = squares
                for parameter, gradient, square in zip(parameters, gradients, self._spread(squares), strict=True):
                    self.state[parameter] = {
                        "previous": parameter.detach().clone(),
                        "estimate": gradient.clone(),
                        "accumulator": square.clone(),
                    }
                estimate = self._column("estimate")
            torch._foreach_addcmul_(parameters, estimate, self._spread(self._rates(sums)), value=-1)
        torch.clear_autocast_cache()  # of weights that have moved
        return loss.detach()

    def _check_trained(self, parameters: list[Tensor]) -> None:
        """Refuse parameters without an estimate once there are estimates, and no parameters."""
        if not parameters:
            raise RuntimeError("all of STORM's parameters are frozen: there is nothing to step")
        if self.state and not self.state.keys() >= set(parameters):
            raise RuntimeError(
                "parameters were unfrozen after STORM's first step, which has no estimate for them: build a new one"
            )

    def path(self) -> tuple[list[Tensor], list[Tensor]]:
        r"""Return :math:`(\eta_t, a_{t+1})`, each a list of one flat tensor a parameter.

        A tensor has one entry, or under ``"coordinate"`` one a coordinate.

        Raises:
            RuntimeError: no step has been made, or a parameter has been unfrozen since the first one.

        """
        if not self.state:
            raise RuntimeError("no step yet: the step size is known after the first call of step")
        self._check_trained(self.parameters)
        rates = self._rates(self._sums())
        return [r.flatten() for r in self._spread(rates)], [a.flatten() for a in self._spread(self._momenta(rates))]

    # One tensor a parameter where each coordinate has its accumulator, else a single tensor with one entry a parameter:
    # the schedule is computed on either, and spread over the parameters at the end.

    @property
    def _fine(self) -> bool:
        return bool(self.param_groups[0]["granularity"] == "coordinate")

    def _column(self, name: str) -> list[Tensor]:
        return [self.state[p][name] for p in self.parameters]

    def _sums(self) -> list[Tensor]:
        accumulators = self._column("accumulator")
        return accumulators if self._fine else [torch.stack(accumulators)]

    def _spread(self, blocks: list[Tensor]) -> list[Tensor]:
        return blocks if self._fine else list(blocks[0].unbind())

    def _squares(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return :math:`G_t^2`."""
        if self._fine:
            return list(torch._foreach_mul(gradients, gradients))
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        if self.param_groups[0]["granularity"] == "global":
            squares = squares.sum().expand(len(gradients))
        return [squares]

    def _rates(self, sums: list[Tensor]) -> list[Tensor]:
        group = self.param_groups[0]
        return [group["k"] * (block + group["w0"]).pow(-1 / 3) for block in sums]

    def _momenta(self, rates: list[Tensor]) -> list[Tensor]:
        group = self.param_groups[0]
        momenta = [group["c"] * block.square() for block in rates]
        return [block.clamp(max=1.0) for block in momenta] if group["clip"] else momenta
