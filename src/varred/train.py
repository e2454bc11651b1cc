"""One training loop: :func:`train` turns a config into a record, and can be killed and resumed at epoch ends."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from varred import __version__, data
from varred.config import Config, Execution, Folds, MetaInitialization, Observation, SVRGRule
from varred.files import write_atomically
from varred.init import QuotientError, gradient_quotient, he_normal, metainit, relative_cost
from varred.measure import gradient_noise, wide
from varred.models.layers import evaluating
from varred.optim import STORM, SVRG, Batch
from varred.optim.batch import preserved
from varred.record import (
    Curves,
    Divergence,
    Evaluation,
    Final,
    MetaInitTrace,
    Noise,
    Program,
    Provenance,
    Run,
    Seconds,
    StepSizes,
)

CURVE_IMAGES = 10_000
LOOK_EVERY = 100  # steps between two looks at the losses on the device
EVALUATION_BATCH = 500
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
CHECKPOINT_SECONDS = 60.0
FINGERPRINT = 20  # losses that a record keeps for its audit
QUOTIENT_BATCHES = 4

Progress = Callable[[int, int], None]
"""``progress(epoch, epochs)`` is called at each epoch's end."""


@dataclass
class Parts:
    """The tensors of a run on its device."""

    train: data.TrainingData
    curve: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]
    plain_train: tuple[Tensor, Tensor]
    checksum: str
    shape: tuple[int, int, int]
    classes: int


def prepare(config: Config, device: torch.device) -> Parts:
    """Load, split, standardize and move the data of a run.

    Pixels are scaled to [0, 1], then standardized per channel by the mean and the standard deviation of the data set's
    whole training part.
    """
    source = data.load(config.data.name, config.data.size)
    count = len(source.train_targets)
    indices, held = torch.arange(count), torch.arange(0)
    holdout = config.data.holdout
    if isinstance(holdout, Folds):
        indices, held = data.fold_indices(count, holdout.folds, holdout.fold)
    elif holdout is not None:
        indices, held = data.holdout_indices(count, holdout.fraction)
    if config.data.subset is not None:
        if config.data.subset > len(indices):
            raise ValueError(f"subset = {config.data.subset} is more than the {len(indices)} training images there are")
        indices = indices[torch.randperm(len(indices), generator=data.generator(0, "subset"))[: config.data.subset]]
    if holdout is not None and not (len(indices) and len(held)):
        raise ValueError(f"the holdout leaves {len(indices)} images for training and {len(held)} for validation")
    indices = indices.sort().values
    mean, deviation = source.statistics()
    dtype = _dtype(config)

    def standardize(images: Tensor) -> Tensor:
        scale = (255 * deviation).view(-1, 1, 1).to(dtype)
        values = images.to(dtype).sub_((255 * mean).view(-1, 1, 1).to(dtype)).div_(scale)
        return values.to(device)

    def part(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return standardize(images).contiguous(memory_format=torch.channels_last), targets.to(device)

    plain = part(source.train_inputs[indices], source.train_targets[indices])
    augmented = config.data.augmentation == "crop_flip"
    if augmented:
        # The border is black, as in torchvision's RandomCrop before normalization.
        bordered = functional.pad(source.train_inputs[indices], (data.PAD,) * 4)
        padded = standardize(bordered).permute(0, 2, 3, 1).contiguous()
        train = data.TrainingData(padded, plain[1], augmented=True)
    else:
        train = data.TrainingData(*plain)
    chosen = torch.randperm(len(indices), generator=data.generator(0, "curve"))[:CURVE_IMAGES].to(device)
    return Parts(
        train,
        (plain[0][chosen], plain[1][chosen]),
        part(source.train_inputs[held], source.train_targets[held]) if len(held) else None,
        part(source.test_inputs, source.test_targets),
        plain,
        source.checksum,
        source.shape,
        len(source.classes),
    )


def _dtype(config: Config) -> torch.dtype:
    """Return the type of the run's images, weights and losses."""
    return torch.float64 if config.precision == "float64" else torch.float32


def build_model(config: Config, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return the model with the weights that the config's seed decides, whatever the caller drew before.

    MetaInit, which needs the device, is left to :func:`rescale`.
    """
    rule = config.initialization
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.derived_seed(config.seed, "weights"))
        model = config.model.build(shape, classes)
        if rule is not None and (rule.name == "he" or rule.start == "he"):
            he_normal(model)
    return model.to(_dtype(config))


def rescale(
    model: nn.Module, rule: MetaInitialization, shape: tuple[int, int, int], classes: int, seed: int
) -> MetaInitTrace:
    """Apply MetaInit to a fresh model in place; return what it did and what it cost."""

    def quotient() -> float:
        source = data.generator(seed, "quotient")
        sample = next(model.parameters())
        values = []
        with evaluating(model):
            for _ in range(QUOTIENT_BATCHES):
                inputs = torch.randn(rule.batch_size, *shape, generator=source).to(sample)
                targets = torch.randint(classes, (rule.batch_size,), generator=source).to(sample.device)
                loss = functional.cross_entropy(model(inputs), targets)
                values.append(gradient_quotient(loss, model.parameters()).item())
        return sum(values) / len(values)

    before = quotient()
    result = metainit(
        model,
        shape,
        classes,
        steps=rule.steps,
        batch_size=rule.batch_size,
        learning_rate=rule.learning_rate,
        momentum=rule.momentum,
        seed=data.derived_seed(seed, "metainit"),
    )
    cost = rule.steps * rule.batch_size * relative_cost(model, shape, classes)
    return MetaInitTrace(
        samples=round(cost), quotients=result.quotients, before=before, after=quotient(), norms=result.norms
    )


@dataclass
class _Progress:
    """What a checkpoint holds beside model and optimizer."""

    epoch: int = 0
    samples: int = 0
    curves: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in Curves.model_fields})
    fingerprint: list[float] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    momenta: list[list[float]] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)
    noise: list[dict[str, Any]] = field(default_factory=list)
    metainit: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(Seconds.model_fields, 0.0))
    diverged: dict[str, Any] | None = None
    earlier: list[dict[str, Any]] = field(default_factory=list)


class CheckpointError(ValueError):
    """A checkpoint can't be read; the message names the file."""


class Trainer:
    """A run in progress: model, optimizer, data and what has been recorded so far.

    Args:
        config: the run.
        execution: device, threads and compilation.
        commit: of the code that trains, for the record.
        observation: what to measure on the way.

    """

    def __init__(
        self,
        config: Config,
        execution: Execution | None = None,
        commit: str = "unknown",
        observation: Observation | None = None,
    ) -> None:
        self.config = config
        self.observation = observation or Observation()
        self.commit = commit
        self.execution = execution or Execution()
        if self.execution.threads is not None:
            torch.set_num_threads(self.execution.threads)
        self.device = self.execution.resolve()
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # else a float32 convolution rounds its inputs to 10 bits
        if config.precision == "float64" and self.device.type == "mps":
            raise ValueError("precision 'float64' is not available on device mps: choose device cpu, or 'float32'")
        self.parts = prepare(config, self.device)
        self._start()
        if (len(self.parts.train) - 1) % config.batch_size == 0 and self._normalized:
            self._try_one_image()

    def _start(self) -> None:
        """Build model and optimizer; nothing has been done."""
        self.model = build_model(self.config, self.parts.shape, self.parts.classes).to(self.device)
        cast(Any, self.model).to(memory_format=torch.channels_last)  # torch's types know the argument for some versions
        self.optimizer = self.config.optimizer.build(self.model)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if self.execution.compile else self.model
        self.state = _Progress()

    def _try_one_image(self) -> None:
        """Refuse a last batch of one image where a layer of batch normalization would see a single value of it."""
        with preserved(list(self.model.buffers()), self.model.parameters()), torch.no_grad():
            try:
                self.model(self.parts.curve[0][:1])
            except ValueError as error:
                raise ValueError(
                    f"batch_size = {self.config.batch_size} leaves a last batch of one image, on which batch "
                    "normalization has no variance: choose another batch_size or subset"
                ) from error

    @property
    def _normalized(self) -> bool:
        return any(isinstance(module, _BatchNorm) for module in self.model.modules())

    def closure(self, batch: Batch) -> Tensor:
        """Forward and backward over one batch; counts its samples."""
        self.state.samples += batch.size
        loss = functional.cross_entropy(self._logits(batch.inputs), batch.targets)
        loss.backward()
        return loss

    def _logits(self, inputs: Tensor) -> Tensor:
        if self.config.precision == "bfloat16":
            with torch.autocast(self.device.type, torch.bfloat16):
                logits = self.forward(inputs)
            return logits.float()
        return self.forward(inputs)

    def step(self, batch: Batch) -> Tensor:
        """Make one step; return the loss before it, on the device."""
        if isinstance(self.optimizer, SVRG | STORM):
            return self.optimizer.step(batch, self.closure)
        self.optimizer.zero_grad()
        loss = self.closure(batch)
        self.optimizer.step()
        return loss.detach()

    def batches(self, epoch: int, size: int | None = None) -> Iterator[Batch]:
        """Cut an epoch's order, under the transforms in force, into batches."""
        count, config = len(self.parts.train), self.config
        order = data.epoch_order(count, config.seed, epoch, config.redraw_order, config.redraw_last).to(self.device)
        transforms = None
        if self.parts.train.augmented:
            transforms = data.Augmentation.draw(
                count, config.seed, epoch, config.redraw_transforms, config.redraw_last
            ).to(self.device)
        return self.parts.train.batches(size or config.batch_size, order, transforms)

    def snapshot(self, epoch: int) -> None:
        """Take SVRG's snapshot at the start of ``epoch``, over its batches, if one is due."""
        rule = self.config.optimizer
        if isinstance(self.optimizer, SVRG) and isinstance(rule, SVRGRule) and rule.snapshot.due(epoch):
            self.optimizer.snapshot(self.batches(epoch, rule.snapshot.batch_size), self.closure)

    def begin(self, epoch: int) -> None:
        """Do what comes before the first step of an epoch: training mode, the seed of dropout, the snapshot."""
        self.model.train()
        # Dropout's randomness is a function of (seed, epoch), like every other draw.
        torch.manual_seed(data.derived_seed(self.config.seed, "noise", epoch))
        with self.timed("snapshots"):
            self.snapshot(epoch)

    def epoch(self, epoch: int) -> Tensor:
        """Make the steps of one epoch; return their losses on the device, or those before the run was given up."""
        count = -(-len(self.parts.train) // self.config.batch_size)
        losses = torch.empty(count, device=self.device, dtype=_dtype(self.config))
        self.begin(epoch)
        moments = self.observation.moments(epoch, count) if isinstance(self.optimizer, SVRG) else {}
        with self.timed("steps"):
            for batch in self.batches(epoch):
                losses[batch.index] = self.step(batch)
                done = batch.index + 1
                if done in moments:
                    self._measure(epoch, done, moments[done])
                if done % LOOK_EVERY == 0 and not bool(torch.isfinite(losses[done - LOOK_EVERY : done]).all()):
                    return losses[:done]
        return losses

    @property
    def threads(self) -> int:
        """CPU threads in use."""
        return torch.get_num_threads()

    @property
    def _program(self) -> dict[str, Any]:
        return {
            "commit": self.commit,
            "torch": str(torch.__version__),
            "device": device_name(self.device),
            "threads": self.threads,
        }

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Add the block's wall time to ``state.seconds[kind]``, the device's queue drained at both ends."""
        self._synchronize()
        start = time.perf_counter()
        yield
        self._synchronize()
        self.state.seconds[kind] += time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def _measure(self, epoch: int, step: int, fractions: tuple[float, ...]) -> None:
        """Record the noise of the gradients over the epoch's partition and transforms."""
        assert isinstance(self.optimizer, SVRG)
        samples, before = self.state.samples, self.state.seconds["evaluation"]
        with self.timed("evaluation"):
            noise = gradient_noise(
                self.optimizer.parameters,
                self.optimizer.snapshot_point,
                self.optimizer.full_gradient,
                self.batches(epoch),
                self.closure,
                alpha=self.optimizer.alpha,
                buffers=self.model.buffers(),
            )
        self.state.samples = samples  # measuring is no part of the run's cost, nor of the time of its steps
        self.state.seconds["steps"] -= self.state.seconds["evaluation"] - before
        for fraction in fractions:
            self.state.noise.append({"epoch": epoch, "step": step, "fraction": fraction, **dataclasses.asdict(noise)})

    def _observe(self, running: float) -> None:
        with self.timed("evaluation"):
            curves = self.state.curves
            curves["samples"].append(self.state.samples)
            curves["running_loss"].append(running)
            sets = {"train": self.parts.curve, "validation": self.parts.validation, "test": self.parts.test}
            for name, part in sets.items():
                if part is not None:
                    result = evaluate(self._logits, self.model, *part)
                    curves[f"{name}_loss"].append(result.loss)
                    curves[f"{name}_accuracy"].append(result.accuracy)
            if isinstance(self.optimizer, STORM) and self.state.samples:
                # torch.quantile takes 16 million values at most.
                rates, momenta = (wide(torch.cat(values)).cpu().numpy() for values in self.optimizer.path())
                self.state.rates.append(np.quantile(rates, QUANTILES).tolist())
                self.state.momenta.append(np.quantile(momenta, QUANTILES).tolist())
                self.state.clipped.append(float((momenta == 1).mean()))

    def run(self, checkpoint: Path | None = None, progress: Progress | None = None) -> Run:
        """Train to the end, from the checkpoint if there is one.

        Args:
            checkpoint: file to save to, at most once a minute, at epoch ends; removed by the caller. One that is
                damaged, or lacks what is to be observed, is dropped, and where it can't be written the run goes on:
                only the resume is lost.
            progress: called at each epoch's end.

        """
        if checkpoint is not None:
            try:
                self.load(checkpoint)
            except FileNotFoundError:
                pass  # none yet, or removed by another sweep, which has recorded the run
            except CheckpointError as error:
                print(f"{error}; it is dropped, and the run starts afresh", flush=True)
                checkpoint.unlink(missing_ok=True)
                self._start()
        saved = time.monotonic()
        sizes = torch.full((-(-len(self.parts.train) // self.config.batch_size),), self.config.batch_size).double()
        sizes[-1] = len(self.parts.train) - sizes[:-1].sum()
        if self.state.epoch == 0:
            self.initialize()
            self._observe(float("nan"))
        while self.state.epoch < self.config.epochs and self.state.diverged is None:
            losses = self.epoch(self.state.epoch).cpu().double()
            if self.state.epoch == 0:
                self.state.fingerprint = losses[:FINGERPRINT].tolist()
            weights = sizes[: len(losses)]
            mean = ((losses * weights).sum() / weights.sum()).item()
            if not bool(torch.isfinite(losses).all()):
                self.state.diverged = {"epoch": self.state.epoch, "reason": "non-finite loss"}
            elif mean > 10 * self.state.fingerprint[0]:
                self.state.diverged = {"epoch": self.state.epoch, "reason": "loss above 10 times the first"}
            self.state.epoch += 1
            self._observe(mean)
            if progress is not None:
                progress(self.state.epoch, self.config.epochs)
            if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
                try:
                    self.save(checkpoint)
                except (OSError, RuntimeError) as error:
                    print(f"{checkpoint}: can't be written ({_line(error)}); the run goes on without it", flush=True)
                saved = time.monotonic()
        if self.state.diverged is None and not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            self.state.diverged = {"epoch": self.config.epochs - 1, "reason": "non-finite weights"}
        return self._record()

    def initialize(self) -> None:
        """Apply what the config asks for before the first step and beyond the draw of the weights: MetaInit.

        Where its gradient quotient is not finite the run is given up.
        """
        rule = self.config.initialization
        if isinstance(rule, MetaInitialization):
            with self.timed("initialization"):
                try:
                    trace = rescale(self.model, rule, self.parts.shape, self.parts.classes, self.config.seed)
                    self.state.metainit = trace.model_dump()
                except QuotientError:
                    self.state.diverged = {"epoch": 0, "reason": "non-finite gradient quotient"}

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "identity": self.config.identity,
            "program": self._program,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.state),
        }
        data = io.BytesIO()
        torch.save(state, data)
        write_atomically(path, data.getvalue())

    def load(self, path: Path) -> None:
        """Resume from a checkpoint; the record will name the program that saved it, if it is another one.

        Raises:
            ValueError: the checkpoint is another run's.
            CheckpointError: it is damaged, of another layout, or lacks what is to be observed.
            OSError, MemoryError, torch.OutOfMemoryError: it can't be read; that says nothing about what it holds.

        """
        content = io.BytesIO(path.read_bytes())
        try:
            # To the CPU: what belongs on the device goes there below, the step counters of Adam stay off it.
            state = torch.load(content, map_location="cpu", weights_only=True)
            identity = state["identity"]
            state["program"]  # what saved it
        except (MemoryError, torch.OutOfMemoryError):
            raise  # says nothing about what the file holds
        except Exception as error:  # torch raises RuntimeError, EOFError or UnpicklingError by the damage
            raise CheckpointError(f"{path}: the checkpoint is damaged") from error
        if identity != self.config.identity:
            reason = f"{path} is a checkpoint of run {identity}, not of {self.config.identity}"
            raise ValueError(f"{reason}; move it away and run again")
        try:
            progress = _Progress(**state["progress"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except torch.OutOfMemoryError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: the checkpoint is of another version of the program") from error
        if isinstance(self.optimizer, SVRG):
            last = progress.epoch if progress.diverged is None else progress.diverged["epoch"]
            if self.observation.asked(last) - {(noise["epoch"], noise["fraction"]) for noise in progress.noise}:
                raise CheckpointError(f"{path}: the checkpoint lacks what is to be observed")
        self.state = progress
        if state["program"] not in (self._program, *self.state.earlier):
            self.state.earlier.append(state["program"])

    def _final(self) -> Final:
        parts = self.parts
        return Final(
            train=evaluate(self._logits, self.model, *parts.plain_train),
            test=evaluate(self._logits, self.model, *parts.test),
            validation=evaluate(self._logits, self.model, *parts.validation) if parts.validation else None,
        )

    def _precise(self) -> Final | None:
        """Evaluate with the statistics of batch normalization averaged over the last epoch's batches; put them back."""
        config = self.config
        if self.state.diverged or not self._normalized:
            return None
        with preserved(list(self.model.buffers()), self.model.parameters()):
            torch.manual_seed(data.derived_seed(config.seed, "noise", config.epochs))  # of dropout
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                update_bn((batch.inputs for batch in self.batches(config.epochs - 1)), self.model)
            return self._final()

    def _record(self) -> Run:
        state, parts = self.state, self.parts
        with self.timed("evaluation"):
            final, precise = self._final(), self._precise()
        path = None
        if state.rates:
            path = StepSizes(
                quantiles=list(QUANTILES),
                learning_rate=state.rates,
                momentum=state.momenta,
                clipped=state.clipped,
            )
        return Run(
            config=self.config,
            curves=Curves(**state.curves),
            final=final,
            precise=precise,
            fingerprint=state.fingerprint,
            path=path,
            noise=[Noise(**noise) for noise in state.noise],
            metainit=MetaInitTrace(**state.metainit) if state.metainit else None,
            diverged=Divergence(**state.diverged) if state.diverged else None,
            data_checksum=parts.checksum,
            curve_images=len(parts.curve[1]),
            training_images=len(parts.train),
            seconds=Seconds(**state.seconds),
            provenance=Provenance(
                package=__version__,
                **self._program,
                compiled=self.execution.compile,
                earlier=[Program(**program) for program in state.earlier],
            ),
        )


def training_images(config: Config) -> int:
    """Return the number of images that the steps of a run draw from."""
    count = data.training_count(config.data.name, config.data.size)
    holdout = config.data.holdout
    if isinstance(holdout, Folds):
        count -= len(data.fold_indices(count, holdout.folds, holdout.fold)[1])
    elif holdout is not None:
        count -= round(count * holdout.fraction)
    return min(count, config.data.subset or count)


def gradient_computations(config: Config) -> int:
    """Return what a run costs, in gradients of single samples: the record's last count, if the run does not diverge.

    With ``n`` images, ``E`` epochs, ``S`` snapshots and batches of ``b``: ``n (2 E + S)`` for SVRG,
    ``2 n E - min(b, n)`` for STORM, else ``n E``.

    Example:
        >>> config = Config(data={"name": "mnist"}, model={"name": "lenet"}, batch_size=32,
        ...     optimizer={"name": "sgd", "learning_rate": 0.1}, epochs=2, seed=0)
        >>> gradient_computations(config)
        120000
        >>> gradient_computations(config.replace(optimizer={"name": "storm", "k": 0.1, "c": 100}))
        239968
    """
    count, rule = training_images(config), config.optimizer
    if isinstance(rule, SVRGRule):
        snapshots = sum(rule.snapshot.due(epoch) for epoch in range(config.epochs))
        return count * (2 * config.epochs + snapshots)
    if rule.name == "storm":
        return 2 * count * config.epochs - min(config.batch_size, count)
    return count * config.epochs


@torch.no_grad()
def evaluate(logits: Callable[[Tensor], Tensor], model: nn.Module, inputs: Tensor, targets: Tensor) -> Evaluation:
    """Return loss, accuracy and confidences over a set, in evaluation mode; the model's mode is put back.

    Args:
        logits: the forward pass, ``(b, ...)`` to ``(b, classes)``; called on 500 inputs at a time.
        model: what is put into evaluation mode.
        inputs: shape ``(n, ...)``.
        targets: numbers of the classes, int64, shape ``(n,)``.

    Example:
        >>> outputs = torch.tensor([[3.0, 1.0]] * 2).log()
        >>> result = evaluate(lambda x: x, nn.Identity(), outputs, torch.tensor([0, 1]))
        >>> result.accuracy, round(result.confidence_right, 2), round(result.loss_wrong, 4)
        (0.5, 0.75, 1.3863)
    """
    with evaluating(model):
        outputs = wide(torch.cat([logits(part) for part in inputs.split(EVALUATION_BATCH)]))
    targets = targets.to(outputs.device)
    losses = functional.cross_entropy(outputs, targets, reduction="none")
    confidence, predicted = outputs.softmax(1).max(1)
    right = predicted == targets
    return Evaluation(
        loss=losses.mean().item(),
        accuracy=right.double().mean().item(),
        confidence_right=confidence[right].mean().item(),
        confidence_wrong=confidence[~right].mean().item(),
        loss_right=losses[right].mean().item(),
        loss_wrong=losses[~right].mean().item(),
    )


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n")[0]


def device_name(device: torch.device) -> str:
    """Return the device as a record names it, e.g. ``"cpu"`` or ``"cuda: NVIDIA H200"``."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def processor_name() -> str:
    """Return the processor's name, as the system tells it, e.g. ``"AMD EPYC"``."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def train(
    config: Config,
    execution: Execution | None = None,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    commit: str = "unknown",
    observation: Observation | None = None,
) -> Run:
    """Train one config and return its record.

    Args:
        config: the run.
        execution: device, threads, compilation.
        checkpoint: file to resume from and to save to at epoch ends, at most once a minute.
        progress: called with (epochs done, epochs) at each epoch's end.
        commit: of the code that trains, for the record.
        observation: what to measure on the way; it changes no bit of the run.

    Raises:
        ValueError: the device is not there, or has no float64 where that is asked for; a subset is larger than what is
            left; a holdout leaves one part empty; a last batch of one image meets batch normalization; torchvision
            has no such network for these images; or the checkpoint is another run's.
        OSError: the checkpoint is there and can't be read.
        DataError: the data can't be had.

    Example:
        >>> config = Config(data={"name": "mnist", "size": "sample"}, model={"name": "lenet"},
        ...     batch_size=32, optimizer={"name": "sgd", "learning_rate": 0.1}, epochs=1, seed=0)
        >>> train(config, Execution(device="cpu")).curves.samples
        [0, 2000]

    """
    return Trainer(config, execution, commit, observation).run(checkpoint, progress)
