"""The book's experiments as lists of configs: one module a chapter, read by its notebook, the queue and ``verify``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from varred.config import Config
from varred.experiments import lenet_mnist
from varred.runs import Store


class Phase(NamedTuple):
    """A step of a queue: what it is called and what it trains."""

    name: str
    configs: list[Config]


CHAPTERS: dict[str, Callable[[str, Store], Iterator[tuple[str, list[Config]]]]] = {
    "12-lenet-mnist": lambda preset, store: lenet_mnist.queue(lenet_mnist.scale(preset), store),
}


def queue(chapter: str, preset: str, store: Store) -> Iterator[Phase]:
    """Yield a chapter's phases in order of need; a phase may depend on the records of those before it.

    Raises:
        ValueError: the chapter has no experiments.

    """
    if chapter not in CHAPTERS:
        raise ValueError(f"chapter {chapter!r} has no runs: choose one of {', '.join(CHAPTERS)}")
    for name, configs in CHAPTERS[chapter](preset, store):
        yield Phase(name, configs)
