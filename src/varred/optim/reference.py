r"""Every algorithm of the book, transcribed line by line in float64.

These functions are slow on purpose. Each one follows its algorithm box symbol by symbol, keeps every iterate, and is
what the fast optimizers are compared with, step by step. Nothing is shared between them: a reader should be able to
hold one against the page.

Conventions, the same for all:

- ``gradient(w)`` returns :math:`\nabla F(w)`, ``gradient(w, i)`` returns :math:`\nabla f_i(w)` or, where ``i`` is a
  mini-batch, the mean over it. ``w`` is a float64 tensor.
- ``samples`` is the sequence of draws :math:`i_1, i_2, \dots`; for methods without draws, ``steps`` is their number.
- The result is the list of iterates :math:`w_0, w_1, \dots`, the start included; ``whitened_update`` and
  ``gradient_quotient`` return tensors, and an iterate of ``metainit`` is a list of tensors.

Example:
    >>> import torch
    >>> start = torch.tensor([1.0], dtype=torch.float64)
    >>> path = gradient_descent(lambda w: w, start, steps=2, learning_rate=0.5)
    >>> [w.item() for w in path]
    [1.0, 0.5, 0.25]
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

FullGradient = Callable[[Tensor], Tensor]
SampleGradient = Callable[[Tensor, Any], Tensor]
Path = list[Tensor]


def listing(rule: Callable[..., Any]) -> str:
    """Return a rule's source without its docstring, as the chapters print it.

    Example:
        >>> for line in listing(gradient_descent).splitlines()[1:]:
        ...     print(line.strip())
        path = [w]
        for _ in range(steps):
        w = w - learning_rate * gradient(w)
        path.append(w)
        return path

    """
    lines = inspect.getsource(rule).splitlines()
    (function,) = ast.parse("\n".join(lines)).body
    assert isinstance(function, ast.FunctionDef)
    if ast.get_docstring(function) is None:
        return "\n".join(lines)
    docstring = function.body[0]
    return "\n".join(lines[: docstring.lineno - 1] + lines[docstring.end_lineno :])


def gradient_descent(gradient: FullGradient, w: Tensor, steps: int, learning_rate: float) -> Path:
    r"""Gradient descent: :math:`w_{k+1} = w_k - \eta \nabla F(w_k)` (source 000, equation 2.2)."""
    path = [w]
    for _ in range(steps):
        w = w - learning_rate * gradient(w)
        path.append(w)
    return path


def sgd(
    gradient: SampleGradient, w: Tensor, samples: Iterable[Any], learning_rate: float | Callable[[int], float]
) -> Path:
    r"""Stochastic gradients: :math:`w_k = w_{k-1} - \eta_k \nabla f_{i_k}(w_{k-1})` (source 000, equation 2.3).

    ``learning_rate`` may be a function of the step's number, counted from 1.
    """
    path = [w]
    for k, i in enumerate(samples, start=1):
        eta = learning_rate(k) if callable(learning_rate) else learning_rate
        w = w - eta * gradient(w, i)
        path.append(w)
    return path


def heavy_ball(gradient: FullGradient, w: Tensor, steps: int, learning_rate: float, momentum: float) -> Path:
    r"""Polyak's momentum: :math:`w_{k+1} = w_k - \eta \nabla F(w_k) + \beta (w_k - w_{k-1})` (source 004, eq. 10)."""
    path = [w]
    previous = w
    for _ in range(steps):
        w, previous = w - learning_rate * gradient(w) + momentum * (w - previous), w
        path.append(w)
    return path


def nesterov(
    gradient: FullGradient, w: Tensor, steps: int, learning_rate: float, momentum: float | Callable[[int], float]
) -> Path:
    r"""Nesterov's momentum, gradient at the extrapolated point (source 004, equation 11).

    :math:`y_k = w_k + \beta_k (w_k - w_{k-1})`, :math:`w_{k+1} = y_k - \eta \nabla F(y_k)`; ``momentum`` may be a
    function of :math:`k`, counted from 0.
    """
    path = [w]
    previous = w
    for k in range(steps):
        beta = momentum(k) if callable(momentum) else momentum
        y = w + beta * (w - previous)
        w, previous = y - learning_rate * gradient(y), w
        path.append(w)
    return path


def adagrad(gradient: FullGradient, w: Tensor, steps: int, learning_rate: float = 0.01, eps: float = 1e-10) -> Path:
    r"""AdaGrad: :math:`r \leftarrow r + g^2`, :math:`w \leftarrow w - \eta\, g / (\sqrt r + \epsilon)` (source 003)."""
    path = [w]
    r = torch.zeros_like(w)
    for _ in range(steps):
        g = gradient(w)
        r = r + g * g
        w = w - learning_rate * g / (r.sqrt() + eps)
        path.append(w)
    return path


def rmsprop(
    gradient: FullGradient,
    w: Tensor,
    steps: int,
    learning_rate: float = 0.01,
    decay: float = 0.99,
    eps: float = 1e-8,
    *,
    eps_inside: bool = False,
) -> Path:
    r"""RMSProp: :math:`r \leftarrow \rho r + (1-\rho) g^2`, :math:`w \leftarrow w - \eta\, g / (\sqrt r + \epsilon)`.

    ``eps_inside`` puts :math:`\epsilon` under the root, as sources 002 and 004 (equation 16) print it.
    """
    path = [w]
    r = torch.zeros_like(w)
    for _ in range(steps):
        g = gradient(w)
        r = decay * r + (1 - decay) * g * g
        denominator = (r + eps).sqrt() if eps_inside else r.sqrt() + eps
        w = w - learning_rate * g / denominator
        path.append(w)
    return path


def adadelta(
    gradient: FullGradient, w: Tensor, steps: int, learning_rate: float = 1.0, decay: float = 0.9, eps: float = 1e-6
) -> Path:
    r"""Adadelta (Zeiler 2012): the step is measured in units of past steps.

    :math:`r \leftarrow \rho r + (1-\rho) g^2`, :math:`\Delta = -\sqrt{s + \epsilon}\, g / \sqrt{r + \epsilon}`,
    :math:`s \leftarrow \rho s + (1-\rho) \Delta^2`, :math:`w \leftarrow w + \eta \Delta`.
    """
    path = [w]
    r = torch.zeros_like(w)
    s = torch.zeros_like(w)
    for _ in range(steps):
        g = gradient(w)
        r = decay * r + (1 - decay) * g * g
        delta = -(s + eps).sqrt() / (r + eps).sqrt() * g
        s = decay * s + (1 - decay) * delta * delta
        w = w + learning_rate * delta
        path.append(w)
    return path


def adam(
    gradient: FullGradient,
    w: Tensor,
    steps: int,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Path:
    r"""Adam (Kingma and Ba 2015; source 004, equation 18).

    :math:`m \leftarrow \beta_1 m + (1-\beta_1) g`, :math:`v \leftarrow \beta_2 v + (1-\beta_2) g^2`,
    :math:`w \leftarrow w - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)` with
    :math:`\hat m = m / (1-\beta_1^t)`, :math:`\hat v = v / (1-\beta_2^t)`.
    """
    beta1, beta2 = betas
    path = [w]
    m = torch.zeros_like(w)
    v = torch.zeros_like(w)
    for t in range(1, steps + 1):
        g = gradient(w)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        w = w - learning_rate * m_hat / (v_hat.sqrt() + eps)
        path.append(w)
    return path


def adamax(
    gradient: FullGradient,
    w: Tensor,
    steps: int,
    learning_rate: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Path:
    r"""AdaMax: Adam with :math:`u \leftarrow \max(\beta_2 u, |g| + \epsilon)` for the root (003: ``u + eps``)."""
    beta1, beta2 = betas
    path = [w]
    m = torch.zeros_like(w)
    u = torch.zeros_like(w)
    for t in range(1, steps + 1):
        g = gradient(w)
        m = beta1 * m + (1 - beta1) * g
        u = torch.maximum(beta2 * u, g.abs() + eps)
        w = w - learning_rate / (1 - beta1**t) * m / u
        path.append(w)
    return path


def svrg(
    gradient: SampleGradient,
    w: Tensor,
    epochs: Iterable[Sequence[tuple[Any, int]]],
    learning_rate: float,
    *,
    every: int = 1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    alpha: float = 1.0,
) -> Path:
    r"""SVRG (source 000, algorithm 1, with the bound :math:`m` on the inner loop that it means).

    :math:`v = g_B(w) - \alpha (g_B(\tilde w) - \mu)`, with :math:`\mu = \sum_B \frac{|B|}{n} g_B(\tilde w)` at each
    snapshot :math:`\tilde w`.

    Args:
        gradient: ``gradient(w, B)``, the mean gradient over the mini-batch ``B``.
        w: the start.
        epochs: for each epoch, the sequence of its ``(B, size)``; together they are the whole data set.
        learning_rate: :math:`\eta`.
        every: epochs between snapshots.
        momentum: :math:`\beta` in :math:`b \leftarrow \beta b + v`, :math:`w \leftarrow w - \eta b`.
        weight_decay: :math:`\lambda`, added to :math:`v` after the correction.
        alpha: coefficient of the control variate.
    """
    path = [w]
    velocity: Tensor | None = None
    for epoch, batches in enumerate(epochs):
        if epoch % every == 0:
            n = sum(size for _, size in batches)
            snapshot = w
            mu = torch.zeros_like(w)
            for batch, size in batches:
                mu = mu + size / n * gradient(snapshot, batch)
        for batch, _ in batches:
            v = gradient(w, batch) - alpha * (gradient(snapshot, batch) - mu)
            v = v + weight_decay * w
            velocity = v if velocity is None else momentum * velocity + v
            w = w - learning_rate * velocity
            path.append(w)
    return path


def sag(gradient: SampleGradient, w: Tensor, samples: Iterable[int], n: int, learning_rate: float) -> Path:
    r"""SAG, table filled at the start: :math:`w \leftarrow w - \frac{\eta}{n}[g_i - y_i + \sum_j y_j]`; biased.

    :math:`y_j` is the table's gradient of sample :math:`j`, of ``n`` (Schmidt et al. 2017).
    """
    path = [w]
    table = [gradient(w, j) for j in range(n)]
    for i in samples:
        g = gradient(w, i)
        direction = (g - table[i] + torch.stack(table).sum(0)) / n
        table[i] = g
        w = w - learning_rate * direction
        path.append(w)
    return path


def saga(gradient: SampleGradient, w: Tensor, samples: Iterable[int], n: int, learning_rate: float) -> Path:
    r"""SAGA, table filled at the start: :math:`w \leftarrow w - \eta[g_i - y_i + \frac1n \sum_j y_j]`; unbiased.

    :math:`y_j` is the table's gradient of sample :math:`j`, of ``n`` (Defazio et al. 2014).
    """
    path = [w]
    table = [gradient(w, j) for j in range(n)]
    for i in samples:
        g = gradient(w, i)
        direction = g - table[i] + torch.stack(table).mean(0)
        table[i] = g
        w = w - learning_rate * direction
        path.append(w)
    return path


def streaming_svrg(
    gradient: SampleGradient,
    w: Tensor,
    megabatches: Iterable[tuple[Sequence[Any], Sequence[Any]]],
    learning_rate: float,
) -> Path:
    r"""Streaming SVRG: the snapshot gradient is a mega-batch mean (source 001, section 6, equation 2).

    :math:`w \leftarrow w - \eta\,[g_B(w) - g_B(\tilde w) + \tilde g]`.
    ``megabatches`` yields pairs (the mini-batches of the mega-batch, the inner steps' mini-batches), all of one size.
    Fresh inner batches make streaming SVRG; inner batches out of the mega-batch itself make SCSG.
    """
    path = [w]
    for mega, inner in megabatches:
        snapshot = w
        g_mega = torch.stack([gradient(snapshot, batch) for batch in mega]).mean(0)
        for batch in inner:
            w = w - learning_rate * (gradient(w, batch) - gradient(snapshot, batch) + g_mega)
            path.append(w)
    return path


def storm(
    gradient: SampleGradient,
    w: Tensor,
    samples: Iterable[Any],
    k: float,
    c: float,
    w0: float,
    *,
    granularity: Literal["global", "tensor", "coordinate"] = "global",
    sections: Sequence[int] | None = None,
    clip: bool = True,
) -> Path:
    r"""STORM (source 000, algorithm 2; Cutkosky and Orabona 2019, algorithm 1).

    :math:`d_t = g_t(w_t) + (1-a_t)(d_{t-1} - g_t(w_{t-1}))`, :math:`d_1 = g_1(w_1)`,
    :math:`\eta_t = k / (w_0 + \sum_{i \le t} G_i^2)^{1/3}`, :math:`a_{t+1} = c\,\eta_t^2`, at most 1 with ``clip``.
    ``granularity`` is as in :class:`varred.optim.STORM`; ``sections`` are the lengths of the parameter tensors inside
    the flat ``w``.

    Raises:
        ValueError: granularity ``"tensor"`` without ``sections``.
    """
    path = [w]
    previous = w
    d = torch.zeros_like(w)
    total = torch.zeros_like(w)  # sum of G_i^2, spread over the coordinates it governs
    a = torch.ones_like(w)
    for t, i in enumerate(samples, start=1):
        g = gradient(w, i)
        d = g if t == 1 else g + (1 - a) * (d - gradient(previous, i))
        if granularity == "global":
            total = total + (g * g).sum()
        elif granularity == "tensor":
            if sections is None:
                raise ValueError("granularity 'tensor' needs sections, the lengths of the parameter tensors")
            total = total + torch.cat([(part * part).sum().expand_as(part) for part in g.split(list(sections))])
        elif granularity == "coordinate":
            total = total + g * g
        else:
            raise ValueError(f"granularity must be global, tensor or coordinate, got {granularity!r}")
        eta = k / (w0 + total) ** (1 / 3)
        a = c * eta**2
        if clip:
            a = a.clamp(max=1.0)
        previous, w = w, w - eta * d
        path.append(w)
    return path


def storm_constant(gradient: SampleGradient, w: Tensor, samples: Iterable[Any], learning_rate: float, a: float) -> Path:
    r"""STORM's recursion at constant step and momentum: :math:`d \leftarrow g_t(w_t) + (1-a)(d - g_t(w_{t-1}))`."""
    path = [w]
    previous = w
    d = torch.zeros_like(w)
    for t, i in enumerate(samples, start=1):
        g = gradient(w, i)
        d = g if t == 1 else g + (1 - a) * (d - gradient(previous, i))
        previous, w = w, w - learning_rate * d
        path.append(w)
    return path


def mars(
    gradient: SampleGradient,
    w: Tensor,
    samples: Iterable[Any],
    learning_rate: float,
    beta: float = 0.95,
    gamma: float = 0.025,
    *,
    exact: bool = True,
) -> Path:
    r"""MARS's estimate :math:`m_t` with a plain step, without clipping (Yuan et al. 2025).

    :math:`c_t = g_t + \gamma \frac{\beta}{1-\beta} (g_t - g'_t)`, :math:`m_t = \beta m_{t-1} + (1-\beta) c_t`.
    ``exact``: :math:`g'_t` is the new sample's gradient at the old point, and :math:`g'_1 = g_1`, :math:`m_1 = g_1`.
    Otherwise (the form most people run) it is the *old* sample's gradient there, and starts at 0, as does :math:`m`.
    """
    path = [w]
    previous = w
    last = torch.zeros_like(w)
    m = torch.zeros_like(w)
    for t, i in enumerate(samples, start=1):
        g = gradient(w, i)
        old = gradient(previous, i) if exact else last
        corrected = g + gamma * beta / (1 - beta) * (g - old)
        m = g if exact and t == 1 else beta * m + (1 - beta) * corrected
        last = g
        previous, w = w, w - learning_rate * m
        path.append(w)
    return path


def quasi_hyperbolic_momentum(
    gradient: SampleGradient, w: Tensor, samples: Iterable[Any], learning_rate: float, beta: float, nu: float
) -> Path:
    r"""Ma and Yarats (2019): step along :math:`(1-\nu) g_t + \nu e_t`.

    :math:`e_t = \beta e_{t-1} + (1-\beta) g_t`, from 0.
    """
    path = [w]
    mean = torch.zeros_like(w)
    for i in samples:
        g = gradient(w, i)
        mean = beta * mean + (1 - beta) * g
        w = w - learning_rate * ((1 - nu) * g + nu * mean)
        path.append(w)
    return path


def whitened_update(x: Tensor, g: Tensor, mean: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradient step of a linear layer in source 002's whitened coordinates, in terms of its own weights.

    ``x`` is ``(batch, inputs)``, ``g`` the gradients by the outputs, ``(batch, outputs)``. With angle brackets for the
    mean over the batch, :math:`\delta w_{ij} = \langle \beta_j^2 g_j \alpha_i^2 (x_i - \mu_i) \rangle` and
    :math:`\delta b_j = \langle \beta_j^2 g_j \rangle - \sum_{i \ge 1} \mu_i \delta w_{ij}`; returns
    :math:`(\delta w, \delta b)`, of shapes ``(inputs, outputs)`` and ``(outputs,)``, to be multiplied by :math:`-\eta`.
    ``mean`` and ``alpha`` are ``(inputs,)``, ``beta`` is ``(outputs,)``.
    """
    weight = alpha[:, None] ** 2 * ((x - mean).T @ g / len(x)) * beta**2
    bias = beta**2 * g.mean(0) - mean @ weight
    return weight, bias


def gradient_quotient(gradient: FullGradient, w: Tensor, eps: float = 1e-5, *, taylor: bool = True) -> Tensor:
    r"""MetaInit's gradient quotient (source 000, equation 2.13).

    :math:`\frac1N \| \frac{g - Hg}{g + \epsilon_s} - 1 \|_1` with
    :math:`\epsilon_s = \epsilon (2 \cdot 1[g \ge 0] - 1)`.
    ``taylor=False`` puts the exact :math:`g(w - g(w))` in place of its Taylor form :math:`g - Hg`, the one that the
    published code computes.
    """
    g = gradient(w)
    eps_signed = eps * (2 * (g >= 0).to(g.dtype) - 1)
    if taylor:
        _, product = torch.autograd.functional.jvp(gradient, w, g)
        after = g - product
    else:
        after = gradient(w - g)
    quotient: Tensor = (after / (g + eps_signed) - 1).abs().mean()
    return quotient


def metainit(
    quotient: Callable[[Path, Any], Tensor],
    tensors: Path,
    samples: Iterable[Any],
    learning_rate: float = 0.1,
    momentum: float = 0.9,
) -> list[Path]:
    r"""MetaInit (source 000, section 2.8), as its published code has it, without a floor on the norms.

    ``quotient(tensors, i)`` is the gradient quotient on batch ``i``, ``tensors`` the weight tensors. For each of them
    :math:`s = \operatorname{sign} \langle p, \partial \mathrm{GQ} / \partial p \rangle`,
    :math:`u \leftarrow \beta u - \eta s`, :math:`p \leftarrow p (\|p\| + u) / \|p\|`.
    """
    path = [tensors]
    memory = [torch.zeros(()).to(p) for p in tensors]
    for i in samples:
        leaves = [p.detach().requires_grad_() for p in tensors]
        slopes = torch.autograd.grad(quotient(leaves, i), leaves)
        signs = [(p * slope).sum().sign() for p, slope in zip(tensors, slopes, strict=True)]
        memory = [momentum * u - learning_rate * s for u, s in zip(memory, signs, strict=True)]
        tensors = [p * (p.norm() + u) / p.norm() for p, u in zip(tensors, memory, strict=True)]
        path.append(tensors)
    return path
