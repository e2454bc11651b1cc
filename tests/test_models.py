"""Parameter counts, and that normalization=none really removes the layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from varred.config import TorchvisionModel
from varred.models import MLP, LeNet, resnet18, resnet101
from varred.models.layers import evaluating


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: LeNet(), 61_706),
        (lambda: LeNet("relu", "batch", 3, 32), 62_006 + 2 * (6 + 16 + 120 + 84)),
        (lambda: MLP((784, 512, 512, 10)), 669_706),
        (lambda: resnet18(), 11_173_962),
        (lambda: resnet18(normalization="none"), 11_164_362),
        (lambda: resnet101("basic"), 41_399_716),
        (lambda: resnet101("basic", normalization="none"), 41_365_284),
        (lambda: resnet101("bottleneck"), 42_697_380),
        (lambda: resnet101("bottleneck", normalization="none"), 42_592_036),
    ],
)
def test_parameter_counts(build: object, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


@pytest.mark.parametrize("build", [LeNet, MLP, resnet18, resnet101])
def test_without_normalization_no_such_layer_is_left(build: object) -> None:
    with torch.device("meta"):
        kinds = {type(m) for m in build(normalization="none").modules()}
        assert not kinds & {nn.BatchNorm1d, nn.BatchNorm2d}
        assert {type(m) for m in build(normalization="batch").modules()} & {nn.BatchNorm1d, nn.BatchNorm2d}


@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_a_narrow_resnet_runs_and_reaches_every_parameter(normalization: str) -> None:
    model = resnet18(width=2, normalization=normalization)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="activation must be one of tanh, relu, elu, got 'gelu'"):
        LeNet("gelu")
    with pytest.raises(ValueError, match="normalization must be one of none, batch, got 'layer'"):
        resnet18(normalization="layer")
    with pytest.raises(ValueError, match="size must be 28 or 32, got 64"):
        LeNet(size=64)


def test_an_evaluation_leaves_frozen_layers_frozen() -> None:
    model = resnet18(width=2)
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert not frozen.training
    assert all(module.training for module in model.modules() if module is not frozen)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_outputs_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has auxiliary outputs"):
        TorchvisionModel(name="torchvision", architecture=name).build((3, 32, 32), 10)


@pytest.mark.parametrize("build", [LeNet, MLP])
def test_normalization_comes_before_the_activation(build: type[nn.Sequential]) -> None:
    layers = list(build(activation="relu", normalization="batch"))
    places = [i for i, layer in enumerate(layers) if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert places
    assert all(isinstance(layers[i + 1], nn.ReLU) for i in places)


@pytest.mark.parametrize("build", [resnet18, resnet101])
@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_a_resnet_is_its_definition(build: Callable[..., nn.Module], normalization: str, float64: None) -> None:
    torch.manual_seed(0)
    bottleneck, batch = build is resnet101, normalization == "batch"
    model = build(width=2, normalization=normalization, activation="tanh")
    weights = iter(list(model.parameters()))

    def conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return functional.batch_norm(x, None, None, next(weights), next(weights), training=True) if batch else x

    images = torch.randn(4, 3, 32, 32)
    x = conv(images, next(weights)).tanh()
    for stage, count in enumerate((3, 4, 23, 3) if bottleneck else (2, 2, 2, 2)):
        for place in range(count):
            stride = 2 if stage and not place else 1
            h = x
            if bottleneck:
                h = conv(h, next(weights)).tanh()
            h = conv(h, next(weights), stride).tanh()
            h = conv(h, next(weights))
            x = (conv(x, next(weights), stride) if x.shape != h.shape else x) + h
            x = x.tanh()
    literal = functional.linear(x.mean((2, 3)), next(weights), next(weights))
    assert not list(weights)
    assert x.shape[-1] == 4
    assert (model(images) - literal).abs().max() < 1e-10


def test_lenet_and_mlp_are_their_definitions(float64: None) -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 1, 28, 28)
    w = list((net := LeNet()).parameters())
    x = functional.avg_pool2d(functional.conv2d(images, w[0], w[1], padding=2).tanh(), 2)
    x = functional.avg_pool2d(functional.conv2d(x, w[2], w[3]).tanh(), 2).flatten(1)
    x = functional.linear(functional.linear(x, w[4], w[5]).tanh(), w[6], w[7]).tanh()
    assert torch.allclose(net(images), functional.linear(x, w[8], w[9]))
    w = list((net := MLP((784, 5, 4, 3), "tanh")).parameters())
    x = functional.linear(functional.linear(images.flatten(1), w[0], w[1]).tanh(), w[2], w[3]).tanh()
    assert torch.allclose(net(images), functional.linear(x, w[4], w[5]))
