"""The networks of the experiments, as plain modules with ``normalization=`` and ``activation=`` arguments."""

from varred.models.lenet import LeNet
from varred.models.mlp import MLP
from varred.models.resnet import ResNet, resnet18, resnet101

__all__ = ["MLP", "LeNet", "ResNet", "resnet18", "resnet101"]
