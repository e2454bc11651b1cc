"""SVRG: stochastic gradients with a control variate taken at a snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from varred.optim.batch import Closure, Size, placed, preserved, size_of, take_gradients, weight_of


class SVRG:
    r"""Feed an optimizer the stochastic variance reduced gradient.

    At a snapshot :math:`\tilde w` with full gradient :math:`\mu = \frac1n \sum_i \nabla f_i(\tilde w)`, a step on
    the mini-batch :math:`B` hands the base optimizer

    .. math:: v = g_B(w) - \alpha \, (g_B(\tilde w) - \mu), \qquad g_B(w) = \frac1{|B|} \sum_{i \in B} \nabla f_i(w).

    At :math:`w = \tilde w` and :math:`\alpha = 1` this is :math:`\mu` exactly. Weight decay and momentum are the base
    optimizer's, so they act on :math:`v`; learning-rate schedulers take the base optimizer. A parameter that gets no
    gradient at :math:`w`, because it is frozen or the batch's loss doesn't reach it, is left out of the step, as torch
    leaves it out.

    Args:
        base: the optimizer that makes the step: any of torch's whose step needs no closure.
        buffers: ``model.buffers()``. Their values after a step are those of the evaluation at :math:`w` alone;
            a snapshot pass leaves no trace in them. Moving a model puts new tensors in their place: move it first,
            as for torch's optimizers.
        alpha: the coefficient of the control variate. 1 is SVRG, 0 is the base optimizer on plain
            mini-batch gradients (at twice the cost).
        size: returns the number of samples of a batch. Needed only for batches without an integer ``size``.

    Attributes:
        base: the wrapped optimizer.

    Cost: two mini-batch gradients a step and one pass over the data per snapshot. State: two copies of the
    parameters, :math:`\tilde w` and :math:`\mu`, beside the base optimizer's own. Gradients must be dense, and the loss
    not scaled (``GradScaler``): :math:`\mu` would be too.

    Raises:
        ValueError: ``alpha`` is not finite, or a snapshot is taken over no batches or an empty one.
        TypeError: a batch does not know its size, or the base optimizer's step needs a closure.
        RuntimeError: a step comes before the first snapshot, or parameters have been added or unfrozen since.

    References:
        Johnson and Zhang (2013), figure 1; the coefficient: Yin et al. (2025), equation 5.

    Example:
        >>> from varred.optim import Batch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> def closure(batch):
        ...     loss = (w * batch.inputs).square().mean() / 2
        ...     loss.backward()
        ...     return loss
        >>> batches = [Batch(i, torch.tensor([x]), torch.zeros(1)) for i, x in enumerate((1.0, 3.0))]
        >>> optimizer = SVRG(torch.optim.SGD([w], lr=0.1))
        >>> optimizer.snapshot(batches, closure)
        >>> for batch in batches:  # mu = 5, so v = 1 - (1 - 5), then 4.5 - (9 - 5)
        ...     loss = optimizer.step(batch, closure)
        ...     print(round(w.item(), 4))
        0.5
        0.45

    """

    def __init__(
        self,
        base: Optimizer,
        *,
        buffers: Iterable[Tensor] = (),
        alpha: float = 1.0,
        size: Size = size_of,
    ) -> None:
        if not float("-inf") < alpha < float("inf"):
            raise ValueError(f"alpha must be finite, got {alpha}")
        if isinstance(base, torch.optim.LBFGS):
            raise TypeError("LBFGS evaluates its closure several times a step: choose a base optimizer that needs none")
        self.base = base
        self.alpha = alpha
        self._size = size
        self._buffers = list(buffers)
        self._point: list[Tensor] = []  # w~
        self._full: list[Tensor] = []  # mu
        self._trained: list[bool] = []  # which parameters mu is known for

    @property
    def parameters(self) -> list[Tensor]:
        """The base optimizer's parameters, in its order."""
        return [p for group in self.base.param_groups for p in group["params"]]

    @property
    def full_gradient(self) -> list[Tensor]:
        """The full gradient at the snapshot, one tensor a parameter; empty before the first snapshot."""
        return self._full

    @property
    def snapshot_point(self) -> list[Tensor]:
        """The parameters at the snapshot, one tensor a parameter; empty before the first snapshot."""
        return self._point

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the base optimizer's parameters' gradients, or set them to zero."""
        self.base.zero_grad(set_to_none)

    def snapshot(self, batches: Iterable[Any], closure: Closure) -> None:
        r"""Set :math:`\tilde w = w` and :math:`\mu = \sum_B \frac{|B|}{n} g_B(\tilde w)`.

        Each batch counts by its size, so a short last batch does not bias :math:`\mu`. Batches larger than the
        step's give the same :math:`\mu` faster, for models without batch-dependent layers.

        Args:
            batches: the data set, cut into mini-batches.
            closure: ``closure(batch)`` computes the batch's mean loss, calls ``backward`` and returns the loss. It may
                zero the gradients first, as torch's closures do; where the loss reaches parameters that are not the
                base optimizer's it must, since it is called more often than steps are made.
        """
        parameters = self.parameters
        # In half precision a sum over an epoch would stop growing.
        full = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        total = 0
        self.zero_grad()
        with preserved(self._buffers, parameters):
            for batch in batches:
                size = weight_of(batch, self._size)
                total += size
                with torch.enable_grad():
                    closure(batch)
                torch._foreach_add_(full, take_gradients(parameters), alpha=size)
        if not total:
            raise ValueError("a snapshot needs at least one batch, got none (an exhausted iterator?)")
        torch._foreach_div_(full, total)
        self._full = [mean.to(p.dtype) for mean, p in zip(full, parameters, strict=True)]
        self._point = [p.detach().clone() for p in parameters]
        self._trained = [p.requires_grad for p in parameters]

    def step(self, batch: Any, closure: Closure) -> Tensor:
        """Evaluate the batch at the snapshot and at the iterate, correct, and let the base optimizer step.

        Args:
            batch: the mini-batch.
            closure: as for :meth:`snapshot`; it is called twice.

        Returns:
            The loss at the iterate, before the step; detached.

        """
        if not self._point:
            raise RuntimeError("no snapshot yet: call snapshot(batches, closure) before the first step")
        parameters = self.parameters
        if len(self._point) != len(parameters):
            raise RuntimeError("the base optimizer's parameters are not those of the snapshot: take another one first")
        if any(p.requires_grad and not known for p, known in zip(parameters, self._trained, strict=True)):
            raise RuntimeError("a parameter has been unfrozen since the snapshot: take another one first")
        self.zero_grad()
        with preserved(self._buffers, parameters), placed(parameters, self._point), torch.enable_grad():
            closure(batch)
        control = take_gradients(parameters)
        with torch.enable_grad():
            loss = closure(batch)
        reached = [p.grad is not None for p in parameters]
        gradients = take_gradients(parameters)
        torch._foreach_sub_(control, self._full)  # g_B(w~) - mu
        torch._foreach_sub_(gradients, control, alpha=self.alpha)
        for parameter, gradient, own in zip(parameters, gradients, reached, strict=True):
            parameter.grad = gradient if own else None
        self.base.step()
        torch.clear_autocast_cache()  # of weights that have moved
        self.zero_grad()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to resume: the base's state, the snapshot, its full gradient and ``alpha``."""
        return {
            "base": self.base.state_dict(),
            "point": self._point,
            "full_gradient": self._full,
            "trained": self._trained,
            "alpha": self.alpha,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; a state without ``alpha`` leaves it as it is.

        Raises:
            ValueError: the snapshot is of other parameters, or incomplete; nothing has been changed then.

        """
        parameters = self.parameters
        missing = {"base", "point", "full_gradient"} - state.keys()
        if missing:
            raise ValueError(f"the state lacks {', '.join(sorted(missing))}: load a base optimizer's state into .base")
        if bool(state["point"]) != bool(state["full_gradient"]):
            raise ValueError("the state has one of point and full_gradient without the other")
        for key in ("point", "full_gradient"):
            if state[key] and len(state[key]) != len(parameters):
                raise ValueError(f"{key} has {len(state[key])} tensors, the optimizer has {len(parameters)} parameters")
            for place, (value, parameter) in enumerate(zip(state[key], parameters, strict=False)):
                if value.shape != parameter.shape:
                    raise ValueError(
                        f"{key}[{place}] has shape {tuple(value.shape)}, the parameter has {tuple(parameter.shape)}"
                    )
        trained = list(state.get("trained", [True] * len(state["point"])))
        if len(trained) != len(state["point"]):
            raise ValueError(f"trained has {len(trained)} entries, the snapshot has {len(state['point'])} tensors")
        self.base.load_state_dict(state["base"])
        self.alpha = state.get("alpha", self.alpha)
        self._point, self._full = (
            [value.detach().to(p, copy=True) for value, p in zip(state[key], parameters, strict=False)]
            for key in ("point", "full_gradient")
        )
        self._trained = trained
