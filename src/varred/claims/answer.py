"""The page that sums up what explains SVRG's deficit, computed from the records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from varred.claims import deficit as judges
from varred.claims import lenet_mnist
from varred.claims.verdict import Verdict
from varred.contrasts import Contrast, Value, by_seed, summarize
from varred.experiments import deficit, progress
from varred.experiments import lenet_mnist as lenet
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
    judges.SOURCE: ("**the deficit of the public code's protocol**: every 5, redrawn, minus SGD", "deficit-source"),
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
    running = {setting: judges.contrasts(store, setting, judges.running_loss) for setting in NORMALIZATIONS}
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
        "# Where it wins, where it loses and why, as far as measured",
        "",
        "This page is computed from the records of {doc}`chapters/12-lenet-mnist`, {doc}`chapters/13-resnet18-cifar10`",
        "and {doc}`chapters/14-deficit` by `python -m varred pages`; it changes when they do. Before all seeds are",
        "recorded a number here is a check that the machine works, not an effect.",
        "",
        "## Where it wins",
        "",
        *_leads(store, judge),
        "",
        "## Is there a deficit?",
        "",
        *_deficits(store, found, running),
        "",
        "## What could explain it, one factor at a time",
        "",
        "An effect is a difference in final training loss (nats, on 10,000 fixed images) after the same number of",
        "steps, and so at 2 to 3 times SGD's gradients; positive means worse. All runs of a column have one learning",
        "rate, selected for SVRG.",
        "",
        "- *Locked*: order and transforms of the images are kept as long as the snapshot. *Redrawn*: they are drawn",
        "  anew every epoch. *Once*: one snapshot, at the start. *At 0 and 5*: a second one after five epochs.",
        "- *Net*: from SVRG's change we subtract that of plain SGD when its order and transforms are kept equally",
        "  long; the next section shows both.",
        "- Brackets, from three seeds on, are 95 % intervals from one model a column, with seeds as blocks and one",
        "  residual variance for all cells (a cell is one way to run); a star marks what is significant in it after",
        "  Holm's correction. The cells needn't have equal variances, so *paired* gives the interval over seeds that",
        "  doesn't need them. The last row has no other.",
        *_chance(store),
        "",
        f"Scale: ResNet18 of width {scale.width} on {scale.side_images:,} images of CIFAR-10, "
        f"{scale.side_epochs} epochs, learning rate {written or 'not decided yet'};",
        f"at most {seeds} of {len(scale.seeds)} seeds so far.",
        "",
        "The first four rows add up to the fifth; the first, the second and the sixth add up to the seventh.",
        "",
        "| explanation | with batch normalization | without | verdict |",
        "|---|---|---|---|",
    ]
    for start, (text, claim) in EXPLANATIONS.items():
        effects = [_effect(store, setting, found[setting], start, judges.train_loss) for setting in NORMALIZATIONS]
        verdict = f"[{judge(claim, store).word}](claims.md)" if claim else ""
        lines.append(f"| {text} | {effects[0]} | {effects[1]} | {verdict} |")
    interaction = judges.interaction(store)
    at = " and ".join(f"{rate:g}" for rate in rates.values())
    lines += [
        "| **batch normalization** (source 000): the deficit with it, minus the deficit without"
        + (f", at rates {at}" if len(rates) == len(NORMALIZATIONS) else "")
        + f" | {_write(interaction) if interaction else _missing_effect(store, NORMALIZATIONS, judges.SOURCE)} "
        f"| | [{judge('deficit-normalization', store).word}](claims.md) |",
        "",
        *_controls(store),
        "",
        "## The same on the running loss",
        "",
        "The mean over the last epoch's mini-batches, in training mode, which the public code of source 000's author",
        "records. A deficit above and not here lies in the end point and its evaluation, not in how fast the loss of",
        "the batches falls. This response was set beside the declared one after the first seed had been seen, and",
        "decides no claim: no stars.",
        "",
        "| explanation | with batch normalization | without |",
        "|---|---|---|",
    ]
    for start, (text, _) in EXPLANATIONS.items():
        effects = [_effect(store, setting, running[setting], start, judges.running_loss) for setting in NORMALIZATIONS]
        lines.append(f"| {text} | {effects[0]} | {effects[1]} |")
    lines += ["", "## Noise inside the runs: a candidate cause", "", *_noise(store, judge)]
    lines += ["", "## What has not been run", ""]
    lines += [f"- {text}" for text in _missing(store, phases)] or ["Nothing."]
    return "\n".join(lines) + "\n"


def _chance(store: Store) -> list[str]:
    """Return how small a difference three seeds could tell from 0, by the scatter inside the runs."""
    parts = []
    for setting in NORMALIZATIONS:
        runs = [run for own in deficit.cells(store, judges.SCALE, setting).values() for run in own if not run.diverged]
        spreads = [judges.scatter(run.curves.train_loss) for run in runs]
        if spreads:
            pair, net = (judges.half_width(spreads, cells) for cells in (2, 4))
            told = f"a scatter of {min(spreads):.2f} to {max(spreads):.2f} nats by cell"
            widths = f"half-widths of {pair:.2f} for a difference of two cells, {net:.2f} for one of four"
            parts.append(f"  - {judges.label(setting)}: {told}; {widths}.")
    if not parts:
        return []
    return [
        "- *Chance*: the last eight epochs' ends of a run scatter about their trend. Did seeds scatter as much, three",
        "  of them would give the half-widths named here; a smaller effect of one seed can't be told from chance.",
        *parts,
    ]


def _leads(store: Store, judge: Callable[[str, Store], Verdict]) -> list[str]:
    """Return the other half of the question: what SVRG and STORM gain on SGD on LeNet, and what is left of it."""
    losses = lenet_mnist.final_contrasts(store, lambda run: run.final.test.loss)
    if not losses:
        return ["On LeNet nothing is recorded yet."]
    runs = lenet_mnist.benchmark_runs(store)
    accuracies = {c.name: c for c in lenet_mnist.final_contrasts(store, lambda run: run.final.test.accuracy)}
    best = {c.name: c for c in lenet_mnist.best_epoch_contrasts(store)}
    epochs = [f"{method} {epoch}" for method, epoch in lenet_mnist.best_epochs(store).items()]
    named = f" ({', '.join(epochs)})" if epochs else ""
    lines = [
        "On LeNet and MNIST, at the values of source 000, after 100 epochs where nothing else is said; a star marks",
        "what is significant after Holm's correction over the chapter's six contrasts. *At equal training loss*: SGD",
        "is stopped at the first epoch at which its training loss is at or below the other's last; a single interval,",
        "without correction. *At their best epochs*: those of least mean validation loss in a cross-validation of",
        f"{lenet_mnist.SCALE.final_epochs} epochs on three quarters of the images{named}.",
        "",
        f"| difference, {_seeds(losses[0].seeds)} | test loss "
        "| at equal training loss | at their best epochs | test accuracy |",
        "|---|---|---|---|---|",
    ]
    for loss in losses:
        reduced, other = loss.name.split(" - ")
        if other == "SGD":
            left = [-value for value in lenet_mnist.equal_training_loss(runs[other], runs[reduced])]
            level = loss if math.isnan(loss.mean) else summarize(loss.name, left)  # NaN: a run diverged
            equal = "SGD doesn't reach it in every seed" if math.isinf(level.mean) else _four_digits(level)
            at_best = _four_digits(best[loss.name]) if best else "not run yet"
            own = [_four_digits(loss), equal, at_best, _four_digits(accuracies[loss.name])]
            lines.append(f"| {' | '.join([loss.name, *own])} |")
    verdicts = [judge(f"lenet-{name}", store) for name in ("test-loss", "accuracy", "time", "best-epoch", "train-loss")]
    told = ", ".join(f"`{verdict.claim}` {verdict.word}" for verdict in verdicts)
    scope = "on SGD, Adam and AdaGrad (the last, our own reading, on SGD alone)"
    return [*lines, "", f"The verdicts, {scope}: {told} ([criteria and reasons](claims.md)).", *_same_step(store)]


def _same_step(store: Store) -> list[str]:
    """Return what is left of SVRG's lead where SGD has SVRG's step: cross-validation to its end, and the benchmark."""
    scale, own = lenet_mnist.SCALE, {method: lenet.tuned(lenet.SELECTED[method]) for method in ("SGD", "SVRG")}
    cells = (("SVRG", own["SVRG"]), ("SGD", own["SVRG"]), ("SGD", own["SGD"]))
    found = [store.available(lenet.folds(scale, *cell, scale.final_epochs or 0)) for cell in cells]
    if any(len(runs) < scale.folds or any(run.diverged for run in runs) for runs in found):
        return []
    losses = [[run.curves.validation_loss[-1] for run in runs] for runs in found]
    reduced, same, other = (sum(values) / len(values) for values in losses)
    gaps = [a - b for a, b in zip(losses[0], losses[1], strict=True)]
    pairs = [summarize(name, [a - b for a, b in values]) for name, values in lenet_mnist.same_step(store).items()]
    told = "; ".join(f"{contrast.name} {_four_digits(contrast)}" for contrast in pairs)
    benchmark = [f"- In the benchmark, SVRG - SGD at the same step, {_seeds(pairs[0].seeds)}: {told}."] if pairs else []
    return [
        "",
        "Control variate or small step?",
        "",
        "- Mean validation loss of cross-validation's folds after "
        f"{scale.final_epochs} epochs: SVRG at {own['SVRG'][0]:g}: {reduced:.4f}; SGD at the same step: {same:.4f} "
        f"(SVRG - SGD by fold {min(gaps):+.4f} to {max(gaps):+.4f}); SGD at {own['SGD'][0]:g}: {other:.4f}.",
        *benchmark,
    ]


def _four_digits(contrast: Contrast) -> str:
    if not math.isfinite(contrast.mean):
        return "a run diverged"
    interval = f" [{contrast.low:+.4f}, {contrast.high:+.4f}]" if contrast.bounded else ""
    return f"{contrast.mean:+.4f}{interval}{' *' if contrast.significant else ''}"


def _deficits(
    store: Store, found: Mapping[Normalization, list[Contrast]], running: Mapping[Normalization, list[Contrast]]
) -> list[str]:
    """Return three answers: at equal steps and rate, at rates of their own, and what would repay the cost."""
    scale = judges.SCALE
    lines = [
        "At equal steps and one rate, SVRG as the public code of 000's author means to run it (a snapshot every 5",
        "epochs, draws renewed every epoch) minus SGD (BN: batch normalization):",
        "",
    ]
    for setting in NORMALIZATIONS:
        own = [_effect(store, setting, group[setting], judges.SOURCE) for group in (found, running)]
        lines.append(f"- {judges.label(setting)}: {own[0]} in the final training loss, {own[1]} in the running loss.")
    lines += [
        "",
        f"At rates of their own ({scale.epochs} epochs of {{doc}}`chapters/13-resnet18-cifar10`), running loss of the",
        "last epoch:",
        "",
    ]
    for setting, groups in RESNET18.runs(store, scale).items():
        parts = []
        for name, runs in groups.items():
            rate = RESNET18.rates(store, scale).get(setting, {}).get(name)
            if not runs:
                continue
            told = name + (f", at {rate:g}" if rate else "")  # a fallback's name has its rate
            diverged = sum(run.diverged is not None for run in runs)
            if diverged:
                parts.append(f"{told}, diverged in {diverged} of {len(runs)} runs")
            else:
                value = sum(run.curves.running_loss[-1] for run in runs) / len(runs)
                parts.append(f"{told}: {value:.3f} in {runs[0].passes[-1]:.0f} passes ({_seeds(len(runs))})")
        lines.append(f"- {judges.label(setting)}: {'; '.join(parts) or 'not run'}.")
    lines += [
        "",
        "The cost: SVRG with a snapshot every epoch takes three gradients where SGD takes one, and repays them where",
        "its estimate has less than a third of SGD's noise. Measured after the first epoch, a third of the way through",
        "an epoch and at its end:",
        "",
    ]
    for setting in NORMALIZATIONS:
        ratios = _ratios(store, setting, "SVRG every epoch")
        told = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "not measured yet"
        lines.append(f"- {judges.label(setting)}: {told}.")
    return lines


def _ratios(store: Store, setting: Normalization, cell: str) -> list[float]:
    """Return the noise ratios of a cell from a third of an epoch on, after the first epoch."""
    return [noise.ratio for noise in _late(store, setting, cell)]


def _late(store: Store, setting: Normalization, cell: str) -> list[Noise]:
    runs = deficit.cells(store, judges.SCALE, setting)[cell]
    return [n for run in runs for n in run.noise if n.epoch and n.fraction >= 0.33]


def _controls(store: Store) -> list[str]:
    """Return the table that splits net effects into SVRG's own change and the control's."""
    lines = [
        "## What *net* is made of",
        "",
        "SVRG's own change between the two regimes, and what is added for the change of plain SGD (means over seeds).",
        "",
        "| explanation | SVRG's change, with BN | added for SGD | SVRG's change, without | added for SGD |",
        "|---|---|---|---|---|",
    ]
    for start, (text, _) in EXPLANATIONS.items():
        name = next(own for own in deficit.CONTRASTS if own.startswith(start))
        if not name.endswith("net"):
            continue
        added = judges.control(name)
        change = {cell: k for cell, k in deficit.CONTRASTS[name].items() if cell not in added}
        parts = [
            f"{effect.mean:+.3f}" if (effect := by_seed(name, cells, part, judges.train_loss)) else "not run"
            for cells in (deficit.cells(store, judges.SCALE, setting) for setting in NORMALIZATIONS)
            for part in (change, added)
        ]
        lines.append(f"| {text.removesuffix(', net')} | {' | '.join(parts)} |")
    for setting in NORMALIZATIONS:
        ratios = _ratios(store, setting, "SVRG once, redrawn")
        spare = all(n.offset < 1e-3 * n.sgd for n in _late(store, setting, "SVRG once, redrawn"))
        if ratios and max(abs(r - 1) for r in ratios) < 0.05 and spare:
            lines += [
                "",
                f"The noise ratio of a frozen, unlocked snapshot {judges.label(setting)} is {min(ratios):.2f} to",
                f"{max(ratios):.2f} after the first epoch, and the snapshot's own gradients hardly vary (its offset is",
                "below a thousandth of SGD's variance): from there on it is SGD at twice the cost, and but for that",
                "epoch its difference from SGD measures chance.",
            ]
    return lines


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
    return contrast.written + ("" if contrast.bounded else f" ({_seeds(contrast.seeds)})")


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _effect(
    store: Store, setting: Normalization, contrasts: list[Contrast], start: str, value: Value | None = None
) -> str:
    """Write a contrast; with a response also its interval paired by seed."""
    for contrast in contrasts:
        if contrast.name.startswith(start):
            cells = deficit.cells(store, judges.SCALE, setting)
            alone = by_seed(contrast.name, cells, deficit.CONTRASTS[contrast.name], value) if value else None
            paired = f"; paired [{alone.low:+.3f}, {alone.high:+.3f}]" if alone and alone.bounded else ""
            return _write(contrast) + paired
    return _missing_effect(store, [setting], start)


def _missing_effect(store: Store, settings: Sequence[Normalization], start: str) -> str:
    needed = next(own for name, own in deficit.CONTRASTS.items() if name.startswith(start))
    groups = [deficit.cells(store, judges.SCALE, setting) for setting in settings]
    diverged = sum(run.diverged is not None for cells in groups for cell in needed for run in cells[cell])
    return f"not estimated: {diverged} of its runs diverged" if diverged else "not run"


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
        "and the same in every step of an epoch ({doc}`chapters/14-deficit`). One run a cell, at this page's steps and",
        "without momentum, where source 001 has an effective step of 1: the ratios test its mechanism, not its values.",
        "Nothing here links noise to outcome: source 001 (section 7) itself says that less noise need not mean faster",
        "convergence, since SVRG's consecutive steps are correlated.",
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
