"""The committed notebooks are the texts, executed: nothing stale, nothing hidden, nothing of this machine."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

NAMES = build.names()
# Cells whose output nbval does not compare, by chapter: clocks only.
IGNORED: dict[str, int] = {}


def executed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "book" / "chapters" / f"{name}.ipynb", as_version=4)


def test_every_text_has_its_notebook_and_no_notebook_is_left_over() -> None:
    assert sorted(path.stem for path in (ROOT / "book" / "chapters").glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_twins_agree(name: str) -> None:
    def essence(notebook: nbformat.NotebookNode) -> list[tuple[str, str, str]]:
        kept = ("tags", "name", "mystnb", "slideshow")
        return [
            (
                c.cell_type,
                c.source,
                json.dumps({k: v for k, v in c.metadata.items() if k in kept}, sort_keys=True),
            )
            for c in notebook.cells
        ]

    ours = essence(build.read_text(name))
    theirs = essence(executed(name))
    assert len(ours) == len(theirs)
    for text, notebook in zip(ours, theirs, strict=True):
        assert text == notebook, "run make chapters"


@pytest.mark.parametrize("name", NAMES)
def test_code_is_no_wider_than_the_page(name: str) -> None:
    for cell in build.read_text(name).cells:
        if cell.cell_type == "code":
            for line in cell.source.splitlines():
                assert len(line) <= 100, line


@pytest.mark.parametrize("name", NAMES)
def test_outputs_belong_to_the_sources(name: str) -> None:
    notebook = executed(name)
    assert notebook.metadata["varred"]["source"] == build.source_hash(build.read_text(name)), "run make chapters"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None
            assert not [output for output in cell.outputs if output.output_type == "error"]


def test_a_stale_output_is_noticed() -> None:
    notebook = build.read_text(NAMES[0])
    before = build.source_hash(notebook)
    next(cell for cell in notebook.cells if cell.cell_type == "code").source += "\n1 + 1"
    assert build.source_hash(notebook) != before


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_has_alternative_text(name: str) -> None:
    for cell in executed(name).cells:
        pictures = [o for o in cell.get("outputs", []) if any(key.startswith("image/") for key in o.get("data", {}))]
        if pictures:
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 30, cell.source[:80]
            assert cell.metadata["mystnb"]["figure"]["caption"]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_name_no_machine_and_pull_no_script(name: str) -> None:
    text = (ROOT / "book" / "chapters" / f"{name}.ipynb").read_text()
    assert not re.search(r"(/home/|/root/|/tmp/|site-packages|application/vnd\.jupyter\.widget)", text)
    assert str(ROOT) not in text


@pytest.mark.parametrize("name", NAMES)
def test_parameters_come_first_and_solutions_are_tagged(name: str) -> None:
    cells = executed(name).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert first.metadata["tags"] == ["parameters"]
    assert build.parameters(build.read_text(name))
    exercises = sum(len(re.findall(r"^`{3,4}\{exercise\}", cell.source, re.MULTILINE)) for cell in cells)
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    assert 3 <= exercises <= 6
    assert len(solutions) >= exercises
    assert any(cell.cell_type == "code" for cell in solutions), "at least one solution is a computation"


@pytest.mark.parametrize("name", NAMES)
def test_only_clocks_are_left_uncompared(name: str) -> None:
    ignored = [c for c in executed(name).cells if "nbval-ignore-output" in c.metadata.get("tags", [])]
    assert len(ignored) == IGNORED.get(name, 0)
    assert "nbval-skip" not in {tag for c in executed(name).cells for tag in c.metadata.get("tags", [])}


def test_labels_are_unique_over_the_book() -> None:
    labels: Counter[str] = Counter()
    for name in NAMES:
        text = (ROOT / "book" / "text" / f"{name}.md").read_text()
        labels.update(re.findall(r"^:label: (\S+)", text, re.MULTILINE))
        labels.update(re.findall(r"^    name: (\S+)", text, re.MULTILINE))
    assert not [label for label, count in labels.items() if count > 1]


@pytest.mark.parametrize("name", NAMES)
def test_no_table_is_cut(name: str) -> None:
    for cell in executed(name).cells:
        for output in cell.get("outputs", []):
            assert not re.search(r"\d+ rows \S \d+ columns", str(output.get("data", {}).get("text/html", "")))
