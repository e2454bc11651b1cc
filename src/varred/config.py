"""What a run is: a frozen, validated config with an identity, and how it is executed.

The identity of a config is the hash of its canonical JSON, from which every field at its default is left out. So a
field that is added later, with the default that means what was done before, renames no record. Defaults never change.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn
from torch.optim import SGD, Adagrad, Adam, Optimizer

from varred.models import MLP, LeNet, resnet18, resnet101
from varred.models.layers import Activation, Normalization
from varred.optim import STORM, SVRG

Preset = Literal["smoke", "cpu", "paper"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    """A model that can't be changed and refuses what it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Folds(Frozen):
    """Hold out one fold of a k-fold cross-validation."""

    kind: Literal["folds"] = "folds"
    folds: Annotated[int, Field(ge=2)]
    fold: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _fold_exists(self) -> Folds:
        if self.fold >= self.folds:
            raise ValueError(f"fold must be below folds = {self.folds}, got {self.fold}")
        return self


class Fraction(Frozen):
    """Hold out a fraction of the training images."""

    kind: Literal["fraction"] = "fraction"
    fraction: Annotated[float, Field(gt=0, lt=1)]


class Data(Frozen):
    """The images a run trains on.

    Attributes:
        name: the data set.
        size: ``"full"``, or ``"sample"``: the 2,000 + 500 images that the repository embeds.
        holdout: what is kept from training for validation; None trains on all.
        subset: train on this many images of what is left (a seeded permutation's first); None for all.
        augmentation: ``"crop_flip"``: pad by 4, random crop, horizontal flip with probability 1/2.

    """

    name: Literal["mnist", "cifar10", "cifar100"]
    size: Literal["full", "sample"] = "full"
    holdout: Annotated[Folds | Fraction, Field(discriminator="kind")] | None = None
    subset: Count | None = None
    augmentation: Literal["none", "crop_flip"] = "none"


class LeNetModel(Frozen):
    """:class:`varred.models.LeNet`."""

    name: Literal["lenet"]
    activation: Activation = "tanh"
    normalization: Normalization = "none"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the network for images of ``shape`` (channels, height, width)."""
        return LeNet(self.activation, self.normalization, shape[0], shape[1], classes)


class MLPModel(Frozen):
    """:class:`varred.models.MLP`; ``hidden`` are the hidden widths."""

    name: Literal["mlp"]
    hidden: tuple[Count, ...]
    activation: Activation = "relu"
    normalization: Normalization = "none"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the network for images of ``shape`` (channels, height, width)."""
        inputs = shape[0] * shape[1] * shape[2]
        return MLP((inputs, *self.hidden, classes), self.activation, self.normalization)


class ResNetModel(Frozen):
    """:class:`varred.models.ResNet`: ResNet18, or ResNet101 in both of its forms."""

    name: Literal["resnet18", "resnet101", "resnet101_basic"]
    width: Count = 64
    normalization: Normalization = "batch"
    activation: Activation = "relu"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the network for images of ``shape`` (channels, height, width)."""
        if self.name == "resnet18":
            return resnet18(self.width, self.normalization, self.activation, shape[0], classes)
        block: Literal["basic", "bottleneck"] = "basic" if self.name == "resnet101_basic" else "bottleneck"
        return resnet101(block, self.width, self.normalization, self.activation, shape[0], classes)


class SGDRule(Frozen):
    """:class:`torch.optim.SGD`."""

    name: Literal["sgd"]
    learning_rate: Positive
    momentum: BelowOne = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGDRule:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0, got 0.0")
        return self

    def build(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of the model's parameters."""
        return SGD(model.parameters(), self.learning_rate, self.momentum, 0.0, self.weight_decay, self.nesterov)


class AdamRule(Frozen):
    """:class:`torch.optim.Adam`."""

    name: Literal["adam"]
    learning_rate: Positive
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: Positive = 1e-8

    def build(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of the model's parameters."""
        return Adam(model.parameters(), self.learning_rate, self.betas, self.eps)


class AdaGradRule(Frozen):
    """:class:`torch.optim.Adagrad`."""

    name: Literal["adagrad"]
    learning_rate: Positive
    eps: Positive = 1e-10

    def build(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of the model's parameters."""
        return Adagrad(model.parameters(), self.learning_rate, eps=self.eps)


class Snapshot(Frozen):
    """When SVRG takes its full gradient.

    Attributes:
        every: epochs between snapshots.
        last: the last epoch (from 0) that may start with one; None for no end.
        batch_size: size of the batches of the snapshot pass; None for the step's own. The mean is the same up to
            rounding; only for networks without batch normalization, which would make it another mean.

    """

    every: Count = 1
    last: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None

    def due(self, epoch: int) -> bool:
        """Return whether ``epoch`` (from 0) starts with a snapshot.

        Example:
            >>> [epoch for epoch in range(12) if Snapshot(every=5, last=5).due(epoch)]
            [0, 5]

        """
        return epoch % self.every == 0 and (self.last is None or epoch <= self.last)


class SVRGRule(Frozen):
    """:class:`varred.optim.SVRG` around a base optimizer.

    Attributes:
        base: the rule that makes the step.
        snapshot: when the full gradient is taken.
        alpha: coefficient of the control variate.
        reset_buffers: put batch normalization's running statistics back after the evaluations at the snapshot.

    """

    name: Literal["svrg"]
    base: Annotated[SGDRule | AdamRule | AdaGradRule, Field(discriminator="name")]
    snapshot: Snapshot = Snapshot()
    alpha: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    reset_buffers: bool = True

    def build(self, model: nn.Module) -> SVRG:
        """Return the estimator around the base optimizer of the model's parameters."""
        return SVRG(self.base.build(model), buffers=model.buffers() if self.reset_buffers else (), alpha=self.alpha)


class STORMRule(Frozen):
    """:class:`varred.optim.STORM`."""

    name: Literal["storm"]
    k: Positive
    c: NonNegative
    w0: Positive = 0.1
    granularity: Literal["global", "tensor", "coordinate"] = "global"
    clip: bool = True

    def build(self, model: nn.Module) -> STORM:
        """Return the optimizer of the model's parameters."""
        return STORM(model.parameters(), self.k, self.c, self.w0, self.granularity, self.clip, buffers=model.buffers())


class TorchvisionModel(Frozen):
    """A classifier of torchvision without trained weights, for example ``architecture="resnet18"``.

    Its stem is made for larger images: on 32 x 32 ones, torchvision's ResNets leave a 1 x 1 map to the last stage.
    """

    name: Literal["torchvision"]
    architecture: str

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the network for images of ``shape`` (channels, height, width).

        Raises:
            ValueError: torchvision has no such classifier, it has several outputs, or the images don't have three
                channels.

        """
        if self.architecture in ("googlenet", "inception_v3"):
            raise ValueError(f"{self.architecture} has auxiliary outputs, which the training loop has no loss for")
        try:
            from torchvision import models  # slow to import, and needed for nothing else
        except Exception as error:  # beside another torch than its own it raises RuntimeError
            raise ValueError(f"torchvision can't be loaded ({error}): install the one of this torch") from error
        if self.architecture not in models.list_models(module=models):
            raise ValueError(
                f"torchvision has no classifier {self.architecture!r}: see torchvision.models.list_models()"
            )
        if shape[0] != 3:
            raise ValueError(f"torchvision's classifiers take 3 channels, the images have {shape[0]}")
        model: nn.Module = models.get_model(self.architecture, weights=None, num_classes=classes)
        return model


class HeInitialization(Frozen):
    """He's normal initialization of two-dimensional convolutions and dense layers (fan-in, gain of ReLU); biases 0."""

    name: Literal["he"]


class MetaInitialization(Frozen):
    """:func:`varred.init.metainit`, on torch's default initialization or on He's.

    Attributes:
        steps: updates of the norms, each on its own batch of noise.
        batch_size: of the noise.
        learning_rate: of the norms, in their own units.
        momentum: of the norms.
        start: what MetaInit rescales.

    """

    name: Literal["metainit"]
    steps: Count = 200
    batch_size: Count = 32
    learning_rate: Positive = 0.1
    momentum: BelowOne = 0.9
    start: Literal["default", "he"] = "default"


Initialization = Annotated[HeInitialization | MetaInitialization, Field(discriminator="name")]
Model = Annotated[LeNetModel | MLPModel | ResNetModel | TorchvisionModel, Field(discriminator="name")]
Rule = Annotated[SGDRule | AdamRule | AdaGradRule | SVRGRule | STORMRule, Field(discriminator="name")]


class Config(Frozen):
    """One run, complete: two configs that differ only in the optimizer see the same weights and batches.

    Attributes:
        data: the images and their splits; standardized per channel by the training set's mean and deviation.
        model: the network.
        optimizer: the rule and its hyper-parameters.
        batch_size: samples a step.
        epochs: passes of steps over the training images.
        seed: decides the initial weights, the order, the transforms, dropout's masks and MetaInit's noise; splits and
            subsets don't depend on it.
        precision: ``"bfloat16"`` is autocast with float32 weights.
        redraw_order: epochs for which one order is kept.
        redraw_transforms: epochs for which one draw of the transforms is kept.
        redraw_last: the last epoch (from 0) at which either may be redrawn; None for no end. Order and transforms are
            locked to SVRG's snapshot where all three settings are the snapshot's own.
        initialization: of the weights; None is torch's default.

    Raises:
        ValidationError: a field is unknown, missing or out of range; a fold does not exist; Nesterov's momentum is 0;
            or ``snapshot.batch_size`` is given where the network may have batch normalization.

    Example:
        >>> config = Config(data={"name": "mnist"}, model={"name": "lenet"},
        ...     optimizer={"name": "sgd", "learning_rate": 0.1}, batch_size=32, epochs=1, seed=0)
        >>> len(config.identity)
        16
        >>> config.identity == Config(**config.model_dump()).identity
        True

    """

    data: Data
    model: Model
    optimizer: Rule
    batch_size: Count
    epochs: Count
    seed: Annotated[int, Field(ge=0)]
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    redraw_order: Count = 1
    redraw_transforms: Count = 1
    redraw_last: Annotated[int, Field(ge=0)] | None = None
    initialization: Initialization | None = None

    @model_validator(mode="after")
    def _snapshot_of_the_steps_batches(self) -> Config:
        size = self.optimizer.snapshot.batch_size if isinstance(self.optimizer, SVRGRule) else None
        if size is not None and (isinstance(self.model, TorchvisionModel) or self.model.normalization != "none"):
            raise ValueError(
                "optimizer.snapshot.batch_size must be left out where the network may have batch normalization, as "
                f"this {self.model.name}: the full gradient would be of other batches than the steps'; got {size}"
            )
        return self

    @property
    def canonical(self) -> str:
        """The JSON from which the identity is made: sorted keys, fields at their default left out."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that name the run."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:16]

    @property
    def method(self) -> str:
        """The optimizer's name as the book writes it."""
        return {"sgd": "SGD", "adam": "Adam", "adagrad": "AdaGrad", "svrg": "SVRG", "storm": "STORM"}[
            self.optimizer.name
        ]

    def replace(self, **changes: Any) -> Config:
        """Return a validated copy with some fields changed.

        Example:
            >>> config = Config(data={"name": "mnist"}, model={"name": "lenet"},
            ...     optimizer={"name": "sgd", "learning_rate": 0.1}, batch_size=32, epochs=1, seed=0)
            >>> config.replace(seed=1).seed
            1

        """
        return Config(**{**self.model_dump(), **changes})


class Observation(Frozen):
    """What is measured while a run trains: it changes no bit of the run, so it is no part of the identity.

    Attributes:
        epochs: epochs (from 0) in which the noise of the gradients is measured, for SVRG alone.
        fractions: after which fractions of their steps.

    Example:
        >>> Observation(epochs=(0,)).moments(0, 157)
        {3: (0.02,), 17: (0.11,), 52: (0.33,), 157: (1.0,)}
        >>> Observation(epochs=(0,)).moments(0, 4)
        {1: (0.02, 0.11, 0.33), 4: (1.0,)}

    """

    epochs: tuple[Annotated[int, Field(ge=0)], ...] = ()
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.02, 0.11, 0.33, 1.0)

    def asked(self, epochs: int) -> set[tuple[int, float]]:
        """Return the moments that a run of SVRG has behind it after so many epochs: epoch and fraction of each."""
        return {(epoch, fraction) for epoch in self.epochs if epoch < epochs for fraction in self.fractions}

    def moments(self, epoch: int, steps: int) -> dict[int, tuple[float, ...]]:
        """Return the numbers of steps after which to measure in ``epoch``, with the fractions they stand for."""
        moments: dict[int, tuple[float, ...]] = {}
        for fraction in self.fractions if epoch in self.epochs else ():
            step = max(1, round(fraction * steps))
            moments[step] = (*moments.get(step, ()), fraction)
        return moments


Device = Literal["auto", "cpu", "cuda", "mps"]


def execution(device: str, threads: int | None = None) -> Execution:
    """Return where and how a run executes, the device being there; a wrong value is one line.

    Raises:
        ValueError: the device is unknown or not there.

    """
    try:
        chosen = Execution.model_validate({"device": device, "threads": threads})
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    chosen.resolve()
    return chosen


class Execution(Frozen):
    """How a run is executed: it changes rounding and time, not the experiment, so it is no part of the identity.

    Attributes:
        device: ``"auto"`` takes CUDA, else MPS, else the CPU.
        threads: CPU threads; None leaves as many as the process has.
        compile: pass the model through :func:`torch.compile`.

    """

    device: Device = "auto"
    threads: Count | None = None
    compile: bool = False

    @staticmethod
    def _there() -> dict[str, bool]:
        return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}

    def resolve(self) -> torch.device:
        """Return the device.

        Raises:
            ValueError: the device that was asked for is not there.

        """
        there = self._there()
        if self.device == "auto":
            return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
        if not there[self.device]:
            present = ", ".join(name for name, here in there.items() if here)
            raise ValueError(f"device {self.device!r} is not available here: choose auto or one of {present}")
        return torch.device(self.device)


def explain(error: ValidationError) -> str:
    """Put a validation error into one line: where, what, and the value.

    Example:
        >>> try:
        ...     SGDRule(name="sgd", learning_rate=-1)
        ... except ValidationError as error:
        ...     print(explain(error))
        learning_rate: Input should be greater than 0, got -1

    """
    parts = []
    for item in error.errors():
        where = ".".join(str(p) for p in item["loc"]) or "config"
        if item["type"] == "value_error":  # our own, of a whole section: the message shows the values that matter
            parts.append(f"{where}: {item['ctx']['error']}")
        else:
            parts.append(f"{where}: {item['msg']}, got {item['input']!r}")
    return "; ".join(parts)
