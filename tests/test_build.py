"""The book's command line and make: bad usage is one line, papermill's line is shown, a site is never an old one."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "book" / "build.py"
TEXT = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A chapter

```{code-cell} ipython3
:tags: [parameters]

preset = "cpu"
rate = 0.1
count = 3
names = ["a"]
```

```{code-cell} ipython3
if rate < 0:
    raise ValueError(f"rate must not be negative, got {rate}")
print(preset, rate, count, names)
```

```{code-cell} ipython3
:tags: [solution]

print("the secret")
```
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "book" / "text").mkdir(parents=True)
    (tmp_path / "book" / "text" / "01-a.md").write_text(TEXT)
    return tmp_path


@pytest.fixture(autouse=True)
def no_outer_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the makes that tests start know nothing of one that has started the tests."""
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)


def call(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VARRED_ROOT": str(root)}
    return subprocess.run(
        [sys.executable, str(BUILD), *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "02-b"), "there is no chapter '02-b': choose among 01-a"),
        (("run", "01-a", "-p", "speed=1"), "01-a has no parameter 'speed': choose among preset, rate, count, names"),
        (("run", "01-a", "-p", "count"), "'count' is not of the form NAME=VALUE"),
        (("run", "01-a", "-p", "rate=-1"), "ValueError: rate must not be negative, got -1.0"),
        (("run",), "Missing argument 'chapter'."),
        (("rnu",), "No such command 'rnu'. Did you mean 'run'?"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(root: Path, arguments: tuple[str, ...], message: str) -> None:
    done = call(root, *arguments)
    assert done.returncode == 2
    assert done.stderr.strip() == message


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def settings(tmp_path: Path) -> str:
    """Variables with which make takes this environment for its own, and finds nothing to install."""
    stamp = tmp_path / "installed"
    stamp.touch()
    return f"-C {ROOT} BIN={Path(sys.executable).parent} STAMP={stamp}"


def test_a_check_that_fails_at_a_value_is_one_line(root: Path) -> None:
    (root / "book" / "text" / "01-a.md").write_text(TEXT.replace("print(preset", "assert count < 5\nprint(preset"))
    done = call(root, "run", "01-a", "-p", "count=7")
    assert done.returncode == 2
    assert done.stderr.strip() == "a check of the chapter fails at these values: assert count < 5"


def test_a_parameters_cell_that_is_no_python_is_one_line(root: Path) -> None:
    (root / "book" / "text" / "01-a.md").write_text(TEXT.replace("count = 3", "count = "))
    done = call(root, "run", "01-a")
    assert done.returncode == 2
    assert done.stderr.strip() == "the parameters cell is no Python (its line 3): invalid syntax"


def test_the_printed_papermill_line_hands_over_what_was_run(root: Path) -> None:
    done = call(root, "run", "01-a", "-p", "preset='a b'", "-p", "names=['c d', \"e's\"]")
    (line,) = (line for line in done.stdout.splitlines() if "papermill" in line)
    assert shlex.split(line)[3:] == ["-p", "preset", "a b", "-y", 'names: ["c d", "e\'s"]']


def test_a_value_that_papermill_cannot_hand_over_is_text(root: Path) -> None:
    done = call(root, "run", "01-a", "-p", "names={1}")
    assert done.returncode == 0, done.stderr
    notebook = nbformat.read(root / "_build" / "run" / "01-a.ipynb", as_version=4)
    assert "cpu 0.1 3 {1}\n" in [output.text for cell in notebook.cells for output in cell.get("outputs", [])]


@needs_make
@pytest.mark.parametrize(
    ("chapter", "name", "value", "message"),
    [
        ("01-finite-sums", "seed", "-1", "seed must be a whole number from 0 and below 2**63, got -1"),
        ("05-momentum", "steps", "many", "steps must be a whole number from 1 and below 2**63, got 'many'"),
        (
            "12-lenet-mnist",
            "epochs",
            "three",
            "epochs must be a whole number from 0 (0: the preset's own), got 'three'",
        ),
        ("14-deficit", "device", "tpu", "device: Input should be 'auto', 'cpu', 'cuda' or 'mps', got 'tpu'"),
    ],
)
def test_a_wrong_value_has_the_same_line_under_make_run_and_under_papermill(
    chapter: str, name: str, value: str, message: str, tmp_path: Path, settings: str
) -> None:
    environment = {**os.environ, "VARRED_ROOT": str(ROOT)}
    made = subprocess.run(
        ["make", *settings.split(), "run", f"CHAPTER={chapter}", f"PARAMS={name}={value}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert made.returncode != 0
    assert made.stderr.splitlines()[0] == f"ValueError: {message}"
    source = tmp_path / f"{chapter}.ipynb"
    jupytext.write(jupytext.read(ROOT / "book" / "text" / f"{chapter}.md"), source)
    command = [sys.executable, "-m", "papermill", source.name, "out.ipynb", "-p", name, value]
    plain = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert plain.returncode != 0
    assert plain.stderr.strip().splitlines()[-1] == f"ValueError: {message}"


@needs_make
def test_make_run_hands_over_what_it_is_given_and_runs_no_part_of_it(tmp_path: Path, settings: str) -> None:
    command = ["make", *settings.split(), "run", f"CHAPTER=99; touch {tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("there is no chapter '99; touch ")
    assert not (tmp_path / "run").exists()


def test_good_parameters_reach_the_notebook_with_their_types(root: Path) -> None:
    done = call(root, "run", "01-a", "--preset", "smoke", "-p", "rate=1e-3", "-p", "names=['b','c']")
    assert done.returncode == 0, done.stderr
    files = "_build/run/01-a.smoke.source.ipynb _build/run/01-a.smoke.ipynb"
    assert f"""papermill {files} -p rate 0.001 -y 'names: ["b", "c"]' -p preset smoke""" in done.stdout
    notebook = nbformat.read(root / "_build" / "run" / "01-a.smoke.ipynb", as_version=4)
    outputs = [output.text for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs[0] == "smoke 0.001 3 ['b', 'c']\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("run", "--help")])
def test_help_is_no_error(root: Path, arguments: tuple[str, ...]) -> None:
    done = call(root, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")


@needs_make
def test_the_documented_make_run_line_gives_its_parameters_to_papermill(root: Path, settings: str) -> None:
    text = (ROOT / "book" / "rerun.md").read_text()
    (line,) = (line for line in text.split("\n") if line.startswith("make run") and "PARAMS" in line)
    more = 'names = ["a"]\nepochs = 0\nseeds = []\ntrain = False'
    (root / "book" / "text" / "12-lenet-mnist.md").write_text(TEXT.replace('names = ["a"]', more))
    environment = {**os.environ, "VARRED_ROOT": str(root)}
    done = subprocess.run(
        f"{line} {settings}", shell=True, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    options = """-y 'seeds: [1, 2]' -p epochs 5 -p preset smoke -p train True"""
    files = "_build/run/12-lenet-mnist.smoke.source.ipynb _build/run/12-lenet-mnist.smoke.ipynb"
    assert f"papermill {files} {options}\n" in done.stdout
    assert "\nsmoke 0.1 3 ['a']\n" in done.stdout  # what a chapter that trains prints is shown while it runs


def test_a_failed_render_leaves_no_site(root: Path) -> None:
    text = root / "book" / "text" / "01-a.md"
    text.write_text(text.read_text().replace("rate = 0.1", "rate = -1"))
    rendered = root / "_build" / "site" / ".rendered"
    rendered.parent.mkdir(parents=True)
    rendered.touch()
    assert call(root, "render").returncode == 1
    assert not rendered.exists()


@needs_make
@pytest.mark.parametrize(
    "source",
    [
        "_toc.yml",
        "_config.yml",
        "book/index.md",
        "book/references.bib",
        "book/text/08-svrg.md",
        "book/chapters/08-svrg.ipynb",
        "book/_static/book.css",
        "book/claims.yml",
        "book/results/times/bench.json",
    ],
)
def test_make_renders_again_what_has_changed(tmp_path: Path, settings: str, source: str) -> None:
    rendered = tmp_path / "rendered"
    rendered.touch()

    def plan(*changed: str) -> str:
        command = ["make", *settings.split(), f"RENDERED={rendered}", "--dry-run", *changed, "site"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "tests/test_site.py" in plan()
    assert "build.py render" not in plan()
    assert "build.py render" in plan("--what-if", source)


def test_the_student_edition_has_no_solutions(root: Path) -> None:
    assert call(root, "student").returncode == 0
    text = (root / "_build" / "student" / "01-a.ipynb").read_text()
    assert "A chapter" in text
    assert "the secret" not in text


def test_two_executions_of_one_chapter_do_not_meet(root: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda rate: call(root, "run", "01-a", "-p", f"rate={rate}"), (0.5, 0.25)))
    assert [done.returncode for done in both] == [0, 0]
    assert nbformat.read(root / "_build" / "run" / "01-a.ipynb", as_version=4)


def test_a_folder_that_cannot_be_written_is_named(root: Path) -> None:
    (root / "_build").write_text("")
    done = call(root, "run", "01-a")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{root / '_build'}" in done.stderr


def test_executing_twice_changes_nothing(root: Path) -> None:
    assert call(root, "chapters").returncode == 0
    path = root / "book" / "chapters" / "01-a.ipynb"
    first = path.read_text()
    assert call(root, "chapters").returncode == 0
    assert path.read_text() == first


def test_a_parameter_that_is_no_literal_is_one_line(root: Path) -> None:
    (root / "book" / "text" / "01-a.md").write_text(TEXT.replace('["a"]', "list(range(3))"))
    done = call(root, "run", "01-a")
    assert done.returncode == 2
    assert done.stderr.strip() == "the default of a parameter must be a plain literal: names = list(range(3))"
