"""Hyper-parameter grids: their points, and how they are widened where the best value lies on an edge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, ...]


@dataclass(frozen=True)
class Axis:
    """One hyper-parameter's values, and those that widening may add.

    Attributes:
        values: the source's, ascending.
        below: further values, the nearest first.
        above: likewise.

    """

    values: tuple[float, ...]
    below: tuple[float, ...] = ()
    above: tuple[float, ...] = ()

    @property
    def reach(self) -> tuple[float, ...]:
        """All values that widening may reach, ascending."""
        return (*reversed(self.below), *self.values, *self.above)


def points(axes: Sequence[Axis]) -> list[Point]:
    """Return the joint grid.

    Example:
        >>> points([Axis((1.0, 2.0)), Axis((5.0,))])
        [(1.0, 5.0), (2.0, 5.0)]

    """
    return list(itertools.product(*(axis.values for axis in axes)))


def candidates(axes: Sequence[Axis]) -> list[Point]:
    """Return the joint grid with all values that widening may reach."""
    return list(itertools.product(*(axis.reach for axis in axes)))


def widening(axes: Sequence[Axis], losses: Mapping[Point, float]) -> list[Point]:
    """Return the next points beyond an edge that holds the best value.

    Empty if the best lies inside, if enough was added, or while a point of the grid itself is not known.
    One value at a time in the direction of the edge, the other dimensions kept, and not beyond a value that diverged:
    its loss is infinite, so the edge is not the best. An edge is the least or the largest of all values that an axis
    has so far, at whatever point: a point that widening added alone is no edge of the other axes.

    Args:
        axes: of the grid.
        losses: of the points known so far, those of earlier widenings included.

    Example:
        >>> axis = Axis((1.0, 2.0), below=(0.5,), above=(4.0, 8.0))
        >>> widening([axis], {(1.0,): 0.3, (2.0,): 0.2})
        [(4.0,)]
        >>> widening([axis], {(1.0,): 0.3, (2.0,): 0.2, (4.0,): 0.1})
        [(8.0,)]
        >>> widening([axis], {(1.0,): 0.3, (2.0,): 0.2, (4.0,): float("inf")})
        []

    """
    if any(point not in losses for point in points(axes)):
        return []
    best = min(losses, key=lambda point: losses[point])
    added = []
    for place, axis in enumerate(axes):
        known = {point[place] for point in losses}
        for edge, further in ((min(known), axis.below), (max(known), axis.above)):
            fresh = [value for value in further if value not in known]
            if best[place] == edge and fresh:
                added.append(tuple(fresh[0] if i == place else value for i, value in enumerate(best)))
    return added


def bracket(axis: Axis, losses: Mapping[float, float]) -> list[float]:
    """Return the values to try next, until the best one lies between two that are worse.

    At first the source's largest value and the one above it, then whichever neighbours of the best have not been tried;
    empty once both have, or the axis ends. Where the loss has one minimum, that is the whole grid's choice at a part of
    its cost.

    Args:
        axis: the values.
        losses: of those tried so far, infinite where a run diverged.

    Example:
        >>> axis = Axis((1.0, 2.0), below=(0.5,), above=(4.0, 8.0))
        >>> bracket(axis, {})
        [2.0, 4.0]
        >>> bracket(axis, {2.0: 0.2, 4.0: 0.1})
        [8.0]
        >>> bracket(axis, {2.0: 0.2, 4.0: 0.1, 8.0: float("inf")})
        []

    """
    top = axis.values[-1]
    first = [value for value in (top, *axis.above[:1]) if value not in losses]
    if first and losses.get(top, 0.0) < math.inf:
        return first
    reach = axis.reach
    place = reach.index(min(losses, key=lambda value: (losses[value], value)))
    return [value for value in reach[max(place - 1, 0) : place + 2] if value not in losses]


def walk(axis: Axis, losses: Mapping[float, float]) -> tuple[dict[float, float], list[float]]:
    """Follow the search of :func:`bracket` through what is recorded.

    Values recorded for another reason, as the rest of the source's grid after the benchmark, don't enter: a choice on
    which runs were built stays what it was.

    Args:
        axis: the values.
        losses: all that are recorded, infinite where a run diverged.

    Returns:
        The losses of the values that the search has tried, in its order, and the values that it needs next: none once
        the best lies between two that are worse.

    Example:
        >>> axis = Axis((1.0, 2.0), below=(0.5,), above=(4.0, 8.0))
        >>> walk(axis, {0.5: 0.0, 1.0: 0.4, 2.0: 0.2, 4.0: 0.3})
        ({2.0: 0.2, 4.0: 0.3, 1.0: 0.4}, [])

    """
    tried: dict[float, float] = {}
    while wanted := bracket(axis, tried):
        there = {value: losses[value] for value in wanted if value in losses}
        if not there:
            break
        tried |= there
    return tried, wanted
