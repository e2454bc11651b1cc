"""Speed as ratios, each measured inside one run: ``make bench``.

Every ratio compares two ways to do the same work on this machine, in turns: the least time of one over the least time
of the other. Run it with nothing else running. The cost of a step is measured on one thread, as the runs of preset
``cpu`` are trained, and on LeNet with all cores too; what a user starts as it comes has all cores. The table is printed
and written to ``book/results/times/bench.json``, which the book shows.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from varred import data
from varred.config import Config, Execution
from varred.files import write_atomically
from varred.measure import gradient_noise
from varred.models import LeNet
from varred.optim import STORM, SVRG
from varred.optim.batch import preserved
from varred.runs import Store
from varred.sweep import sweep
from varred.train import Trainer, device_name, processor_name

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 100
CORES = os.cpu_count() or 1
DEVICE = Execution().resolve()


def synchronize() -> None:
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def ratio(first: Callable[[], Any], second: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, float, float]:
    """Return least time over least time, and the least and largest ratio of a round.

    Whatever else the machine does can only add to a time, so the least over rounds is the work's own; many short
    rounds find a quiet moment sooner than few long ones. The order alternates, so that a drift of the machine's speed
    doesn't favour one side.
    """
    times = []
    for index in range(rounds):
        if index % 2:
            times.append((seconds(first), seconds(second)))
        else:
            b = seconds(second)
            times.append((seconds(first), b))
    firsts, seconds_ = zip(*times, strict=True)
    values = [a / b for a, b in times]
    return min(firsts) / min(seconds_), min(values), max(values)


def config(rule: dict[str, Any], **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "data": {"name": "mnist", "subset": 800},
        "model": {"name": "lenet"},
        "optimizer": rule,
        "batch_size": 32,
        "epochs": 1,
        "seed": 0,
    }
    return Config(**{**settings, **changes})


SVRG_RULE = {"name": "svrg", "base": {"name": "sgd", "learning_rate": 0.01}, "snapshot": {"batch_size": 160}}
SAME_BATCHES = {**SVRG_RULE, "snapshot": {}}  # for batch normalization: the snapshot's batches are the step's
STORM_RULE = {"name": "storm", "k": 0.1, "c": 100.0, "granularity": "tensor"}
SGD_RULE = {"name": "sgd", "learning_rate": 0.01}


def bare(trainer: Trainer, times: int) -> None:
    """The work that can't be avoided: gather, forward and backward ``times`` over, then the base optimizer's step."""
    optimizer = SGD(trainer.model.parameters(), lr=0.01)
    for repeat in range(times):
        for batch in trainer.batches(0):
            optimizer.zero_grad()
            trainer.closure(batch)
            if repeat == times - 1:
                optimizer.step()


def svrg_epoch() -> tuple[float, float, float]:
    trainer, plain = Trainer(config(SVRG_RULE)), Trainer(config(SGD_RULE))
    trainer.model.train()
    assert isinstance(trainer.optimizer, SVRG)

    def epoch() -> None:
        trainer.snapshot(0)
        for batch in trainer.batches(0):
            trainer.step(batch)

    return ratio(epoch, lambda: bare(plain, 3))


def storm_epoch() -> tuple[float, float, float]:
    trainer, plain = Trainer(config(STORM_RULE)), Trainer(config(SGD_RULE))
    trainer.model.train()
    assert isinstance(trainer.optimizer, STORM)

    def epoch() -> None:
        for batch in trainer.batches(0):
            trainer.step(batch)

    return ratio(epoch, lambda: bare(plain, 2))


RESNET = {
    "data": {"name": "cifar10", "size": "sample", "subset": 384, "augmentation": "crop_flip"},
    "model": {"name": "resnet18", "width": 8},
    "batch_size": 128,
}


def svrg_resnet_epoch() -> tuple[float, float, float]:
    trainer, plain = Trainer(config(SAME_BATCHES, **RESNET)), Trainer(config(SGD_RULE, **RESNET))
    trainer.model.train()
    plain.model.train()

    def epoch() -> None:
        trainer.snapshot(0)
        for batch in trainer.batches(0):
            trainer.step(batch)

    return ratio(epoch, lambda: bare(plain, 3), rounds=10)


def noise_measurement() -> tuple[float, float, float]:
    trainer, plain = Trainer(config(SAME_BATCHES, **RESNET)), Trainer(config(SGD_RULE, **RESNET))
    for own in (trainer, plain):
        own.model.train()
    svrg = trainer.optimizer
    assert isinstance(svrg, SVRG)
    trainer.snapshot(0)
    parts = (svrg.parameters, svrg.snapshot_point, svrg.full_gradient)

    def measure() -> None:
        gradient_noise(*parts, trainer.batches(0), trainer.closure, buffers=trainer.model.buffers())

    def gradients() -> None:
        for batch in plain.batches(0):
            for _ in range(2):
                plain.optimizer.zero_grad()
                plain.closure(batch)

    return ratio(measure, gradients, rounds=10)


def buffers_reset() -> tuple[float, float, float]:
    """Saving and restoring batch normalization's statistics and the random state, over a step of SVRG."""
    trainer = Trainer(config(SAME_BATCHES, **RESNET))
    trainer.model.train()
    trainer.snapshot(0)
    batch = next(trainer.batches(0))
    buffers = list(trainer.model.buffers())

    def reset() -> None:
        with preserved(buffers, trainer.model.parameters()):
            pass

    return ratio(reset, lambda: trainer.step(batch), rounds=10)


def transient_memory() -> tuple[float, float, float]:
    """Peak of an SVRG step above plain SGD's, in copies of the parameters, on a network with few activations."""

    def peak(rule: dict[str, Any]) -> float:
        model = {"name": "mlp", "hidden": (1500, 1500)}
        trainer = Trainer(config(rule, model=model, batch_size=4, data={"name": "mnist", "size": "sample"}))
        trainer.model.train()
        trainer.snapshot(0)
        batch = next(trainer.batches(0))
        trainer.step(batch)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer.step(batch)
        events = profiler.profiler.kineto_results.events()
        level, highest = 0, 0
        for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            level += event.nbytes()
            highest = max(highest, level)
        return highest / sum(p.numel() * p.element_size() for p in trainer.model.parameters())

    copies = peak(SAME_BATCHES) - peak(SGD_RULE)
    return copies, copies, copies


def torchvision() -> Any:
    """Return the package; one that doesn't fit this torch is as good as none."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        raise ImportError(f"torchvision does not fit this torch: {error}") from error


def usual_loop() -> tuple[float, float, float]:
    """An epoch of 20,000 images, so that starting the workers weighs little, from torchvision's own data set."""
    transforms = torchvision().transforms

    source, count, mnist = data.load("mnist"), 20_000, torchvision().datasets.MNIST
    images = mnist.__new__(mnist)  # its __getitem__, on images that are there
    images.data, images.targets = source.train_inputs[:count, 0], source.train_targets[:count]
    images.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    images.target_transform = None
    model = LeNet().to(DEVICE)
    optimizer = SGD(model.parameters(), lr=0.01)

    def usual(workers: int) -> None:
        for inputs, targets in DataLoader(images, batch_size=32, shuffle=True, num_workers=workers):
            inputs, targets = inputs.to(DEVICE), targets.to(DEVICE)
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    trainer = Trainer(config(SGD_RULE, data={"name": "mnist", "subset": count}))
    trainer.model.train()
    faster = min((0, 2), key=lambda workers: min(seconds(lambda: usual(workers)) for _ in range(2)))

    def ours() -> None:
        for batch in trainer.batches(0):
            trainer.step(batch)

    return ratio(lambda: usual(faster), ours, rounds=7)


def sweep_of_eight() -> tuple[float, float, float]:
    """Eight runs, two processes of one thread, against one after another with all cores; starting them included."""
    sample = {"name": "mnist", "size": "sample"}
    configs = [config(SGD_RULE, data=sample, seed=seed, epochs=60) for seed in range(8)]

    def together() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sweep(configs, Store(folder), jobs=2, execution=Execution(device="cpu", threads=1))

    def one_by_one() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sweep(configs, Store(folder), jobs=1, execution=Execution(device="cpu", threads=CORES))

    return ratio(one_by_one, together, rounds=2)


def augmentation() -> tuple[float, float, float]:
    """Images a second: the vectorised crop and flip against torchvision's transforms in a DataLoader, two workers."""
    from PIL import Image

    transforms = torchvision().transforms
    sample = data.load("cifar10", "sample").train_inputs
    padded = functional.pad(sample, (data.PAD,) * 4).float().permute(0, 2, 3, 1).contiguous().to(DEVICE)
    order = torch.randperm(len(sample)).to(DEVICE)
    chain = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=data.PAD),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )

    class Cifar(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 10 * len(sample)

        def __getitem__(self, index: int) -> Any:
            return chain(Image.fromarray(sample[index % len(sample)].permute(1, 2, 0).numpy()))

    def theirs() -> None:
        for images in DataLoader(Cifar(), batch_size=128, num_workers=2):
            images.to(DEVICE)

    def ours() -> None:
        for _ in range(10):
            draw = data.Augmentation.draw(len(sample), 0, 0).to(DEVICE)
            for part in order.split(128):
                draw.apply(padded, part, 32)

    return ratio(theirs, ours, rounds=3)


def import_time() -> tuple[float, float, float]:
    """Seconds that importing the optimizers adds to importing torch, in fresh interpreters."""

    def once(extra: str) -> float:
        code = f"import time, torch; start = time.perf_counter(); {extra}; print(time.perf_counter() - start)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    values = [once("from varred.optim import SVRG, STORM") for _ in range(5)]
    return statistics.median(values), min(values), max(values)


# what: (measurement, sense, bound, threads)
MEASUREMENTS: dict[str, tuple[Callable[[], tuple[float, float, float]], str, float, int]] = {
    "SVRG epoch / (3 x gather, forward, backward + step), LeNet": (svrg_epoch, "at most", 1.03, 1),
    "SVRG epoch / the same, all cores": (svrg_epoch, "at most", 1.03, CORES),
    "STORM epoch / (2 x gather, forward, backward + step), LeNet": (storm_epoch, "at most", 1.06, 1),
    "STORM epoch / the same, all cores": (storm_epoch, "at most", 1.06, CORES),
    "SVRG epoch / (3 x gather, forward, backward + step), ResNet18": (svrg_resnet_epoch, "at most", 1.03, 1),
    "noise of gradients / (2 x gather, forward, backward), ResNet18": (noise_measurement, "at most", 1.05, 1),
    "batch normalization's reset / SVRG step, ResNet18": (buffers_reset, "at most", 0.01, 1),
    "transient memory of an SVRG step above SGD's, parameter copies": (transient_memory, "at most", 2.0, 1),
    "usual PyTorch loop / ours, MNIST": (usual_loop, "at least", 1.8, CORES),
    "8 runs one by one / as a sweep on 2 processes": (sweep_of_eight, "at least", 1.25, CORES),
    "torchvision transforms, 2 workers / vectorised augmentation, CIFAR": (augmentation, "at least", 3.0, CORES),
    "seconds that varred.optim adds to importing torch": (import_time, "at most", 0.15, CORES),
}


def main() -> None:
    path = ROOT / "book" / "results" / "times" / "bench.json"
    earlier = {row["what"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    machine = {
        "device": device_name(DEVICE),
        "processor": processor_name(),
        "cores": CORES,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    rows = []
    for name, (measure, sense, bound, threads) in MEASUREMENTS.items():
        torch.set_num_threads(threads)
        try:
            middle, low, high = measure()
        except ImportError as error:
            print(
                f"{name:70s} not measured ({error}){': the earlier row is kept' if name in earlier else ''}", flush=True
            )
            rows += [earlier[name]] if name in earlier else []
            continue
        met = middle <= bound if sense == "at most" else middle >= bound
        limit = f"{sense} {bound}"
        row = {"what": name, "ratio": middle, "least": low, "largest": high, "bound": limit, "met": met}
        rows.append({**row, "machine": {**machine, "threads": threads}})
        print(
            f"{name:70s} {middle:6.3f} [{low:.3f}, {high:.3f}]  {limit}: {'met' if met else 'NOT MET'}",
            flush=True,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
