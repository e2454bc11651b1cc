"""What an estimator must know of a mini-batch, and the evaluation of one batch at two points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Closure = Callable[[Any], Tensor]
"""``closure(batch)``: forward and backward over the batch's mean loss; returns the loss."""

Size = Callable[[Any], int]
"""The number of samples in a batch."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A mini-batch :math:`B` that knows its place in the epoch and its size :math:`|B|`.

    Args:
        index: position of the batch in the epoch's partition, from 0.
        inputs: tensor of shape ``(size, ...)``.
        targets: tensor of shape ``(size,)``.

    Example:
        >>> batch = Batch(0, torch.zeros(32, 1, 28, 28), torch.zeros(32, dtype=torch.long))
        >>> batch.size
        32

    """

    index: int
    inputs: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        """The number of samples :math:`|B|`."""
        return len(self.targets)


def size_of(batch: object) -> int:
    """Return ``batch.size``; refuse what has no size of its own.

    ``len`` is never asked: the length of a pair ``(inputs, targets)`` is 2 whatever the batch.

    Raises:
        TypeError: the batch has no integer attribute ``size``.

    """
    size = getattr(batch, "size", None)
    if isinstance(size, int):
        return size
    raise TypeError(
        f"a {type(batch).__name__} does not say how many samples it holds: pass a varred.optim.Batch, "
        "or give the optimizer a function, e.g. size=lambda batch: len(batch[1])"
    )


def weight_of(batch: object, size: Size) -> int:
    """Return ``size(batch)``, by which the batch's mean counts.

    Raises:
        ValueError: the batch is empty.

    """
    weight = size(batch)
    if weight < 1:
        raise ValueError(f"a batch of {weight} samples has no mean loss: leave it out")
    return weight


@contextmanager
def preserved(buffers: Sequence[Tensor], parameters: Iterable[Tensor]) -> Iterator[None]:
    """Put buffers (batch-normalization statistics) and the random state (dropout) back on leaving.

    The random state is that of the CPU and of every device on which a parameter lies.

    Evaluating a loss in training mode moves both. An estimator that evaluates at a second point must leave
    neither trace: the statistics would mix two points, and a second draw of the dropout mask would
    decorrelate the two gradients.
    """
    saved = [buffer.clone() for buffer in buffers]
    generators = _generators({parameter.device for parameter in parameters})
    states = [get() for get, _ in generators]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
        for (_, put), state in zip(generators, states, strict=True):
            put(state)


def _generators(devices: Iterable[torch.device]) -> list[tuple[Callable[[], Tensor], Callable[[Tensor], None]]]:
    """Return how to read and how to set the random state of the CPU and of each other device."""
    # The state of an accelerator's generator lives on the host: reading it does not wait for the device.
    found: list[tuple[Callable[[], Tensor], Callable[[Tensor], None]]] = [(torch.get_rng_state, torch.set_rng_state)]
    for device in devices:
        if device.type == "mps":
            found.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
        elif device.type not in ("cpu", "meta"):
            module = torch.get_device_module(device)
            found.append((partial(module.get_rng_state, device), partial(module.set_rng_state, device=device)))
    return found


@contextmanager
def placed(parameters: Sequence[Tensor], point: Sequence[Tensor]) -> Iterator[None]:
    """Let the parameters lie at another point, in its storage and without a copy; put them back on leaving.

    Under an autocast context that the caller holds, torch would serve the casts of the weights that were there before:
    they are dropped.
    """
    here = [parameter.data for parameter in parameters]
    torch.clear_autocast_cache()
    try:
        for parameter, value in zip(parameters, point, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, here, strict=True):
            parameter.data = value
        torch.clear_autocast_cache()


def take_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Detach the gradients from the parameters; a parameter the loss does not reach has gradient zero.

    A view is copied: its memory is another's, for example a bucket of ``DistributedDataParallel``, which the next
    backward pass overwrites.
    """
    gradients = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            gradient = torch.zeros_like(parameter)
        gradient = gradient.clone() if gradient._is_view() else gradient
        gradients.append(gradient.detach())  # a closure may build a graph of it (create_graph)
        parameter.grad = None
    return gradients
