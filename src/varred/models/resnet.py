"""Residual networks for 32 x 32 images, with and without batch normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from varred.models.layers import Activation, Normalization, activation_layer, check_normalization

Block = Literal["basic", "bottleneck"]


class Subsample(nn.Module):
    """Keep every ``stride``-th row and column.

    Before a 1 x 1 convolution it does what the convolution's own stride would. That one corrupts memory on CPUs in
    channels-last format where it has few input channels: its weight gradient writes past oneDNN's workspace (oneDNN
    issue 6035).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the kept rows and columns."""
        return inputs[:, :, :: self.stride, :: self.stride]


class Residual(nn.Module):
    r"""A residual block: :math:`y = \phi(x' + f(x))`, with :math:`x'` the input or its 1 x 1 projection.

    Args:
        inputs: channels of the input.
        channels: channels of the block's 3 x 3 convolution.
        stride: of the first 3 x 3 convolution (and of the projection).
        block: ``"basic"``: two 3 x 3 convolutions; ``"bottleneck"``: 1 x 1, 3 x 3, 1 x 1 to four times the channels.
        batch: with batch normalization after every convolution.
        activation: the non-linearity.
    """

    def __init__(
        self, inputs: int, channels: int, stride: int, block: Block, batch: bool, activation: Activation
    ) -> None:
        super().__init__()
        outputs = channels if block == "basic" else 4 * channels
        if block == "basic":
            convolutions = [
                nn.Conv2d(inputs, channels, 3, stride, 1, bias=False),
                nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            ]
        else:
            convolutions = [
                nn.Conv2d(inputs, channels, 1, bias=False),
                nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
                nn.Conv2d(channels, outputs, 1, bias=False),
            ]
        layers: list[nn.Module] = []
        for convolution in convolutions:
            layers.append(convolution)
            if batch:
                layers.append(nn.BatchNorm2d(convolution.out_channels))
            layers.append(activation_layer(activation))
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1, bias=False)]
            if stride != 1:
                projection.insert(0, Subsample(stride))
            if batch:
                projection.append(nn.BatchNorm2d(outputs))
            self.shortcut = nn.Sequential(*projection)
        self.activation = activation_layer(activation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the activated sum of the block's two paths."""
        output: Tensor = self.activation(self.shortcut(inputs) + self.residual(inputs))
        return output


class ResNet(nn.Sequential):
    """A residual network with a 3 x 3 stem and no first pooling, for CIFAR.

    Args:
        blocks: number of blocks in each of the four stages.
        block: ``"basic"`` or ``"bottleneck"``.
        width: channels of the first stage; they double at each further one.
        normalization: ``"batch"`` follows every convolution, projections included; ``"none"`` leaves the normalization
            layers out; convolutions have no bias either way.
        activation: the non-linearity.
        channels: channels of the image.
        classes: number of outputs (logits).

    Shape: ``(batch, channels, 32, 32)`` to ``(batch, classes)``.

    Raises:
        ValueError: an unknown name, or a width below 1.

    References:
        He et al. (2016), with the stem of common CIFAR implementations and, as in torchvision, a bottleneck block's
        stride on its 3 x 3 convolution.

    Example:
        >>> sum(p.numel() for p in resnet18().parameters())
        11173962
        >>> sum(p.numel() for p in resnet18(normalization="none").parameters())
        11164362
    """

    def __init__(
        self,
        blocks: Sequence[int],
        block: Block = "basic",
        width: int = 64,
        normalization: Normalization = "batch",
        activation: Activation = "relu",
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        if block not in ("basic", "bottleneck"):
            raise ValueError(f"block must be basic or bottleneck, got {block!r}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        batch = check_normalization(normalization)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False)]
        if batch:
            layers.append(nn.BatchNorm2d(width))
        layers.append(activation_layer(activation))
        inputs = width
        for stage, count in enumerate(blocks):
            for place in range(count):
                stride = 2 if stage and not place else 1
                layers.append(Residual(inputs, width * 2**stage, stride, block, batch, activation))
                inputs = width * 2**stage * (1 if block == "basic" else 4)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        return logits


def resnet18(
    width: int = 64,
    normalization: Normalization = "batch",
    activation: Activation = "relu",
    channels: int = 3,
    classes: int = 10,
) -> ResNet:
    """Return ResNet18: basic blocks [2, 2, 2, 2]; arguments, shapes and errors are those of :class:`ResNet`."""
    return ResNet((2, 2, 2, 2), "basic", width, normalization, activation, channels, classes)


def resnet101(
    block: Block = "bottleneck",
    width: int = 64,
    normalization: Normalization = "batch",
    activation: Activation = "relu",
    channels: int = 3,
    classes: int = 100,
) -> ResNet:
    """Return ResNet101: blocks [3, 4, 23, 3].

    Bottleneck blocks are the definition of He et al.; with basic blocks it has 68 layers, and is what the public code
    of source 000's author builds under this name. Arguments, shapes and errors are those of :class:`ResNet`.

    Example:
        >>> sum(p.numel() for p in resnet101("basic").parameters())
        41399716
        >>> sum(p.numel() for p in resnet101("bottleneck").parameters())
        42697380
    """
    return ResNet((3, 4, 23, 3), block, width, normalization, activation, channels, classes)
