"""Checks of the parameters that every experiment chapter takes: one clear line for a wrong value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def check(presets: Iterable[str], preset: str, known: Sequence[str], methods: Sequence[str]) -> None:
    """Refuse an unknown preset or method.

    Raises:
        ValueError: a value is not one of those allowed; the message says which.

    Example:
        >>> check(["smoke", "cpu"], "cpu", ["SGD", "SVRG"], ["Adam"])
        Traceback (most recent call last):
        ValueError: methods must be among SGD, SVRG, got 'Adam'

    """
    if preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, got {preset!r}")
    for method in methods:
        if method not in known:
            raise ValueError(f"methods must be among {', '.join(known)}, got {method!r}")
    if not methods:
        raise ValueError(f"methods must name at least one of {', '.join(known)}, got none")


def check_numbers(seeds: Sequence[int], epochs: int = 0, width: int = 0) -> None:
    """Refuse seeds that are no whole numbers from 0, and epochs or widths that are no whole numbers from 0.

    Raises:
        ValueError: likewise.

    """
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"seeds must be whole numbers from 0, got {seed!r}")
    for name, value in (("epochs", epochs), ("width", width)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} must be a whole number from 0 (0: the preset's own), got {value!r}")
