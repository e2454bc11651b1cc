"""The book's pictures: one style, one colour and one line style per method, drawn from records."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes

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
    "STORM": (GREEN, "-"),
    "MARS": (PURPLE, "-"),
}


def line(method: str) -> dict[str, object]:
    """Return the keyword arguments that draw ``method`` the same way in every figure.

    Example:
        >>> line("SVRG")["color"]
        '#D55E00'
    """
    colour, style = METHODS[method]
    return {"color": colour, "linestyle": style, "label": method}


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
            "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
            "svg.hashsalt": "varred",
            "svg.fonttype": "path",
            "image.cmap": "cividis",
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside a notebook there is nothing to set
        return
    set_matplotlib_formats("svg", metadata={"Date": None})


def label_ends(ax: Axes, *, gap: float = 0.045, pad: float = 4) -> None:
    """Write each line's label beside its last point, in its colour, moved apart where labels would touch.

    Args:
        ax: the axes; lines whose label starts with an underscore are left alone.
        gap: least distance between two labels, as a fraction of the axes' height.
        pad: distance between a line's end and its label, in points.
    """
    entries = []
    ax.figure.draw_without_rendering()
    to_axes = (ax.transData + ax.transAxes.inverted()).transform
    for drawn in ax.get_lines():
        label = str(drawn.get_label())
        x, y = drawn.get_data()
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
            xytext=(pad, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def new_figure(rows: int = 1, columns: int = 1, **keywords: object):  # type: ignore[no-untyped-def]
    """Return ``(figure, axes)`` in the book's style, sized for the page: 6.4 inches wide, 3.2 high a row."""
    keywords.setdefault("figsize", (6.4 if columns == 1 else 7.6, 3.4 * rows))
    return plt.subplots(rows, columns, **keywords)
