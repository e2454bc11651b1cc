"""MetaInit, then SVRG, on ResNet101 without batch normalization: section 4.3 of source 000."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from varred.config import Config, HeInitialization, Initialization, MetaInitialization
from varred.experiments.comparison import RESNET101, Scale, rule
from varred.record import Run
from varred.runs import Store
from varred.sweep import Phase

RATES = (0.005, 0.01, 0.05, 0.1)  # the source tries "between .005 and .1"
ORDER = (0.05, 0.01, 0.1, 0.005)  # of the runs: whatever ends early has compared the starts in the middle of the list
STARTS: Mapping[str, Initialization | None] = {
    "default": None,
    "He": HeInitialization(name="he"),
    "MetaInit": MetaInitialization(name="metainit"),
}
SMOKE_STEPS = 3


def run_of(scale: Scale, start: str, rate: float, seed: int) -> Config:
    """Return SVRG from an initialization at a learning rate; no batch normalization."""
    initialization = STARTS[start]
    if isinstance(initialization, MetaInitialization) and scale.size == "sample":
        initialization = MetaInitialization(name="metainit", steps=SMOKE_STEPS, batch_size=8)
    return RESNET101.config(
        scale,
        "none",
        rule("SVRG", rate),
        seed=seed,
        epochs=scale.side_epochs,
        images=scale.side_images,
        initialization=initialization,
    )


def found(store: Store, scale: Scale) -> dict[tuple[str, float], list[Run]]:
    """Return the recorded runs by initialization and learning rate."""
    return {
        (start, rate): store.available(run_of(scale, start, rate, seed) for seed in scale.seeds)
        for start in STARTS
        for rate in RATES
    }


def queue(scale: Scale, store: Store) -> Iterator[Phase]:
    """Yield figure 4.14's runs, seed by seed."""
    for seed in scale.seeds:
        yield Phase(
            f"three initializations at four learning rates, seed {seed}",
            [run_of(scale, start, rate, seed) for rate in ORDER for start in STARTS],
        )
