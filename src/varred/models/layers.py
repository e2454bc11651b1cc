"""What several networks share: activations by name, and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from torch import nn

Activation = Literal["tanh", "relu", "elu"]
Normalization = Literal["none", "batch"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


def activation_layer(name: Activation) -> nn.Module:
    """Return a fresh activation module.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> activation_layer("relu")
        ReLU()

    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]()


def check_normalization(name: Normalization) -> bool:
    """Return whether batch normalization is asked for.

    Raises:
        ValueError: the name is unknown.

    """
    if name not in get_args(Normalization):
        raise ValueError(f"normalization must be one of {', '.join(get_args(Normalization))}, got {name!r}")
    return name == "batch"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into its own on leaving.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True

    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
