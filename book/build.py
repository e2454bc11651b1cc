"""The book's own command line: execute chapters, render pages, run a chapter, make the student edition.

``make`` calls it; ``python book/build.py --help`` lists the commands.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import jupytext
import nbformat
import typer

from varred.files import write_atomically

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
ROOT = Path(os.environ.get("VARRED_ROOT", Path(__file__).resolve().parents[1]))
INTERRUPTED = 130  # the status that typer gives to a KeyboardInterrupt
Jobs = Annotated[int, typer.Option(min=1, help="chapters side by side")]
TEXT, CHAPTERS, BUILD = ROOT / "book" / "text", ROOT / "book" / "chapters", ROOT / "_build"


def names() -> list[str]:
    """The chapters, in the order of their numbers."""
    return sorted(path.stem for path in TEXT.glob("*.md"))


def read_text(name: str) -> nbformat.NotebookNode:
    """Read a chapter's text as a notebook without outputs."""
    notebook = jupytext.read(TEXT / f"{name}.md", fmt="md:myst")
    notebook.metadata.pop("jupytext", None)
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place:03d}"  # random ids would change every file at every execution
    return notebook


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """Hash what was executed: the code cells' sources."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def parameters(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Read names and defaults from the parameters cell, which holds plain literals only."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            try:
                tree = ast.parse(cell.source)
            except SyntaxError as error:
                raise _fail(f"the parameters cell is no Python (its line {error.lineno}): {error.msg}") from None
            return {
                node.targets[0].id: _literal(node)
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
    return {}


def _literal(node: ast.Assign) -> Any:
    try:
        return ast.literal_eval(node.value)
    except ValueError:
        raise _fail(f"the default of a parameter must be a plain literal: {ast.unparse(node)}") from None


def execute(name: str, target: Path, values: dict[str, Any] | None = None, show: bool = False) -> str | None:
    """Execute one chapter through papermill, showing what it prints if asked; return None, or the error in one line."""
    for folder in (target.parent, BUILD):
        folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    code = "import sys, json, papermill; papermill.execute_notebook(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]),"
    code += " progress_bar=False, log_output=False, kernel_name='python3', record_timing=False"
    code += ", stdout_file=sys.stdout)" if show else ")"
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:  # two executions of one chapter don't meet
        source, executed = Path(scratch) / f"{name}.ipynb", Path(scratch) / "executed.ipynb"
        text = read_text(name)
        nbformat.write(text, source)
        done = subprocess.run(
            [sys.executable, "-c", code, str(source), str(executed), json.dumps(values or {})],
            env=environment,
            stdout=None if show else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            return _reason(done.stderr)
        notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags", True):  # papermill adds an empty list to every cell
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    notebook.metadata["varred"] = {"source": source_hash(text)}
    notebook.metadata.pop("language_info", None)
    write_atomically(target, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())
    return None


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join what a cell printed where the kernel sent it in parts: where those end is a matter of milliseconds."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _reason(trace: str) -> str:
    """Return the last line of a traceback that names an error; for a bare assertion, the line that failed."""
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", trace).split("\n") if line.strip()] or ["it was killed"]
    kind = r"[\w.]*(Error|Exception|Interrupt|Warning)\b"
    last = next((line for line in reversed(lines) if re.match(kind, line)), lines[-1])
    failed = [line for line in lines if re.match(r"-+> *\d+ ", line)]
    if re.fullmatch(r"AssertionError:?\s*", last) and failed:
        return f"a check of the chapter fails at these values: {failed[-1].split(maxsplit=2)[-1]}"
    return last


def execute_all(chosen: list[str], folder: Path, jobs: int) -> None:
    """Execute chapters, ``jobs`` at a time; say which failed and exit non-zero, but let the others finish."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def one(name: str) -> tuple[str, str | None]:
        return name, execute(name, folder / f"{name}.ipynb")

    failures = 0
    with ThreadPoolExecutor(jobs) as pool:
        for name, error in pool.map(one, chosen):
            failures += error is not None
            print(f"{name}: {'executed' if error is None else 'FAILED: ' + error}", flush=True)
    if failures:
        raise typer.Exit(1)


@app.command()
def chapters(
    chosen: Annotated[list[str] | None, typer.Argument(help="names; all by default")] = None, jobs: Jobs = 2
) -> None:
    """Execute the texts into book/chapters, whose only writer this is."""
    execute_all(_known(chosen or names()), CHAPTERS, jobs)
    for path in CHAPTERS.glob("*.ipynb"):
        if path.stem not in names():
            path.unlink()


@app.command()
def render(jobs: Jobs = 2) -> None:
    """Execute every chapter into _build and render the HTML book there; nothing outside _build changes.

    A site that was rendered without a problem holds a file .rendered with the date of the beginning, by which make
    knows what has changed since.
    """
    began = time.time()
    executed, site = BUILD / "executed", BUILD / "site"
    shutil.rmtree(site, ignore_errors=True)
    execute_all(names(), executed, jobs)
    (site / "book" / "chapters").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, site)
    for page in [*(ROOT / "book").glob("*.md"), *(ROOT / "book").glob("*.bib")]:
        shutil.copy(page, site / "book")
    shutil.copytree(ROOT / "book" / "_static", site / "book" / "_static")
    shutil.copytree(ROOT / "book" / "_static", site / "_static", ignore=shutil.ignore_patterns("*.svg", "*.png"))
    for name in names():
        shutil.copy(executed / f"{name}.ipynb", site / "book" / "chapters")
    command = ["jupyter-book", "build", str(site), "-W", "-n", "--keep-going", "--all"]
    log = BUILD / "render.log"
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", *command[1:]],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    lines = log.read_text().split("\n")
    problems = [line for line in lines if "WARNING" in line or "ERROR" in line or "Error" in line]
    if done.returncode:
        print("\n".join(problems[:40]) or "\n".join(lines[-20:]))
        raise _fail(f"rendering failed; the whole log is {log.relative_to(ROOT)}")
    html = site / "_build" / "html"
    # jupyter-book always loads thebe, and writes its settings twice: a console error, and a foreign address for nothing
    scripts = r"\n *<script[^>]*>const THEBE_JS_URL.*?</script>|\n *<script[^>]*sphinx-thebe\.js[^>]*></script>"
    formula = r'(<span class="math notranslate nohighlight">[^<]*</span>[.,;:)?!]+)'
    # pydantic's signatures are its own insides: the fields stand below each with their types
    opened, closed = (rf'<span class="sig-paren">\{bracket}</span>' for bracket in "()")
    signature = (
        rf'(<dt class="sig[^"]*" id="varred\.(?:config|record)\.[A-Z]\w*">(?:(?!</dt>).)*?{opened}).*?({closed})'
    )
    for page in html.rglob("*.html"):
        text = re.sub(scripts, "", page.read_text())
        text = re.sub(formula, r'<span class="unbroken">\1</span>', text)
        text = re.sub(signature, r"\1…\2", text, flags=re.DOTALL)
        page.write_text(text)
    (site / ".rendered").touch()
    os.utime(site / ".rendered", (began, began))
    print(f"the book is {html / 'index.html'}")


@app.command()
def run(
    chapter: Annotated[str, typer.Argument(help="for example 12-lenet-mnist")],
    preset: Annotated[str, typer.Option(help="smoke, cpu or paper; experiment chapters only")] = "",
    parameter: Annotated[
        list[str] | None, typer.Option("-p", help="NAME=VALUE, VALUE a Python literal; several with blanks between")
    ] = None,
) -> None:
    """Check the parameters, print the papermill line, execute a chapter with them, training what is missing."""
    _known([chapter])
    defaults = parameters(read_text(chapter))
    values = _values(chapter, defaults, preset, parameter or [])
    target = BUILD / "run" / f"{chapter}{'.' + preset if preset else ''}.ipynb"
    shown = " ".join(
        shlex.join(["-y", f"{name}: {json.dumps(value)}"] if isinstance(value, list) else ["-p", name, str(value)])
        for name, value in values.items()
    )
    given, out = (target.with_suffix(suffix).relative_to(ROOT) for suffix in (".source.ipynb", ".ipynb"))
    programs = Path(sys.executable).parent
    programs = programs.relative_to(ROOT) if programs.is_relative_to(ROOT) else programs
    print(f"{programs / 'jupytext'} --to ipynb -o {given} book/text/{chapter}.md")
    print(f"{programs / 'papermill'} {given} {out} {shown}", flush=True)
    error = execute(chapter, target, values, show="train" in defaults)
    if error is not None:
        raise _fail(error)
    print(f"executed: {out}")


def _values(chapter: str, defaults: dict[str, Any], preset: str, given: list[str]) -> dict[str, Any]:
    pairs = [part.partition("=") for item in given for part in re.split(r"\s+(?=\w+=)", item.strip())]
    values: dict[str, Any] = {}
    for name, equals, text in pairs:
        if not equals:
            raise _fail(f"{name!r} is not of the form NAME=VALUE")
        try:
            values[name] = json.loads(json.dumps(ast.literal_eval(text)))  # what papermill can hand over
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[name] = text
    if preset:
        values["preset"] = preset
    if "train" in defaults:
        values.setdefault("train", True)
    for name, value in values.items():
        if name not in defaults:
            raise _fail(f"{chapter} has no parameter {name!r}: choose among {', '.join(defaults)}")
        if type(defaults[name]) is float and type(value) is int:
            values[name] = float(value)
    return values


@app.command()
def student() -> None:
    """Write the notebooks without solutions and without outputs into _build/student."""
    folder = BUILD / "student"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names():
        notebook = read_text(name)
        notebook.cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    print(f"{len(names())} notebooks without solutions: {folder.relative_to(ROOT)}")


@app.command()
def experiments() -> None:
    """Print the names of the chapters that train: those with a parameter ``preset``."""
    print("\n".join(name for name in names() if "preset" in parameters(read_text(name))))


def _known(chosen: list[str]) -> list[str]:
    for name in chosen:
        if name not in names():
            raise _fail(f"there is no chapter {name!r}: choose among {', '.join(names())}")
    return chosen


def _fail(message: str) -> typer.Exit:
    print(message, file=sys.stderr)
    return typer.Exit(2)


def main() -> None:
    """Run the command line; a usage error or one of the file system is one line and status 2, an interrupt 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else what it has started would outlive it
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        status = _fail(error.format_message()).exit_code
    except OSError as error:
        status = _fail(f"{error.filename}: {error.strerror}; mend that and run again").exit_code
    if status == INTERRUPTED:
        _fail("stopped; what has been recorded is kept, run again to go on")
    sys.exit(status)


if __name__ == "__main__":
    main()
