"""The command line: ``python -m varred``."""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from varred import claims, experiments, runs, timing
from varred.config import Execution, explain
from varred.data import DataError
from varred.files import write_atomically
from varred.record import Run
from varred.runs import Store, repository, verify
from varred.sweep import work_through

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
INTERRUPTED = 130  # the status that typer gives to a KeyboardInterrupt


@app.command()
def train(
    chapter: Annotated[str, typer.Argument(help="for example 12-lenet-mnist")],
    preset: Annotated[str, typer.Option(help="smoke, cpu or paper")] = "cpu",
    jobs: Annotated[int, typer.Option(help="processes; two single-threaded ones beat one with two threads")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    folder: Annotated[Path | None, typer.Option(help="where records land; the book's results by default")] = None,
) -> None:
    """Train a chapter's missing runs in order of need; it can be killed and started again at any moment."""
    store = Store(folder) if folder else runs.results(preset)
    times = timing.read(timing.times_path(runs.results("cpu")))
    where = Execution.model_validate({"device": device}).device
    work_through(experiments.queue(chapter, preset, store), store, jobs=jobs, device=where, times=times)


@app.command("verify")
def verify_records(
    count: Annotated[int, typer.Option(min=0, help="records to audit, drawn at random; 0 for all")] = 10,
    whole: Annotated[bool, typer.Option(help="to the end; without a folder the cheapest run of each chapter")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
    folder: Annotated[Path | None, typer.Option(help="where the records lie; the book's results by default")] = None,
) -> None:
    """Retrain the first steps of recorded runs and compare their losses with the records."""
    store = Store(folder) if folder else runs.results("cpu")
    records = store.all()
    if not records:
        raise ValueError(f"there are no records in {store.folder}: train some with make run")
    execution = Execution.model_validate({"device": device})
    if whole and not folder:
        records = _cheapest(store)
    elif count and not whole:
        records = random.Random(seed).sample(records, min(count, len(records)))
    held = failures = 0
    for run in records:
        name = f"{run.config.identity} {run.config.model.name} {run.config.method}"
        try:
            audit = verify(run, execution, whole=whole)
        except DataError as error:
            print(f"{name}: not audited: {error}")
            continue
        held += audit.holds
        failures += not audit.holds
        verdict = "holds" if audit.holds else "FAILS"
        print(f"{name}: deviation {audit.deviation:.1e} of {audit.allowed:.1e} allowed: {verdict}")
    print(f"{held} of {len(records)} records hold, {len(records) - held - failures} not audited")
    if failures or not held:
        raise typer.Exit(1)


def _cheapest(store: Store) -> list[Run]:
    """Return one recorded run of each chapter that has any, that of the fewest gradients, each run once."""
    chosen: dict[str, Run] = {}
    for chapter in experiments.CHAPTERS:
        configs = [config for phase in experiments.queue(chapter, "cpu", store) for config in phase.configs]
        runs = [run for run in store.available(configs) if not run.diverged and run.config.identity not in chosen]
        if runs:
            run = min(runs, key=lambda run: run.curves.samples[-1])
            chosen[run.config.identity] = run
    return list(chosen.values())


def computed(book: Path) -> dict[Path, bytes]:
    """Return what the prose pages compute from records, by file: claims, answer, speed and the index page's picture."""
    from varred import figures  # matplotlib is slow to import

    store = runs.results("cpu")
    phases = {chapter: list(experiments.queue(chapter, "cpu", store)) for chapter in experiments.CHAPTERS}
    texts = {
        "claims.md": claims.page(book / "claims.yml", store),
        "answer.md": claims.answer(store, claims.judge, phases),
        "bench.md": timing.bench_page(store.folder / "times" / "bench.json"),
    }
    figures.use_style()
    picture = io.BytesIO()
    figures.overview(claims.lenet_mnist.benchmark_runs(store)).savefig(picture, format="svg", metadata={"Date": None})
    files = {book / name: text.encode() for name, text in texts.items()}
    return files | {book / "_static" / "overview.svg": picture.getvalue()}


@app.command()
def pages() -> None:
    """Write what the prose pages compute from records."""
    root = repository()
    if root is None:
        raise ValueError("pages are written in the repository, not in an installed package: clone it")
    files = computed(root / "book")  # all of them before one is written
    for path, data in files.items():
        write_atomically(path, data)
    print(f"wrote {', '.join(str(path.relative_to(root)) for path in files)}")


@app.command("time")
def measure_times(
    chapter: Annotated[str, typer.Argument(help="for example 12-lenet-mnist")],
    presets: Annotated[str, typer.Option(help="presets whose kinds of runs to time, by commas")] = "cpu,paper",
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Measure a CPU's time of a step and of a snapshot pass for each kind of a chapter's runs; on an idle machine."""
    path = timing.times_path(runs.results("cpu"))
    path.parent.mkdir(parents=True, exist_ok=True)
    phases = itertools.chain.from_iterable(
        experiments.queue(chapter, preset, runs.results(preset)) for preset in presets.split(",")
    )
    timing.update(
        path, [config for phase in phases for config in phase.configs], Execution(device="cpu", threads=threads)
    )
    print(path.read_text())


def main() -> None:
    """Run the command line; a foreseeable error is one line and status 2, an interrupt one line and status 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else a sweep's processes would outlive it
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        status = _fail(error.format_message())
    except ValidationError as error:
        status = _fail(explain(error))
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        if os.environ.get("VARRED_DEBUG"):
            raise
        status = _fail(str(error.args[0] if isinstance(error, KeyError) else error).split("\n")[0])
    if status == INTERRUPTED:
        _fail("stopped; what has been recorded is kept, start again to go on")
    sys.exit(status)


def _fail(message: str) -> int:
    print(f"varred: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
