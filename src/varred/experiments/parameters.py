"""Checks of the parameters that chapters take: one clear line for a wrong value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from varred.config import execution


def check(presets: Iterable[str], preset: str, known: Sequence[str], methods: Sequence[str]) -> None:
    """Refuse an unknown preset or method, and methods that are no list.

    Raises:
        ValueError: a value is not one of those allowed; the message says which.

    Example:
        >>> check(["smoke", "cpu"], "cpu", ["SGD", "SVRG"], ["Adam"])
        Traceback (most recent call last):
        ValueError: methods must be among SGD, SVRG, got 'Adam'

    """
    if preset not in tuple(presets):
        raise ValueError(f"preset must be one of {', '.join(presets)}, got {preset!r}")
    if not isinstance(methods, list | tuple):
        raise ValueError(f"methods must be a list of names among {', '.join(known)}, got {methods!r}")
    for method in methods:
        if method not in known:
            raise ValueError(f"methods must be among {', '.join(known)}, got {method!r}")
    if not methods:
        raise ValueError(f"methods must name at least one of {', '.join(known)}, got none")


def check_training(train: bool, jobs: int, device: str) -> None:
    """Refuse a device that isn't there, jobs below 1, and what is no answer to whether to train.

    Papermill hands over ``no`` as a string.

    Raises:
        ValueError: likewise.

    """
    if not isinstance(train, bool):
        raise ValueError(f"train must be True or False, got {train!r}")
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise ValueError(f"jobs must be a whole number from 1, got {jobs!r}")
    execution(device)


def check_numbers(seeds: Sequence[int], epochs: int = 0, width: int = 0) -> None:
    """Refuse seeds that are no list of different whole numbers from 0, and epochs or a width that is not one of these.

    Raises:
        ValueError: likewise.

    """
    if not isinstance(seeds, list | tuple):
        raise ValueError(f"seeds must be a list of whole numbers from 0, got {seeds!r}")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"seeds must be whole numbers from 0, got {seed!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ from one another, got {list(seeds)!r}")
    for name, value in (("epochs", epochs), ("width", width)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} must be a whole number from 0 (0: the preset's own), got {value!r}")


def check_sizes(**values: int) -> None:
    """Refuse a seed that is no whole number from 0, and anything else that is none from 1.

    Raises:
        ValueError: likewise; torch takes none from 2**63 on.

    Example:
        >>> check_sizes(seed=0, repetitions=0)
        Traceback (most recent call last):
        ValueError: repetitions must be a whole number from 1 and below 2**63, got 0

    """
    for name, value in values.items():
        least = 0 if name == "seed" else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            raise ValueError(f"{name} must be a whole number from {least} and below 2**63, got {value!r}")
