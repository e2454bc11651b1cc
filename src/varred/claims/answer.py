"""The page that sums up what explains SVRG's deficit, computed from the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from varred.claims import deficit as judges
from varred.claims.verdict import Verdict
from varred.contrasts import Contrast
from varred.experiments import deficit, progress
from varred.experiments.comparison import NORMALIZATIONS, RESNET18, Normalization
from varred.record import Noise
from varred.runs import Store
from varred.sweep import Phase

EXPLANATIONS = {
    # beginning of the contrast's name: (the explanation, its claim); the first four add up to the fifth
    "estimator": ("the estimator, at its best: a snapshot every epoch, minus SGD", ""),
    "staleness": ("an old snapshot: every 5 epochs minus every epoch, locked, net", "deficit-staleness"),
    "freezing": ("a frozen snapshot: once minus every 5 epochs, locked, net", "deficit-freezing"),
    "unlocking, once": ("unlocked order and transforms, frozen snapshot, net", "deficit-unlocking"),
    "deficit with a frozen": ("**the deficit of a frozen snapshot**: once, redrawn, minus SGD", ""),
    "unlocking, every 5": ("unlocked order and transforms, snapshot every 5 epochs, net", "deficit-unlocking"),
    judges.SOURCE: ("**the deficit of the source's protocol**: every 5, redrawn, minus SGD", "deficit-source"),
}


def answer(store: Store, judge: Callable[[str, Store], Verdict], phases: Mapping[str, Sequence[Phase]]) -> str:
    """Return the text of ``answer.md``.

    Args:
        store: the records.
        judge: returns the verdict of a claim.
        phases: of the experiment chapters, for the list of what has not been run.
    """
    scale = judges.SCALE
    found = {setting: judges.contrasts(store, setting) for setting in NORMALIZATIONS}
    seeds = max((c.seeds for own in found.values() for c in own), default=0)
    rates = deficit.rates(store, scale)
    written = ", ".join(
        f"{RESNET18.written('SVRG', rate)} {judges.label(setting)}"
        + (
            " (at which SVRG diverges in the longer runs of {doc}`chapters/13-resnet18-cifar10`)"
            if RESNET18.diverged(store, scale, setting, "SVRG", rate)
            else ""
        )
        for setting, rate in rates.items()
    )
    lines = [
        "# What explains SVRG's deficit, as far as measured",
        "",
        "This page is computed from the records of {doc}`chapters/14-deficit` by `python -m varred pages`; it changes",
        "when they do. An effect is a difference in final training loss (nats, on 10,000 fixed images) after the same",
        "number of steps; positive means worse. All runs of a column have one learning rate, selected for SVRG.",
        "*Net*: less the same difference of plain SGD, whose order and transforms were kept equally long. Brackets are",
        "95 % intervals from one model a column with seeds as blocks, stars mark significance after Holm's correction;",
        "with one seed there is neither. The last row is a paired interval over seeds. The loss at the end is one",
        "noisy number a run, and can move by tenths of a nat from one epoch to the next; the running loss below is",
        "smoother. Before all seeds are recorded a number here is a check that the machine works, not an effect.",
        "",
        f"Scale: ResNet18 of width {scale.width} on {scale.side_images:,} images of CIFAR-10, "
        f"{scale.side_epochs} epochs, learning rate {written or 'not decided yet'};",
        f"at most {seeds} of {len(scale.seeds)} seeds so far.",
        "",
        "| explanation | with batch normalization | without | verdict |",
        "|---|---|---|---|",
    ]
    for start, (text, claim) in EXPLANATIONS.items():
        effects = [_effect(store, setting, found[setting], start) for setting in NORMALIZATIONS]
        verdict = f"[{judge(claim, store).word}](claims.md)" if claim else ""
        lines.append(f"| {text} | {effects[0]} | {effects[1]} | {verdict} |")
    interaction = judges.interaction(store)
    difference = _write(interaction) if interaction else "not run"
    lines.append(
        "| **batch normalization** (source 000): the deficit with it, minus the deficit without | "
        f"{difference} | | [{judge('deficit-normalization', store).word}](claims.md) |"
    )
    running = {setting: judges.contrasts(store, setting, judges.running_loss) for setting in NORMALIZATIONS}
    lines += [
        "",
        "## The same on the running loss",
        "",
        "The mean over the last epoch's mini-batches, in training mode, which the public code of source 000's author",
        "records. A deficit above and not here lies in the end point and its evaluation, not in how fast the loss of",
        "the batches falls. This response was set beside the declared one after the first seed had been seen, and",
        "decides no claim.",
        "",
        "| explanation | with batch normalization | without |",
        "|---|---|---|",
    ]
    for start, (text, _) in EXPLANATIONS.items():
        effects = [_effect(store, setting, running[setting], start) for setting in NORMALIZATIONS]
        lines.append(f"| {text} | {effects[0]} | {effects[1]} |")
    lines += ["", "## The measured cause", "", *_noise(store, judge), "", "## What has not been run", ""]
    lines += [f"- {text}" for text in _missing(store, phases)] or ["Nothing."]
    return "\n".join(lines) + "\n"


def _missing(store: Store, phases: Mapping[str, Sequence[Phase]]) -> list[str]:
    """Return what is missing, a line a chapter."""
    lines = []
    for chapter, own in phases.items():
        counts = progress(own, store)
        parts = [f"{name}: {planned - there}" for name, (planned, there) in counts.items() if planned > there]
        if parts:
            lines.append(f"{{doc}}`chapters/{chapter}`: " + "; ".join(parts))
    return lines


def _write(contrast: Contrast) -> str:
    return contrast.written + ("" if contrast.bounded else " (one seed)")


def _effect(store: Store, setting: Normalization, contrasts: list[Contrast], start: str) -> str:
    for contrast in contrasts:
        if contrast.name.startswith(start):
            return _write(contrast)
    cells = deficit.cells(store, judges.SCALE, setting)
    needed = next(own for name, own in deficit.CONTRASTS.items() if name.startswith(start))
    diverged = sum(run.diverged is not None for cell in needed for run in cells[cell])
    return f"not estimated: {diverged} runs diverged" if diverged else "not run"


def _ratio(noise: Noise, batches: int) -> str:
    return f"{noise.ratio:.2f} ({batches * noise.offset / noise.sgd:.2f})" if noise.sgd else "no noise"


def _noise(store: Store, judge: Callable[[str, Store], Verdict]) -> list[str]:
    lines = [
        "How far a snapshot reaches decides how much noise it can take away. At the start of training that is about",
        "one step with batch normalization, kinks or not, and much farther without ({doc}`chapters/14-deficit` shows",
        "it for one draw of the weights, before any run). Inside the runs:",
        "",
        "Mean squared error of SVRG's estimate over the variance of SGD's, after a third of an epoch and at its end;",
        "below 1 the step is less noisy than SGD's. In brackets the constant offset that redrawn transforms and",
        "partitions add, in units of SGD's present variance over the number of batches. Independent draws would give",
        "twice the ratio of SGD's variance at the snapshot to the present one on average. It is negligible in a step",
        "and the same in every step ({doc}`chapters/14-deficit`). One run a cell, at this page's steps and without",
        "momentum, where source 001 has an effective step of 1: the ratios test its mechanism, not its numbers.",
        "",
    ]
    moments = [(epoch, fraction) for epoch in deficit.observation(judges.SCALE).epochs for fraction in (0.33, 1.0)]
    heads = [f"epoch {epoch + 1}, {round(100 * fraction)} %" for epoch, fraction in moments]
    rows = []
    for setting in NORMALIZATIONS:
        for cell, runs in deficit.cells(store, judges.SCALE, setting).items():
            for run in runs:
                at = {(n.epoch, n.fraction): n for n in run.noise}
                if at:
                    values = [_ratio(at[m], run.batches) if m in at else "diverged" for m in moments]
                    rows.append(f"| {cell}, {judges.label(setting)} | " + " | ".join(values) + " |")
    if not rows:
        return [*lines, "Not measured yet."]
    table = [f"| cell | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|", *rows]
    verdict = judge("deficit-variance", store)
    return [
        *lines,
        *table,
        "",
        "Source 001 says of ResNet-110 and DenseNet, both with batch normalization, that the ratio is above 1 for most",
        "of an epoch until the step is first reduced, and the opposite of its LeNet, with batch normalization too;",
        f"our criterion asks it of both settings. The verdict: {verdict.word}"
        + (f": {verdict.reason}." if verdict.reason else "."),
    ]
