"""What a run leaves behind: curves, final values and where they come from, in one validated JSON file."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer

from varred.config import Config, Frozen, Observation


def _write_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


# JSON has no infinities: a diverged run's losses are written as strings.
Number = Annotated[float, PlainSerializer(_write_number, when_used="json")]
Numbers = list[Number]


class Curves(Frozen):
    """One entry at the start and one at the end of each epoch.

    Attributes:
        samples: gradient computations so far, counted in samples: every forward and backward pass of every sample,
            snapshot passes and both evaluations of a step included, evaluations of the curves not.
        running_loss: mean training loss of the epoch's own steps; NaN at the start.
        train_loss: on a fixed seeded set of training images, without augmentation, in evaluation mode.
        train_accuracy: there, as a fraction.
        validation_loss: on the held-out images; empty without a holdout.
        validation_accuracy: there.
        test_loss: on the whole test set.
        test_accuracy: there.

    """

    samples: list[int] = []
    running_loss: Numbers = []
    train_loss: Numbers = []
    train_accuracy: Numbers = []
    validation_loss: Numbers = []
    validation_accuracy: Numbers = []
    test_loss: Numbers = []
    test_accuracy: Numbers = []


class Evaluation(Frozen):
    """Loss and accuracy on a set, and how confident the network is where it is right and where it is wrong.

    Attributes:
        loss: mean cross-entropy, in nats.
        accuracy: fraction of the images classified rightly.
        confidence_right: mean largest probability over rightly classified images (NaN if there are none).
        confidence_wrong: the same over wrongly classified images.
        loss_right: mean loss over rightly classified images.
        loss_wrong: mean loss over wrongly classified images.

    """

    loss: Number
    accuracy: Number
    confidence_right: Number
    confidence_wrong: Number
    loss_right: Number
    loss_wrong: Number


class Final(Frozen):
    """Evaluations at the end, on all images of each part."""

    train: Evaluation
    test: Evaluation
    validation: Evaluation | None = None


class StepSizes(Frozen):
    """STORM's step size and momentum parameter at the end of each epoch, over tensors or coordinates.

    Attributes:
        quantiles: the levels.
        learning_rate: one row an epoch, a value per level.
        momentum: likewise for :math:`a_{t+1}`.
        clipped: share of entries with a = 1, one an epoch: there the method is SGD.

    """

    quantiles: list[float]
    learning_rate: list[Numbers]
    momentum: list[Numbers]
    clipped: Numbers


class Noise(Frozen):
    """Noise of the gradients at one moment of an SVRG run: :class:`varred.measure.GradientNoise` and its place.

    Measured over the epoch's own partition and transforms, the ones that the steps walk through.

    Attributes:
        epoch: from 0.
        step: number of steps made in it.
        fraction: of its steps that was asked for.
        sgd: variance of the mini-batch gradient.
        centred: variance of the SVRG estimate about its own mean.
        offset: squared distance of that mean from the partition's gradient.
        distance: of the iterate from the snapshot.
        curvature: mean change of a mini-batch gradient since the snapshot, over the distance.
        gradient_norm: of the partition's gradient.

    """

    epoch: int
    step: int
    fraction: float
    sgd: Number
    centred: Number
    offset: Number
    distance: Number
    curvature: Number
    gradient_norm: Number

    @property
    def ratio(self) -> float:
        """Mean squared error of the SVRG estimate over the variance of the mini-batch gradient."""
        return (self.centred + self.offset) / self.sgd if self.sgd else math.nan


class MetaInitTrace(Frozen):
    """What MetaInit did before training.

    Attributes:
        samples: its cost in gradient computations: floating-point operations of all its steps over those of one
            sample's gradient. Not part of the curves' counts.
        quotients: the gradient quotient before each step, each on its own batch of noise.
        before: mean gradient quotient of the unscaled network over four fixed batches of noise.
        after: the same when MetaInit has ended.
        norms: norm of each rescaled tensor, before and after.

    """

    samples: int
    quotients: Numbers
    before: Number
    after: Number
    norms: dict[str, tuple[Number, Number]]


class Divergence(Frozen):
    """Where a run was given up, and why.

    Attributes:
        epoch: from 0.
        reason: a non-finite gradient quotient ends MetaInit, so it comes before the first step; non-finite weights
            are looked for after the last.

    """

    epoch: int
    reason: Literal[
        "non-finite loss", "loss above 10 times the first", "non-finite gradient quotient", "non-finite weights"
    ]


class Seconds(Frozen):
    """Wall time by kind of work. Runs may have shared the machine, so these are kept and never plotted."""

    steps: float
    snapshots: float
    evaluation: float
    initialization: float = 0.0


class Program(Frozen):
    """A state of the code, the torch it ran with, and on what; empty where older records don't say."""

    commit: str
    torch: str
    device: str = ""
    threads: int = 0


class Provenance(Frozen):
    """Which program made the record, and on what.

    Attributes:
        package: its version.
        commit: of the code that trained the last part of the run; parts end where a checkpoint is resumed from.
        torch: its version, then.
        device: then.
        threads: then.
        compiled: whether the model went through :func:`torch.compile`, then.
        earlier: the programs that trained parts before it changed, or the device did, each once, in order; left out
            of the file where there are none.

    """

    package: str
    commit: str
    torch: str
    device: str
    threads: int
    compiled: bool = False
    earlier: list[Program] = Field(default=[], exclude_if=lambda earlier: not earlier)


def _near(a: float, b: float) -> bool:
    """Whether two values agree but for rounding; two that aren't finite do."""
    return math.isclose(a, b, rel_tol=1e-3) or not (math.isfinite(a) or math.isfinite(b))


class Run(Frozen):
    """A run record.

    Attributes:
        version: of this schema.
        config: the run.
        curves: see :class:`Curves`.
        final: at the end; for a diverged run, at the point where it was given up.
        precise: the same with the statistics of batch normalization re-estimated at the final weights, by the plain
            average over one epoch's batches (Wu & Johnson 2021 call it PreciseBN); the running statistics behind
            ``final`` follow the iterate with a lag. None without batch normalization, for a diverged run, and in
            records made before it was kept; left out of the file then.
        fingerprint: losses of the first epoch's first 20 steps, or of all where it has fewer, by which anyone can audit
            the record in seconds; empty for a run given up before its first step.
        path: of STORM's step sizes; None for other methods.
        noise: of the gradients, where it was asked for.
        metainit: None where the config doesn't ask for it, and where it could not be carried through.
        diverged: None for a run that reached its end.
        data_checksum: SHA-256 of the data set in canonical order.
        curve_images: number of training images behind ``curves.train_loss``.
        training_images: number of images that the steps draw from.
        seconds: see :class:`Seconds`.
        provenance: see :class:`Provenance`.

    """

    version: Literal[1] = 1
    config: Config
    curves: Curves
    final: Final
    precise: Final | None = Field(default=None, exclude_if=lambda precise: precise is None)
    fingerprint: Numbers
    path: StepSizes | None = None
    noise: list[Noise] = []
    metainit: MetaInitTrace | None = None
    diverged: Divergence | None = None
    data_checksum: str
    curve_images: int
    training_images: Annotated[int, Field(ge=1)]
    seconds: Seconds
    provenance: Provenance

    def observed(self, observation: Observation) -> bool:
        """Return whether the record holds what was asked to be measured, up to where the run ended; SVRG's alone."""
        if self.config.optimizer.name != "svrg":
            return True
        last = self.config.epochs if self.diverged is None else self.diverged.epoch
        return observation.asked(last) <= {(noise.epoch, noise.fraction) for noise in self.noise}

    def contradiction(self) -> str | None:
        """Say where the record contradicts itself; None where it doesn't.

        A run that ended has all its epochs. Its curves have one entry for each point, those of the validation and the
        test set end with the final values, and a mean loss is that of the rightly and of the wrongly classified images
        weighted by the accuracy.
        """
        if not self.curves.samples:
            return "its curves are empty"
        epochs = len(self.curves.samples) - 1
        if self.diverged is None and epochs != self.config.epochs:
            return f"it has {epochs} of {self.config.epochs} epochs, and no divergence"
        curves = self.curves.model_dump()
        for name, values in curves.items():
            needed = self.final.validation is not None or not name.startswith("validation")
            if len(values) != (len(self.curves.samples) if needed else 0):
                return f"the curve {name} has {len(values)} entries"
        finals = {"train": self.final.train, "validation": self.final.validation, "test": self.final.test}
        for name, result in finals.items():
            if result is None:
                continue
            if name != "train":  # its curve is on fewer images
                for value in ("loss", "accuracy"):
                    if not _near(curves[f"{name}_{value}"][-1], getattr(result, value)):
                        return f"its final {name} {value} is not the last of the curve"
            weights = ((result.accuracy, result.loss_right), (1 - result.accuracy, result.loss_wrong))
            if not _near(sum(weight * loss for weight, loss in weights if weight > 0), result.loss):
                return f"its final {name} accuracy and losses don't fit"
        return None

    @property
    def batches(self) -> int:
        """Number of mini-batches of an epoch."""
        return -(-self.training_images // self.config.batch_size)

    @property
    def passes(self) -> list[float]:
        """Gradient computations at the curves' points, in passes over the training images."""
        return [count / self.training_images for count in self.curves.samples]
