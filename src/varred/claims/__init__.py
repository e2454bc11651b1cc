"""Verdicts: each claim of ``book/claims.yml`` judged by its criterion, from run records alone; one module a chapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from varred.claims import comparison, deficit, lenet_mnist, metainit_cifar100
from varred.claims.answer import answer
from varred.claims.verdict import Claim, Verdict, read
from varred.experiments.comparison import RESNET18, RESNET101
from varred.record import Run
from varred.runs import Store

__all__ = ["JUDGED", "JUDGES", "Claim", "Verdict", "answer", "judge", "page", "read"]

JUDGES: dict[str, Callable[[Store], Verdict]] = {
    **lenet_mnist.JUDGES,
    **comparison.JUDGES,
    **deficit.JUDGES,
    **metainit_cifar100.JUDGES,
}

JUDGED: dict[str, Callable[[Store], list[Run]]] = {
    # beginning of the claims' names: the recorded runs that decide them
    "lenet-": lenet_mnist.judged,
    "resnet18-": comparison.judged(RESNET18),
    "resnet101-": comparison.judged(RESNET101),
    "deficit-": deficit.judged,
    "metainit-": metainit_cifar100.judged,
}


def judge(name: str, store: Store) -> Verdict:
    """Judge one claim.

    Raises:
        ValueError: the claim has no judge.
    """
    if name not in JUDGES:
        raise ValueError(f"claim {name!r} has no judge: add one to a module of varred.claims")
    return JUDGES[name](store)


def page(path: Path, store: Store) -> str:
    """Return the text of ``claims.md``: every claim with its criterion and its verdict."""
    lines = [
        "# Claims and verdicts",
        "",
        "Every claim that a chapter examines, the criterion it is judged by, and the verdict. A criterion is committed",
        "before the runs it judges; the verdicts are computed from the run records, and say whether the criterion is",
        "met: where a claim is our own question, *holds* is a yes to the criterion. *Not shown*: the records decide",
        "neither way. *Not decided yet*: runs are missing, or some have diverged; then more seeds can't decide it.",
        "A claim is our paraphrase of a source, frozen with its criterion: the source hedges most of its sentences",
        "(*seems to*), and what a claim calls a reading, a question or what is not shown is ours.",
        "Brackets are 95 % intervals of single contrasts; a star marks what is significant after Holm's correction, so",
        "an interval may exclude 0 without a star.",
        "This page is written by `python -m varred pages`; a test holds it to the records.",
        "",
    ]
    for claim in read(path).values():
        verdict = judge(claim.name, store)
        lines += [
            f"## `{claim.name}`: {verdict.word}",
            "",
            f"**Claim.** {claim.source}",
            "",
            f"**Criterion.** {claim.criterion}",
            "",
            f"**Verdict: {verdict.word}.** {verdict.reason[0].upper()}{verdict.reason[1:]}.",
            "",
        ]
    return "\n".join(lines)
