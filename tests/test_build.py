"""The book's command line: bad parameters are one line, papermill's line is shown, solutions can be left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

BUILD = Path(__file__).parents[1] / "book" / "build.py"
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
        (("run", "01-a", "-p", "count=three"), "count must be of type int (default 3), got 'three'"),
        (("run", "01-a", "-p", "count"), "'count' is not of the form NAME=VALUE"),
        (("run", "01-a", "-p", "rate=-1"), "ValueError: rate must not be negative, got -1.0"),
    ],
)
def test_bad_parameters_are_one_line_and_status_2(root: Path, arguments: tuple[str, ...], message: str) -> None:
    done = call(root, *arguments)
    assert done.returncode == 2
    assert done.stderr.strip() == message


def test_good_parameters_reach_the_notebook_with_their_types(root: Path) -> None:
    done = call(root, "run", "01-a", "--preset", "smoke", "-p", "rate=1e-3", "-p", "names=['b','c']")
    assert done.returncode == 0, done.stderr
    assert "papermill 01-a.ipynb out.ipynb -p rate 0.001 -y 'names: ['b', 'c']' -p preset smoke" in done.stdout
    notebook = nbformat.read(root / "_build" / "run" / "01-a.smoke.ipynb", as_version=4)
    outputs = [output.text for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs[0] == "smoke 0.001 3 ['b', 'c']\n"


def test_the_student_edition_has_no_solutions(root: Path) -> None:
    assert call(root, "student").returncode == 0
    text = (root / "_build" / "student" / "01-a.ipynb").read_text()
    assert "A chapter" in text
    assert "the secret" not in text


def test_executing_twice_changes_nothing(root: Path) -> None:
    assert call(root, "chapters").returncode == 0
    path = root / "book" / "chapters" / "01-a.ipynb"
    first = path.read_text()
    assert call(root, "chapters").returncode == 0
    assert path.read_text() == first
