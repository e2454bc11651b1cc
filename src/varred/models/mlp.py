"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from varred.models.layers import Activation, Normalization, activation_layer, check_normalization


class MLP(nn.Sequential):
    """A fully connected network on flattened inputs.

    Args:
        widths: number of inputs, hidden widths, number of outputs (logits).
        activation: the non-linearity between layers.
        normalization: ``"batch"`` puts batch normalization before every activation.

    Shape: ``(batch, ...)``, flattened to ``(batch, widths[0])``, to ``(batch, widths[-1])``.

    Raises:
        ValueError: fewer than two widths, or an unknown name.

    Example:
        >>> sum(p.numel() for p in MLP((784, 512, 512, 10)).parameters())
        669706

    """

    def __init__(
        self,
        widths: Sequence[int] = (784, 512, 512, 10),
        activation: Activation = "relu",
        normalization: Normalization = "none",
    ) -> None:
        if len(widths) < 2:
            raise ValueError(f"widths needs the number of inputs and of outputs, got {tuple(widths)}")
        batch = check_normalization(normalization)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths[:-1]):
            layers.append(nn.Linear(inputs, outputs))
            if batch:
                layers.append(nn.BatchNorm1d(outputs))
            layers.append(activation_layer(activation))
        super().__init__(*layers, nn.Linear(widths[-2], widths[-1]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        return logits
