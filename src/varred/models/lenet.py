"""LeNet for 28 x 28 and 32 x 32 images."""

from __future__ import annotations

from torch import Tensor, nn

from varred.models.layers import Activation, Normalization, activation_layer, check_normalization


class LeNet(nn.Sequential):
    """Two 5 x 5 convolutions with average pooling, then 400-120-84-classes.

    Args:
        activation: ``"tanh"`` as in the code of source 000's author, ``"relu"`` or ``"elu"``.
        normalization: ``"batch"`` puts batch normalization before every activation.
        channels: channels of the image.
        size: height and width of the image, 28 (padded by 2) or 32.
        classes: number of outputs (logits).

    Shape: ``(batch, channels, size, size)`` to ``(batch, classes)``. 61,706 parameters at the defaults.

    Raises:
        ValueError: an argument is not one of the values above.

    References:
        LeCun et al. (1998), figure 2; source 000, figure 4.2.

    Example:
        >>> sum(p.numel() for p in LeNet().parameters())
        61706

    """

    def __init__(
        self,
        activation: Activation = "tanh",
        normalization: Normalization = "none",
        channels: int = 1,
        size: int = 28,
        classes: int = 10,
    ) -> None:
        if size not in (28, 32):
            raise ValueError(f"size must be 28 or 32, got {size}")
        batch = check_normalization(normalization)

        def block(layer: nn.Module, norm: nn.Module) -> list[nn.Module]:
            return [layer, norm, activation_layer(activation)] if batch else [layer, activation_layer(activation)]

        super().__init__(
            *block(nn.Conv2d(channels, 6, 5, padding=(32 - size) // 2), nn.BatchNorm2d(6)),
            nn.AvgPool2d(2),
            *block(nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16)),
            nn.AvgPool2d(2),
            nn.Flatten(),
            *block(nn.Linear(400, 120), nn.BatchNorm1d(120)),
            *block(nn.Linear(120, 84), nn.BatchNorm1d(84)),
            nn.Linear(84, classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        return logits
