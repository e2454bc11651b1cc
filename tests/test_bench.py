"""The table of speeds: a row says where it was measured, and one that can't be measured again is kept as it was."""

from __future__ import annotations

import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from varred.timing import bench_page

SOURCE = Path(__file__).parents[1] / "benchmarks" / "run.py"
OLD = {"device": "cuda: old", "cores": 7, "python": platform.python_version(), "torch": "1.0"}


def row(what: str, machine: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": what,
        "ratio": 2.0,
        "least": 1.0,
        "largest": 3.0,
        "bound": "at most 1",
        "met": False,
        "machine": machine,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "book" / "results" / "times" / "bench.json"
    path.parent.mkdir(parents=True)
    return path


def test_a_row_names_its_threads_and_one_that_is_kept_keeps_its_machine(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("bench", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)

    def broken() -> tuple[float, float, float]:
        raise ImportError("torchvision does not fit")

    measurements = {
        "kept": (broken, "at most", 1.0, 1),
        "new": (lambda: (0.5, torch.get_num_threads(), 0.6), "at most", 1.0, 1),
    }
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "MEASUREMENTS", measurements)
    kept = row("kept", OLD)
    path.write_text(json.dumps([kept, row("new", OLD)]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        bench.main()
    finally:
        torch.set_num_threads(threads)
    first, second = json.loads(path.read_text())
    assert first == kept
    assert (second["ratio"], second["met"], second["machine"]["torch"]) == (0.5, True, torch.__version__)
    assert second["machine"]["threads"] == second["least"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["bench.json"]


def test_the_page_shows_beside_a_row_what_differs_of_the_machines(path: Path) -> None:
    path.write_text(json.dumps([row("a", OLD), row("b", {**OLD, "cores": 2, "torch": "2.0"})]))
    lines = bench_page(path).splitlines()
    assert lines[0] == "| what | least / least | range over rounds | bound |  | cores | torch |"
    assert lines[2] == "| a | 2.000 | 1.000 to 3.000 | at most 1 | **not met** | 7 | 1.0 |"
    assert lines[3].endswith("| **not met** | 2 | 2.0 |")
    assert lines[-1] == f"All measured on: device cuda: old, python {OLD['python']}."
    path.write_text(json.dumps([row("a", OLD)]))
    lines = bench_page(path).splitlines()
    assert lines[2].endswith("| **not met** |")
    assert lines[-1].startswith("All measured on: device cuda: old, cores 7, ")
