"""The book's experiments as lists of configs, read by their chapters, the queue and ``verify``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from varred.experiments import deficit, lenet_mnist, metainit_cifar100
from varred.experiments.comparison import RESNET18, RESNET101
from varred.runs import Store
from varred.sweep import Phase

CHAPTERS: dict[str, Callable[[str, Store], Iterator[Phase]]] = {
    "12-lenet-mnist": lambda preset, store: lenet_mnist.queue(lenet_mnist.scale(preset), store),
    "13-resnet18-cifar10": lambda preset, store: RESNET18.queue(RESNET18.scale(preset), store),
    "14-deficit": lambda preset, store: deficit.queue(RESNET18.scale(preset), store),
    "15-resnet101-cifar100": lambda preset, store: RESNET101.queue(RESNET101.scale(preset), store),
    "16-metainit-cifar100": lambda preset, store: metainit_cifar100.queue(RESNET101.scale(preset), store),
}


def queue(chapter: str, preset: str, store: Store) -> Iterator[Phase]:
    """Return a chapter's phases in order of need; a phase may depend on the records of those before it.

    Raises:
        ValueError: the chapter has no experiments.

    """
    if chapter not in CHAPTERS:
        raise ValueError(f"chapter {chapter!r} has no runs: choose one of {', '.join(CHAPTERS)}")
    return CHAPTERS[chapter](preset, store)


def progress(phases: Iterable[Phase], store: Store) -> dict[str, tuple[int, int]]:
    """Return how many runs each phase plans and how many of them have a record, by the phase's name.

    Phases of one name count together; a run that two phases ask for counts in both.
    """
    there: dict[str, dict[str, bool]] = {}
    planned: dict[str, int] = {}
    for phase in phases:
        missing = {config.identity for config in store.missing(phase.configs, phase.observation)}
        own = there.setdefault(phase.name, {})
        own.update({config.identity: config.identity not in missing for config in phase.configs})
        planned[phase.name] = max(len(own), phase.planned or 0)
    return {name: (planned[name], sum(own.values())) for name, own in there.items()}
