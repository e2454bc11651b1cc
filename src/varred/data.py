"""Data sets as tensors in canonical order, and every random draw of a run.

A data set is read once, put into one canonical order (images sorted by their bytes, then by label) and kept in memory
as tensors on the device. Subsets, splits and folds are seeded permutations of that order, never prefixes of a file's.

Where the images come from, in this order: an archive in the folder that the environment variable ``VARRED_DATA``
names; the copy embedded in the repository (MNIST whole, samples of CIFAR); torchvision's download.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from varred.optim.batch import Batch

Name = Literal["mnist", "cifar10", "cifar100"]
Size = Literal["full", "sample"]
Images = NDArray[np.uint8]

_SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
_COUNTS = {
    ("mnist", "full"): (60000, 10000),
    ("mnist", "sample"): (2000, 500),
    ("cifar10", "full"): (50000, 10000),
    ("cifar100", "full"): (50000, 10000),
    ("cifar10", "sample"): (2000, 500),
    ("cifar100", "sample"): (2000, 500),
}
PAD = 4  # pixels on each side of an image, out of which augmentation crops


class DataError(RuntimeError):
    """An archive is missing, truncated or altered; the message says what was expected and what to do."""


@dataclass(frozen=True)
class DataSet:
    """A data set in canonical order.

    Attributes:
        name: ``"mnist"``, ``"cifar10"`` or ``"cifar100"``.
        size: ``"full"``, or ``"sample"``: 2,000 training and 500 test images, balanced over the classes.
        train_inputs: uint8, shape ``(n, channels, height, width)``.
        train_targets: int64, shape ``(n,)``.
        test_inputs: uint8, as above.
        test_targets: int64, as above.
        classes: the names of the classes.
        checksum: SHA-256 of training images, training labels, test images and test labels, in canonical order, one
            byte a label.

    """

    name: str
    size: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: tuple[str, ...]
    checksum: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return _SHAPES[self.name]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel over the training images, pixels scaled to [0, 1]."""
        channels = self.train_inputs.shape[1]
        means, deviations = [], []
        for channel in range(channels):
            counts = torch.bincount(self.train_inputs[:, channel].flatten().int(), minlength=256).double()
            values = torch.arange(256, dtype=torch.float64) / 255
            mean = (counts * values).sum() / counts.sum()
            means.append(mean)
            deviations.append(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())
        return torch.stack(means), torch.stack(deviations)


def canonical(images: Images, labels: NDArray[np.integer]) -> tuple[Images, NDArray[np.int64]]:
    """Sort images by their bytes, then by label.

    Args:
        images: shape ``(n, channels, height, width)``.
        labels: shape ``(n,)``.

    Example:
        >>> images = np.array([[[[2]]], [[[1]]]], dtype=np.uint8)
        >>> canonical(images, np.array([5, 7]))[1].tolist()
        [7, 5]

    """
    flat = np.ascontiguousarray(images.reshape(len(images), -1))
    keys = np.concatenate([flat, labels.astype(np.uint8)[:, None]], axis=1)
    order = np.argsort(keys.view(f"V{keys.shape[1]}").ravel(), kind="stable")
    return np.ascontiguousarray(images[order]), labels[order].astype(np.int64)


@lru_cache(maxsize=2)
def load(name: Name, size: Size = "full") -> DataSet:
    """Read a data set, check it and return it in canonical order.

    Raises:
        ValueError: the name or the size is unknown.
        DataError: an archive is missing, truncated or altered.

    Example:
        >>> load("mnist", "sample").train_inputs.shape
        torch.Size([2000, 1, 28, 28])

    """
    if (name, size) not in _COUNTS:
        raise ValueError(
            f"unknown data set {name!r} at size {size!r}: choose mnist, cifar10 or cifar100; full or sample"
        )
    if size == "sample":
        arrays, source = (_mnist_sample(), None) if name == "mnist" else (_embedded_sheet(name), None)
    else:
        arrays, source = _full(name)
    x_train, y_train, x_test, y_test, classes = arrays
    found, expected = (len(x_train), len(x_test)), _COUNTS[name, size]
    where = f" in {source}" if source else ""
    again = "remove the file and provide" if source else "restore book/data with git checkout, which has"
    if found != expected or x_train.shape[1:] != _SHAPES[name]:
        raise DataError(
            f"{name}{where}: expected {expected[0]} + {expected[1]} images of shape {_SHAPES[name]}, found "
            f"{found[0]} + {found[1]} of shape {x_train.shape[1:]}; {again} a whole one"
        )
    if any(((labels < 0) | (labels >= len(classes))).any() for labels in (y_train, y_test)):
        raise DataError(f"{name}{where}: labels must be 0 to {len(classes) - 1}; {again} an unaltered one")
    x_train, y_train = canonical(x_train, y_train)
    x_test, y_test = canonical(x_test, y_test)
    digest = hashlib.sha256()
    for array in (x_train, y_train.astype(np.uint8), x_test, y_test.astype(np.uint8)):
        digest.update(array.tobytes())
    wanted = _checksums()[f"{name}-{size}"]
    if digest.hexdigest() != wanted:
        raise DataError(
            f"{name}{where}: the images differ from the published set (SHA-256 {digest.hexdigest()[:12]}, expected "
            f"{wanted[:12]}); {again} an unaltered one"
        )
    return DataSet(
        name,
        size,
        torch.from_numpy(x_train),
        torch.from_numpy(y_train),
        torch.from_numpy(x_test),
        torch.from_numpy(y_test),
        classes,
        digest.hexdigest(),
    )


def training_count(name: Name, size: Size) -> int:
    """Return the number of training images."""
    return _COUNTS[name, size][0]


Arrays = tuple[Images, NDArray[np.integer], Images, NDArray[np.integer], tuple[str, ...]]


def embedded_folder() -> Path | None:
    """Return the repository's ``book/data``, or None where the package is installed without the repository."""
    folder = Path(__file__).resolve().parents[2] / "book" / "data"
    return folder if folder.is_dir() else None


def _checksums() -> dict[str, str]:
    return json.loads((Path(__file__).parent / "checksums.json").read_text())  # type: ignore[no-any-return]


def _full(name: str) -> tuple[Arrays, Path]:
    folder = os.environ.get("VARRED_DATA")
    embedded = embedded_folder()
    if folder:
        if not Path(folder).is_dir():
            raise DataError(f"VARRED_DATA is {folder}, which is no folder: name one with {name}.npz, or unset it")
        path = Path(folder) / f"{name}.npz"
        if path.exists():
            return _read_npz(path, name), path
    if embedded is not None and (embedded / f"{name}.npz").exists():
        return _read_npz(embedded / f"{name}.npz", name), embedded / f"{name}.npz"
    return _torchvision(name, Path(folder) if folder else Path.home() / ".cache" / "varred")


def _read_npz(path: Path, name: str) -> Arrays:
    try:
        with np.load(path) as archive:
            x_train, x_test = archive["x_train"], archive["x_test"]
            y_train, y_test = archive["y_train"], archive["y_test"]
            count = 100 if name == "cifar100" else 10
            classes = tuple(map(str, archive["classes"] if "classes" in archive else range(count)))
            if len(classes) != count:
                raise ValueError("classes")
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; change its permissions") from error
    except Exception as error:  # numpy raises OSError, ValueError, EOFError, BadZipFile or zlib.error by the damage
        raise DataError(
            f"{path}: expected a NumPy archive with x_train, y_train, x_test and y_test (and the names of all classes, "
            f"or none), but it can't be read ({type(error).__name__}); remove it and provide a whole one"
        ) from error
    channels, height, width = _SHAPES[name]
    form = (height, width) if name == "mnist" else (height, width, channels)
    for part, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        pixels = images.dtype == np.uint8 and images.shape[1:] == form
        if not (pixels and labels.dtype.kind in "iu" and labels.shape == images.shape[:1]):
            raise DataError(
                f"{path}: expected x_{part} as uint8 of shape (n, {', '.join(map(str, form))}) and y_{part} as "
                f"integers of shape (n,), found {images.dtype} of shape {images.shape} and {labels.dtype} of shape "
                f"{labels.shape}; remove it and provide a whole one"
            )
    if name == "mnist":
        return x_train[:, None], y_train, x_test[:, None], y_test, classes
    return x_train.transpose(0, 3, 1, 2), y_train, x_test.transpose(0, 3, 1, 2), y_test, classes


def _torchvision_part(name: str, folder: Path, train: bool) -> Any:
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return kind(root=folder, train=train, download=True)


def _torchvision(name: str, folder: Path) -> tuple[Arrays, Path]:
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # beside another torch than its own it raises RuntimeError
        raise DataError(
            f"{name} at full size would be downloaded, but torchvision can't be loaded ({error}): install the one that "
            f"belongs to this torch, or set VARRED_DATA to a folder with {name}.npz"
        ) from error
    try:
        train, test = (_torchvision_part(name, folder, flag) for flag in (True, False))
    except Exception as error:  # torchvision raises RuntimeError, URLError or OSError
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise DataError(
            f"{name} at full size is neither in VARRED_DATA ({os.environ.get('VARRED_DATA', 'not set')}) nor can it be "
            f"downloaded to {folder} ({reason}): set VARRED_DATA to a folder with {name}.npz or go online"
        ) from error

    def pixels(part: Any) -> Images:
        data = np.asarray(part.data)
        return data[:, None] if data.ndim == 3 else data.transpose(0, 3, 1, 2)

    arrays = (
        pixels(train),
        np.asarray(train.targets),
        pixels(test),
        np.asarray(test.targets),
        tuple(str(c).split(" ")[0] for c in train.classes),
    )
    return arrays, folder


def _embedded_sheet(name: str) -> Arrays:
    """Read the embedded sample: one lossless sheet, 50 images a row, the first 2,000 for training."""
    folder = embedded_folder()
    if folder is None:
        raise DataError(
            f"the sample of {name} is in the repository's book/data, not in the installed package: clone it"
        )
    try:
        sheet = np.asarray(Image.open(folder / f"{name}-sample.webp").convert("RGB"))
        meta = json.loads((folder / f"{name}-sample.json").read_text())
        images = sheet.reshape(-1, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
        labels, classes = np.asarray(meta["labels"], dtype=np.int64), tuple(meta["classes"])
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{labels.size} labels for {len(images)} images")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / name}-sample: can't be read ({error}); restore it with git checkout") from error
    return images[:2000], labels[:2000], images[2000:], labels[2000:], classes


def _mnist_sample() -> Arrays:
    """Take a balanced sample of MNIST, chosen by a seeded permutation."""
    full = load("mnist", "full")

    def take(inputs: Tensor, targets: Tensor, per_class: int, purpose: str) -> tuple[Images, NDArray[np.int64]]:
        order = torch.randperm(len(targets), generator=generator(0, purpose))
        keep = torch.cat([order[targets[order] == digit][:per_class] for digit in range(10)])
        return inputs[keep].numpy(), targets[keep].numpy()

    x_train, y_train = take(full.train_inputs, full.train_targets, 200, "sample train")
    x_test, y_test = take(full.test_inputs, full.test_targets, 50, "sample test")
    return x_train, y_train, x_test, y_test, full.classes


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a generator that depends on its arguments alone, never on what was drawn before.

    So two runs that differ in their optimizer see the same batches, whatever either evaluates in between.

    Example:
        >>> a = torch.rand(1, generator=generator(1, "order", 3))
        >>> keys = ((1, "order", 3), (1, "order", 4), (1, "noise", 3), (2, "order", 3))
        >>> [bool(a == torch.rand(1, generator=generator(*key))) for key in keys]
        [True, False, False, False]

    """
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *counters))


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """Return 63 bits that depend on the arguments alone."""
    text = json.dumps([seed, purpose, *counters])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def fold_indices(count: int, folds: int, fold: int) -> tuple[Tensor, Tensor]:
    """Return (training, held-out) indices of one fold; the folds are disjoint and exhaust ``range(count)``.

    Example:
        >>> train, held = fold_indices(10, 4, 0)
        >>> len(train), len(held)
        (7, 3)
        >>> every = torch.cat([fold_indices(10, 4, fold)[1] for fold in range(4)])
        >>> every.sort().values.tolist() == list(range(10))
        True

    """
    order = torch.randperm(count, generator=generator(0, "folds"))
    parts = list(torch.tensor_split(order, folds))
    held = parts.pop(fold)
    return torch.cat(parts), held


def holdout_indices(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Return (training, held-out) indices; the held-out part is ``fraction`` of a seeded permutation.

    Example:
        >>> train, held = holdout_indices(10, 0.3)
        >>> len(train), len(held)
        (7, 3)
        >>> torch.cat([train, held]).sort().values.tolist() == list(range(10))
        True

    """
    order = torch.randperm(count, generator=generator(0, "holdout"))
    held = round(count * fraction)
    return order[held:], order[:held]


def in_force(epoch: int, redraw: int, last: int | None = None) -> int:
    """Return the number of the draw in force at ``epoch``: one every ``redraw`` epochs, none after epoch ``last``.

    Example:
        >>> [in_force(epoch, 5, last=5) for epoch in (0, 4, 5, 9, 10, 99)]
        [0, 0, 1, 1, 1, 1]

    """
    return (epoch if last is None else min(epoch, last)) // redraw


def epoch_order(count: int, seed: int, epoch: int, redraw: int = 1, last: int | None = None) -> Tensor:
    """Return the permutation of ``range(count)`` in force at ``epoch``, redrawn as :func:`in_force` says."""
    return torch.randperm(count, generator=generator(seed, "order", in_force(epoch, redraw, last)))


@dataclass(frozen=True)
class Augmentation:
    """One draw of pad-and-crop and horizontal flip for every sample: it can be kept, so it can be locked.

    Attributes:
        rows: int64, shape ``(n,)``, the crop's first row in the padded image, 0 to 8 (twice the padding of 4).
        columns: likewise for columns.
        flips: bool, shape ``(n,)``.

    """

    rows: Tensor
    columns: Tensor
    flips: Tensor

    @classmethod
    def draw(cls, count: int, seed: int, epoch: int, redraw: int = 1, last: int | None = None) -> Augmentation:
        """Draw the transforms of all samples in force at ``epoch``, redrawn as :func:`in_force` says."""
        source = generator(seed, "transforms", in_force(epoch, redraw, last))
        shifts = torch.randint(2 * PAD + 1, (2, count), generator=source)
        return cls(shifts[0], shifts[1], torch.rand(count, generator=source) < 0.5)

    def to(self, device: torch.device) -> Augmentation:
        """Move the draw to a device."""
        return Augmentation(self.rows.to(device), self.columns.to(device), self.flips.to(device))

    def apply(self, padded: Tensor, indices: Tensor, size: int) -> Tensor:
        """Crop and flip the images ``indices`` of ``padded`` (channels last, padded on all sides), at once.

        Args:
            padded: shape ``(n, size + 2 * PAD, size + 2 * PAD, channels)``.
            indices: shape ``(b,)``.
            size: height and width of the crop.

        Returns:
            Shape ``(b, channels, size, size)`` in channels-last memory format.

        """
        offsets = torch.arange(size, device=padded.device)
        columns = torch.where(self.flips[indices, None], size - 1 - offsets, offsets) + self.columns[indices, None]
        rows = offsets + self.rows[indices, None]
        crops = padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TrainingData:
    """The training part of a data set on the device, ready to be cut into batches.

    Attributes:
        inputs: standardized, shape ``(n, channels, height, width)``; padded and channels last under augmentation.
        targets: shape ``(n,)``.
        augmented: whether batches are cropped and flipped.

    """

    inputs: Tensor
    targets: Tensor
    augmented: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, size: int, order: Tensor, augmentation: Augmentation | None = None) -> Iterator[Batch]:
        """Cut ``order`` into mini-batches of ``size``; the last one may be shorter and says so in its ``size``."""
        for index, part in enumerate(order.split(size)):
            if augmentation is None:
                inputs = self.inputs.index_select(0, part)
            else:
                inputs = augmentation.apply(self.inputs, part, self.inputs.shape[1] - 2 * PAD)
            yield Batch(index, inputs, self.targets.index_select(0, part))
