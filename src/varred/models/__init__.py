"""The networks of the experiments, as plain modules with ``normalization=`` and ``activation=`` arguments."""

from varred.models.lenet import LeNet
from varred.models.mlp import MLP

__all__ = ["MLP", "LeNet"]
