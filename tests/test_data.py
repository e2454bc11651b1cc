"""Canonical order, splits, augmentation, draws, and archives that are not what they should be."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from varred import data

DATA = Path(__file__).parents[1] / "book" / "data"


@pytest.fixture(autouse=True)
def _fresh_cache() -> None:
    data.load.cache_clear()


def test_a_permuted_archive_gives_the_same_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = data.load("mnist")
    with np.load(DATA / "mnist.npz") as archive:
        arrays = dict(archive)
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        order = random.permutation(len(arrays[f"y_{part}"]))
        arrays[f"x_{part}"], arrays[f"y_{part}"] = arrays[f"x_{part}"][order], arrays[f"y_{part}"][order]
    np.savez(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("VARRED_DATA", str(tmp_path))
    data.load.cache_clear()
    again = data.load("mnist")
    assert again.checksum == published.checksum
    assert torch.equal(again.train_inputs, published.train_inputs)
    assert torch.equal(again.test_targets, published.test_targets)


@pytest.mark.parametrize(
    "damage", ["truncated", "altered", "short", "labels", "classes", "missing", "unreadable", "folder", "torchvision"]
)
def test_a_bad_archive_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    target = tmp_path / "mnist.npz"
    with np.load(DATA / "mnist.npz") as archive:
        arrays = dict(archive)
    if damage == "truncated":
        shutil.copy(DATA / "mnist.npz", target)
        target.write_bytes(target.read_bytes()[:100_000])
        message = "can't be read"
    elif damage == "altered":
        arrays["x_train"] = arrays["x_train"].copy()
        arrays["x_train"][0, 0, 0] ^= 1
        np.savez(target, **arrays)
        message = "the images differ from the published set"
    elif damage == "short":
        np.savez(target, **{**arrays, "x_train": arrays["x_train"][:-1], "y_train": arrays["y_train"][:-1]})
        message = "expected 60000 \\+ 10000 images"
    elif damage == "labels":
        np.savez(target, **{**arrays, "y_test": arrays["y_test"].astype(np.int64) + 1})
        message = "labels must be 0 to 9; remove the file"
    elif damage == "classes":
        np.savez(target, **{**arrays, "classes": np.arange(9)})
        message = "the names of all classes, or none"
    elif damage == "unreadable":
        target.touch()
        monkeypatch.setattr(data.np, "load", _not_permitted)
        message = "may not be read; change its permissions"
    elif damage == "folder":
        tmp_path = tmp_path / "mistyped"
        message = "mistyped, which is no folder"
    else:
        monkeypatch.setattr(data, "embedded_folder", lambda: None)
        monkeypatch.setattr(data, "_torchvision_part", _no_network)
        message = "set VARRED_DATA to a folder"
        if damage == "torchvision":
            monkeypatch.setitem(sys.modules, "torchvision", None)
            message = "torchvision can't be loaded"
    monkeypatch.setenv("VARRED_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load("mnist")
    assert "\n" not in str(caught.value)


def arrays(shape: tuple[int, ...], labels: int | None = None, kind: str = "uint8") -> dict[str, np.ndarray]:
    images = np.zeros(shape, kind)
    return {"x": images, "y": np.zeros(len(images) if labels is None else labels, np.int64)}


@pytest.mark.parametrize(
    ("name", "part", "bad", "expected"),
    [
        ("cifar10", "train", arrays((6, 32, 32)), "x_train as uint8 of shape \\(n, 32, 32, 3\\)"),
        ("cifar100", "test", arrays((6, 3, 32, 32)), "x_test as uint8 of shape \\(n, 32, 32, 3\\)"),
        ("mnist", "train", arrays((6, 32, 32)), "x_train as uint8 of shape \\(n, 28, 28\\)"),
        ("mnist", "test", arrays((6, 28, 28), kind="float32"), "x_test as uint8"),
        ("mnist", "train", arrays((6, 28, 28), labels=5), "y_train as integers of shape \\(n,\\)"),
    ],
    ids=["channels missing", "channels first", "too large", "floats", "labels missing"],
)
def test_an_archive_of_another_shape_is_named_with_the_one_expected(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: data.Name,
    part: str,
    bad: dict[str, np.ndarray],
    expected: str,
) -> None:
    good = arrays((6, 28, 28) if name == "mnist" else (6, 32, 32, 3))
    parts = {"train": good, "test": good, part: bad}
    path = tmp_path / f"{name}.npz"
    np.savez(path, **{f"{key}_{own}": values for own, both in parts.items() for key, values in both.items()})
    monkeypatch.setenv("VARRED_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=expected) as caught:
        data.load(name)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _not_permitted(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def _no_network(*_: object) -> None:
    raise OSError("no route to host")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_samples_are_balanced(name: str) -> None:
    sample = data.load(name, "sample")  # type: ignore[arg-type]
    classes = len(sample.classes)
    assert torch.equal(sample.train_targets.bincount(), torch.full((classes,), 2000 // classes))
    assert torch.equal(sample.test_targets.bincount(), torch.full((classes,), 500 // classes))


@pytest.mark.parametrize("damage", ["cut", "no labels", "fewer labels"])
def test_a_damaged_sample_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    for path in DATA.glob("cifar10-sample.*"):
        shutil.copy(path, tmp_path)
    (described,) = tmp_path.glob("*.json")
    meta = json.loads(described.read_text())
    changed = {"no labels": {"classes": meta["classes"]}, "fewer labels": {**meta, "labels": meta["labels"][:-1]}}
    described.write_text(json.dumps(changed[damage]) if damage in changed else described.read_text()[:-9])
    monkeypatch.setattr(data, "embedded_folder", lambda: tmp_path)
    with pytest.raises(
        data.DataError, match=r"cifar10-sample: can't be read \(.*; restore it with git checkout"
    ) as caught:
        data.load("cifar10", "sample")
    assert "\n" not in str(caught.value)


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(ValueError, match="unknown data set 'emnist'"):
        data.load("emnist")  # type: ignore[arg-type]


def test_folds_are_disjoint_and_exhaustive() -> None:
    held = [data.fold_indices(59, 4, fold)[1] for fold in range(4)]
    assert torch.equal(torch.cat(held).sort().values, torch.arange(59))
    for fold in range(4):
        train, own = data.fold_indices(59, 4, fold)
        assert torch.equal(torch.cat([train, own]).sort().values, torch.arange(59))
    # A seeded permutation, not a prefix: the archive's or the canonical order must not decide a fold.
    assert not torch.equal(held[0].sort().values, torch.arange(len(held[0])))


def test_draws_depend_on_their_arguments_alone() -> None:
    first = data.epoch_order(100, seed=1, epoch=3)
    torch.rand(7)
    assert torch.equal(first, data.epoch_order(100, seed=1, epoch=3))
    assert not torch.equal(first, data.epoch_order(100, seed=2, epoch=3))
    assert not torch.equal(first, data.epoch_order(100, seed=1, epoch=4))
    assert torch.equal(data.epoch_order(100, 1, 5, redraw=5), data.epoch_order(100, 1, 9, redraw=5))
    assert not torch.equal(data.epoch_order(100, 1, 4, redraw=5), data.epoch_order(100, 1, 5, redraw=5))


def test_augmentation_equals_cropping_and_flipping_one_by_one() -> None:
    images = torch.rand(20, 3, 32, 32)
    padded = torch.nn.functional.pad(images, (data.PAD,) * 4)
    draw = data.Augmentation.draw(20, seed=0, epoch=0)
    order = torch.randperm(20)[:7]
    fast = draw.apply(padded.permute(0, 2, 3, 1).contiguous(), order, 32)
    for place, i in enumerate(order.tolist()):
        row, column = int(draw.rows[i]), int(draw.columns[i])
        crop = padded[i, :, row : row + 32, column : column + 32]
        assert torch.equal(fast[place], crop.flip(2) if draw.flips[i] else crop)
    assert draw.flips.any()
    assert not draw.flips.all()
    many = data.Augmentation.draw(10_000, seed=0, epoch=0)
    assert set(many.rows.tolist()) == set(many.columns.tolist()) == set(range(2 * data.PAD + 1))


def test_batches_know_their_sizes_and_cover_the_epoch() -> None:
    part = data.TrainingData(torch.arange(50.0).view(50, 1), torch.arange(50))
    batches = list(part.batches(8, data.epoch_order(50, 0, 0)))
    assert [batch.size for batch in batches] == [8] * 6 + [2]
    assert [batch.index for batch in batches] == list(range(7))
    assert torch.equal(torch.cat([batch.targets for batch in batches]).sort().values, torch.arange(50))


def test_draws_are_those_of_the_records() -> None:
    # If one of these changes, no record can be made again.
    order, drawn = data.epoch_order(60, seed=1, epoch=2), data.Augmentation.draw(60, seed=1, epoch=2)
    assert order[:5].tolist() == [25, 58, 29, 41, 56]
    assert drawn.rows[:5].tolist() == [0, 2, 2, 2, 4]
    assert drawn.columns[:5].tolist() == [7, 4, 5, 5, 2]
    assert drawn.flips[:5].tolist() == [True, False, True, True, True]
    assert data.fold_indices(60, 4, 1)[1][:5].tolist() == [42, 44, 4, 5, 51]
    assert data.holdout_indices(60, 0.1)[1][:5].tolist() == [31, 33, 1, 34, 29]


def test_half_of_the_images_are_flipped_and_shifts_are_independent() -> None:
    many = data.Augmentation.draw(10_000, seed=0, epoch=0)
    assert float(many.flips.double().mean()) == pytest.approx(0.5, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([many.rows, many.columns]).double())[0, 1])) < 0.05
