"""Checks of the parameters that every experiment chapter takes: one clear line for a wrong value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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


def check_training(train: bool, jobs: int) -> None:
    """Refuse what is no answer to whether to train (papermill hands over ``no`` as a string), and jobs below 1.

    Raises:
        ValueError: likewise.

    """
    if not isinstance(train, bool):
        raise ValueError(f"train must be True or False, got {train!r}")
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise ValueError(f"jobs must be a whole number from 1, got {jobs!r}")


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
