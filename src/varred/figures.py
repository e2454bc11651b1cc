"""The book's pictures: one style, one colour and one line style per method, drawn from records."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from varred.data import DataSet
from varred.models.layers import evaluating
from varred.models.resnet import Residual, ResNet, Subsample
from varred.record import Run

# Okabe and Ito's palette: distinguishable under every common form of colour blindness.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#777777"

METHODS: Mapping[str, tuple[str, str]] = {
    # method: (colour, line style); the same through the whole book
    "GD": (BLACK, "-"),
    "SGD": (BLUE, "-"),
    "momentum": (SKY, "--"),
    "Nesterov": (GREEN, "-."),
    "AdaGrad": (PURPLE, (0, (1, 1))),  # type: ignore[dict-item]
    "RMSProp": (SKY, (0, (5, 1))),  # type: ignore[dict-item]
    "Adadelta": (GREY, "--"),
    "Adam": (ORANGE, "--"),
    "AdaMax": (BLACK, ":"),
    "SVRG": (VERMILION, "-"),
    "SAGA": (GREEN, "--"),
    "STORM": (GREEN, (0, (7, 1.5, 1, 1.5))),  # type: ignore[dict-item]
    "MARS": (PURPLE, "-"),
}


def boxed_legend(ax: Axes, **options: Any) -> None:
    """Draw a legend that covers the lines behind it."""
    ax.legend(frameon=True, facecolor="white", framealpha=1, edgecolor="none", **options)


def line(method: str) -> dict[str, Any]:
    """Return the keyword arguments that draw ``method`` the same way in every figure.

    What follows a comma tells a variant of the method, which is dotted.

    Example:
        >>> line("SVRG")["color"], line("SVRG, at 0.1")["color"]
        ('#D55E00', '#D55E00')

    """
    colour, style = METHODS[method.split(",")[0]]
    return {"color": colour, "linestyle": ":" if "," in method else style, "label": method}


def use_style() -> None:
    """Set the book's figure style; in a notebook, draw lines as reproducible SVG."""
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "axes.formatter.min_exponent": 3,  # 0.5 and 200 rather than powers of ten
            "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
            "svg.hashsalt": "varred",
            "svg.fonttype": "path",
            "image.cmap": "cividis",
        }
    )
    shell = sys.modules.get("IPython")
    if shell is None or shell.get_ipython() is None:  # outside a notebook there is nothing to set
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("svg", metadata={"Date": None})


def label_ends(ax: Axes, *, gap: float = 0.045) -> None:
    """Write each line's label beside its last point, in its colour, moved apart where labels would touch.

    Args:
        ax: the axes; lines whose label starts with an underscore are left alone.
        gap: least distance between two labels, as a fraction of the axes' height.

    """
    entries = []
    ax.figure.canvas.draw()
    to_axes = (ax.transData + ax.transAxes.inverted()).transform
    for drawn in ax.get_lines():
        label = str(drawn.get_label())
        x, y = (np.asarray(values) for values in drawn.get_data())
        if label.startswith("_") or len(x) == 0:
            continue
        height = float(to_axes((float(x[-1]), float(y[-1])))[1])
        entries.append((min(max(height, 0.0), 1.0), label, drawn.get_color()))
    entries.sort(key=lambda entry: entry[0])
    placed: list[float] = []
    for height, _, _ in entries:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    overflow = placed[-1] - 1.0 if placed else 0.0
    if overflow > 0:
        for i in range(len(placed) - 1, -1, -1):
            ceiling = 1.0 if i == len(placed) - 1 else placed[i + 1] - gap
            placed[i] = min(placed[i], ceiling)
    for (_, label, colour), height in zip(entries, placed, strict=True):
        ax.annotate(
            label,
            xy=(1.0, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def new_figure(rows: int = 1, columns: int = 1, **keywords: Any) -> tuple[Figure, Any]:
    """Return ``(figure, axes)`` in the book's style, sized for the page: 3.4 inches high a row."""
    keywords.setdefault("figsize", (6.4 if columns == 1 else 7.6, 3.4 * rows))
    return plt.subplots(rows, columns, **keywords)


def mark_empty(figure: Figure) -> None:
    """Write "not recorded yet" into axes that have nothing to show, so that no reader takes them for a result."""
    for ax in figure.axes:
        if ax.axison and not ax.has_data():
            ax.set(xscale="linear", yscale="linear", xticks=[], yticks=[])
            _ = ax.text(0.5, 0.5, "not recorded yet", transform=ax.transAxes, ha="center", va="center", color=GREY)


def samples(dataset: DataSet, per_class: int = 6) -> Figure:
    """Show the last training images of each class in canonical order: one column a class."""
    classes = len(dataset.classes)
    figure, axes = new_figure(per_class, classes, figsize=(7.6, 0.8 * per_class))
    for label in range(classes):
        chosen = dataset.train_inputs[dataset.train_targets == label][-per_class:]
        for row in range(per_class):
            ax = axes[row, label]
            image = chosen[row].permute(1, 2, 0)
            _ = ax.imshow(image.squeeze(-1), cmap="gray_r" if image.shape[-1] == 1 else None)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            for side in ax.spines.values():
                side.set_visible(False)
        axes[0, label].set_title(dataset.classes[label], fontsize=9)
    return figure


def gallery(dataset: DataSet, labels: Sequence[int]) -> Figure:
    """Show one training image of each of some classes, with the class's name."""
    columns = 6
    figure, axes = new_figure(-(-len(labels) // columns), columns, figsize=(7.6, 1.5 * -(-len(labels) // columns)))
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, label in zip(axes.flat, labels, strict=False):
        image = dataset.train_inputs[dataset.train_targets == label][-1]
        _ = ax.imshow(image.permute(1, 2, 0))
        ax.set_title(dataset.classes[label].replace("_", " "), fontsize=9)
    return figure


def trace(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], int]]:
    """Run one image through the model; return each layer's name, output shape and number of parameters.

    Example:
        >>> from varred.models import LeNet
        >>> trace(LeNet(), (1, 28, 28))[0]
        ('Conv2d 5x5', (6, 28, 28), 156)
    """
    rows: list[tuple[str, tuple[int, ...], int]] = []

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        name = type(module).__name__
        kernel = getattr(module, "kernel_size", None)
        if kernel is not None:
            height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
            name += f" {height}x{width}"
        rows.append((name, tuple(output.shape[1:]), sum(p.numel() for p in module.parameters())))

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(record) for module in leaves]
    with torch.no_grad(), evaluating(model):
        model(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return rows


def network(model: nn.Module, shape: tuple[int, ...]) -> Figure:
    """Draw a sequential network from the shapes that pass through it: height for the maps', width for channels."""
    rows = [("input", shape, 0)]
    for name, output, parameters in trace(model, shape):
        if parameters or "Pool" in name:
            rows.append((name, output, parameters))
    figure, ax = new_figure(figsize=(7.6, 3.4))
    x = 0.0
    tallest = float(shape[-1])
    for place, (name, output, parameters) in enumerate(rows):
        spatial = len(output) == 3
        height = output[1] / tallest if spatial else 0.12 + 0.5 * output[0] / 400
        width = 0.12 + 0.03 * output[0] if spatial else 0.18
        colour = GREY if place == 0 else BLUE if "Conv" in name else SKY if "Pool" in name else ORANGE
        ax.add_patch(Rectangle((x, 0.5 - height / 2), width, height, color=colour, alpha=0.75, linewidth=0))
        size = "x".join(str(n) for n in output)
        short = name.replace("Conv2d", "conv").replace("AvgPool2d", "mean pool").replace("Linear", "dense")
        _ = ax.text(x + width / 2, 1.06, f"{short}\n{size}", ha="center", va="bottom", fontsize=8)
        if parameters:
            _ = ax.text(x + width / 2, -0.06, f"{parameters:,}", ha="center", va="top", fontsize=8, color=BLACK)
        if place < len(rows) - 1:
            ax.add_patch(
                FancyArrowPatch(
                    (x + width + 0.05, 0.5), (x + width + 0.55, 0.5), arrowstyle="-|>", mutation_scale=8, color=GREY
                )
            )
        x += width + 0.6
    _ = ax.text(-0.1, -0.06, "parameters", ha="right", va="top", fontsize=8)
    ax.set(xlim=(-0.9, x - 0.3), ylim=(-0.2, 1.3))
    ax.set_axis_off()
    return figure


def _layer(module: nn.Module) -> str:
    """Name a layer as drawings write it.

    Example:
        >>> _layer(nn.Conv2d(3, 8, 3, 2))
        'conv 3x3, 8, stride 2'

    """
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        stride = f", stride {module.stride[0]}" if module.stride[0] > 1 else ""
        return f"conv {height}x{width}, {module.out_channels}{stride}"
    if isinstance(module, Subsample):
        return f"every {module.stride}nd row, column"
    return {"BatchNorm2d": "batch norm", "Linear": "dense"}.get(type(module).__name__, type(module).__name__)


def residual_blocks(blocks: Mapping[str, Residual]) -> Figure:
    """Draw residual blocks side by side from their own layers: the residual path left, the shortcut right."""
    figure, axes = new_figure(1, len(blocks), figsize=(7.6, 4.2))
    for ax, (title, block) in zip(np.atleast_1d(axes), blocks.items(), strict=True):
        chain = [_layer(module) for module in block.residual.children()]
        side = [_layer(module) for module in block.shortcut.children()] or ["identity"]
        top, bottom = 1.0, 0.12
        for x, names, colour in ((0.3, chain, BLUE), (0.78, side, ORANGE)):
            places = np.linspace(top - 0.12, bottom + 0.12, len(names)) if len(names) > 1 else [0.5 * (top + bottom)]
            stops = [top, *places, bottom]
            for above, below in pairwise(stops):
                start, end = (x if above != top else 0.54, above), (x if below != bottom else 0.54, below)
                shrink = 8 if below == bottom else 11  # else the head lies under the box
                arrow = FancyArrowPatch(
                    start, end, arrowstyle="-|>", mutation_scale=9, color=GREY, shrinkA=8, shrinkB=shrink
                )
                ax.add_patch(arrow)
            for name, y in zip(names, places, strict=True):
                box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": colour, "linewidth": 1.4}
                _ = ax.text(x, y, name, ha="center", va="center", fontsize=8, bbox=box)
        _ = ax.text(0.54, top + 0.01, "input", ha="center", va="center", fontsize=9)
        _ = ax.text(0.54, bottom - 0.01, "+", ha="center", va="center", fontsize=15)
        _ = ax.text(0.54, 0.0, _layer(block.activation), ha="center", va="center", fontsize=9)
        down = FancyArrowPatch(
            (0.54, bottom), (0.54, 0.0), arrowstyle="-|>", mutation_scale=7, color=GREY, shrinkA=5, shrinkB=5
        )
        ax.add_patch(down)
        ax.set(xlim=(0, 1.05), ylim=(-0.05, 1.08), title=title)
        ax.set_axis_off()
    return figure


def residual_network(models: Mapping[str, ResNet], shape: tuple[int, int, int]) -> Figure:
    """Draw residual networks as chains of blocks: height for the size of the maps, one arc for each shortcut.

    More than four equal blocks in a row are drawn as three, with their number.
    """
    figure, axes = new_figure(len(models), 1, figsize=(7.6, 2.1 * len(models)))
    for ax, (title, model) in zip(np.atleast_1d(axes), models.items(), strict=True):
        values, x = torch.zeros(1, *shape), 0.0
        stages: list[tuple[str, str, tuple[int, ...], int]] = [("input", GREY, tuple(shape), 1)]
        with torch.no_grad(), evaluating(model):
            for module in model:
                values = module(values)
                size, name = tuple(values.shape[1:]), type(module).__name__
                if isinstance(module, Residual) and stages[-1][0] == "blocks" and stages[-1][2] == size:
                    stages[-1] = ("blocks", BLUE, size, stages[-1][3] + 1)
                elif isinstance(module, Residual):
                    stages.append(("blocks", BLUE, size, 1))
                elif isinstance(module, nn.Conv2d):
                    stages.append(("conv", SKY, size, 1))
                elif "Pool" in name or isinstance(module, nn.Linear):
                    stages.append(("mean" if "Pool" in name else "dense", ORANGE, size, 1))
        for name, colour, size, count in stages:
            height = max(0.12, size[1] / shape[1]) if len(size) == 3 else 0.3
            shown, left = (count if count <= 4 else 3), x
            for _ in range(shown):
                ax.add_patch(Rectangle((x, 0.5 - height / 2), 0.5, height, color=colour, alpha=0.75, linewidth=0))
                if name == "blocks":
                    arc = FancyArrowPatch(
                        (x - 0.1, 0.5 + height / 2),
                        (x + 0.6, 0.5 + height / 2),
                        connectionstyle="arc3,rad=-0.6",
                        arrowstyle="-|>",
                        mutation_scale=6,
                        color=BLACK,
                        linewidth=0.8,
                    )
                    ax.add_patch(arc)
                x += 0.75
            number = f"{count} blocks" if name == "blocks" and count > 1 else name.rstrip("s") if count == 1 else name
            written = "x".join(map(str, size))
            _ = ax.text((left + x - 0.25) / 2, -0.08, f"{number}\n{written}", ha="center", va="top", fontsize=8)
            x += 0.45
        parameters = sum(p.numel() for p in model.parameters())
        ax.set(xlim=(-0.3, max(x, 9)), ylim=(-0.35, 1.35))
        ax.set_title(f"{title}: {parameters:,} parameters", loc="left", fontsize=10)
        ax.set_axis_off()
    return figure


def rates(ax: Axes, losses: Mapping[str, Mapping[float, float]]) -> None:
    """Draw final validation loss against learning rate, one line a method; crosses at the top are diverged runs.

    Args:
        ax: the axes.
        losses: validation loss by method and learning rate, infinite where the run diverged.
    """
    for method, own in losses.items():
        finite = {rate: loss for rate, loss in sorted(own.items()) if np.isfinite(loss)}
        if finite:
            _ = ax.plot(list(finite), list(finite.values()), marker="o", markersize=4, **line(method))
            best = min(finite, key=lambda rate: finite[rate])
            _ = ax.plot(best, finite[best], "o", markersize=9, fillstyle="none", color=METHODS[method][0], label="_")
        for rate in own.keys() - finite.keys():
            top = ax.get_xaxis_transform()
            _ = ax.plot(rate, 0.97, "x", color=METHODS[method][0], transform=top, label="_")
    ax.set(xscale="log", xlabel="learning rate")
    tried = sorted({rate for own in losses.values() for rate in own})
    if tried:
        ax.set_xticks(tried, [f"{rate:g}" for rate in tried], rotation=45, fontsize=8)
        ax.minorticks_off()
        ax.legend(fontsize=9)


def _limits(ax: Axes) -> None:
    """Mark break-even and the limit of an uncorrelated snapshot that is as noisy as the iterate."""
    _ = ax.axhline(1.0, color=GREY, linewidth=1, label="_")
    _ = ax.axhline(2.0, color=GREY, linewidth=1, linestyle=":", label="_")


def noise(ax: Axes, runs: Mapping[str, Run], epoch: int, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw SVRG's mean squared error over SGD's variance within an epoch, one line a run; 1 is break-even.

    Args:
        ax: the axes.
        runs: measured runs by label.
        epoch: from 0.
        styles: of the lines, by label.
    """
    for label, run in runs.items():
        found = sorted((n.fraction, n.ratio) for n in run.noise if n.epoch == epoch)
        if found:
            _ = ax.plot(*zip(*found, strict=True), marker="o", markersize=4, label=label, **styles[label])
    _limits(ax)
    ax.set(xscale="log", yscale="log", xlabel="fraction of the epoch", title=f"epoch {epoch + 1}")


def noise_by_distance(ax: Axes, runs: Mapping[str, Run], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw SVRG's error over SGD's variance against the distance from the snapshot, one line a run and epoch.

    Markers of lines that aren't solid are hollow.

    Args:
        ax: the axes.
        runs: measured runs by label.
        styles: of the lines, by label.
    """
    epochs = sorted({n.epoch for run in runs.values() for n in run.noise})
    for label, run in runs.items():
        for epoch, marker in zip(epochs, itertools.cycle("^so"), strict=False):
            found = sorted((n.distance, n.ratio) for n in run.noise if n.epoch == epoch and n.distance > 0)
            if found:
                hollow: dict[str, Any] = {} if styles[label]["linestyle"] == "-" else {"fillstyle": "none"}
                _ = ax.plot(
                    *zip(*found, strict=True), marker=marker, markersize=4, label=label, **styles[label], **hollow
                )
    _limits(ax)
    ax.set(xscale="log", xlabel="distance from the snapshot", ylim=(0, None))


def band(
    ax: Axes,
    runs: Sequence[Run],
    x: Callable[[Run], Sequence[float]],
    curve: str,
    *,
    label: str,
    start: int = 1,
    **style: Any,
) -> None:
    """Draw the mean of a curve over seeds, and its range over seeds as a band; a cross where a run diverged.

    The cross is at the run's last finite value; at the upper edge where there is none among the points drawn.

    Args:
        ax: the axes.
        runs: runs that differ in their seed alone; beyond the end of one that diverged the mean is over the others.
        x: the horizontal positions of a run's points.
        curve: a field of :class:`varred.record.Curves`.
        label: of the mean's line.
        start: the first point drawn; 0 is the untrained network.
        style: of the line.
    """
    position = np.asarray(x(max(runs, key=lambda run: len(run.curves.samples)))[start:])
    values = _stack(runs, curve)[:, start:]
    drawn = ax.plot(position, values.mean(0), label=label, **style)[0]
    if len(runs) > 1:
        ax.fill_between(position, values.min(0), values.max(0), color=drawn.get_color(), alpha=0.18, linewidth=0)
    for run, row in zip(runs, values, strict=True):
        if run.diverged and len(position):
            finite = np.flatnonzero(~np.ma.getmaskarray(row))
            at = (position[finite[-1]], row[finite[-1]]) if finite.size else (position[0], 1.0)
            edge: dict[str, Any] = {} if finite.size else {"transform": ax.get_xaxis_transform(), "clip_on": False}
            _ = ax.plot(*at, "x", color=drawn.get_color(), label="_", **edge)


def _stack(runs: Sequence[Run], curve: str) -> np.ma.MaskedArray[Any, Any]:
    """Return a curve of each run, (runs, points), masked where a run has ended or its loss is not finite."""
    values = np.full((len(runs), max(len(run.curves.samples) for run in runs)), np.nan)
    for row, run in zip(values, runs, strict=True):
        own = getattr(run.curves, curve)
        row[: len(own)] = own
    return np.ma.masked_invalid(values)


def heat_map(ax: Axes, values: Sequence[Sequence[float]], columns: Sequence[str], rows: Sequence[str]) -> None:
    """Draw positive values over two hyper-parameters, dark where they are large, each with its number.

    Args:
        ax: the axes.
        values: by row and column, the first row at the bottom; a NaN leaves its field empty, an infinity stands for
            divergence.
        columns: labels of the horizontal axis.
        rows: labels of the vertical axis.

    Example:
        >>> _, ax = new_figure()
        >>> heat_map(ax, [[0.1, math.inf, math.nan]], ["1", "10", "100"], ["0.1"])
        >>> [text.get_text() for text in ax.texts]
        ['.1', 'div.']
    """
    shades = np.ma.masked_invalid(np.log(np.array(values)))
    middle = float((shades.min() + shades.max()) / 2)
    _ = ax.imshow(shades, cmap="cividis_r", origin="lower", aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if not math.isnan(value):
                text = f"{value:.2g}".removeprefix("0") if math.isfinite(value) else "div."
                colour = "white" if middle < math.log(value) < math.inf else BLACK
                _ = ax.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    _ = ax.set_xticks(range(len(columns)), columns)
    _ = ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(labelsize=8)
    ax.grid(visible=False)


def losses(runs: Mapping[str, Sequence[Run]], x: Callable[[Run], Sequence[float]], xlabel: str) -> Figure:
    """Draw training and test loss side by side, one band a method.

    Args:
        runs: by method; those without any are left out.
        x: the horizontal positions of a run's points.
        xlabel: their name and unit.
    """
    figure, axes = new_figure(1, 2, figsize=(7.6, 3.8))
    for ax, curve, title in zip(axes, ("train_loss", "test_loss"), ("training loss", "test loss"), strict=True):
        for method, own in runs.items():
            if own:
                band(ax, own, x, curve, **line(method))
        ax.set(yscale="log", title=f"{title} (nats)", xlabel=xlabel)
    if any(runs.values()):
        axes[0].legend(fontsize=9)
    mark_empty(figure)
    return figure


def overview(runs: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw the book's question: test loss against training loss along each method's path, first to last epoch.

    Read right to left, as training proceeds: at equal training loss, is one method's test loss lower?
    """
    figure, (left, right) = new_figure(1, 2, figsize=(7.6, 3.8))
    for method, own in runs.items():
        if own:
            band(left, own, lambda run: run.passes, "test_loss", **line(method))
            train, test = (_stack(own, curve)[:, 1:].mean(0) for curve in ("train_loss", "test_loss"))
            _ = right.plot(train, test, **line(method))
            _ = right.plot(train[-1:], test[-1:], "o", color=line(method)["color"], markersize=5, label="_")
    left.set(xscale="log", yscale="log", xlabel="gradient computations (passes)", title="test loss (nats)")
    right.set(xscale="log", yscale="log", xlabel="training loss (nats)", title="test loss (nats)")
    if any(runs.values()):
        left.legend(fontsize=9)
    mark_empty(figure)
    return figure
