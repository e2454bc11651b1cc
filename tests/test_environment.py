"""pyproject.toml, constraints.txt and environment.yml say the same; the wheel stands alone; claims came first."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from varred import claims, runs
from varred.__main__ import computed, main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().split()
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *(item for extra in EXTRAS.values() for item in extra)])
def test_every_dependency_is_pinned_within_its_bounds(text: str) -> None:
    requirement = Requirement(text)
    pinned = pins()
    assert canonicalize_name(requirement.name) in pinned, "run make constraints"
    assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_package_depends_on_what_it_imports() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "src" / "varred").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    imported = {name.split(".")[0] for name in named} - sys.stdlib_module_names - {"varred"}
    distributions = {"PIL": "pillow", "yaml": "pyyaml", "cycler": "matplotlib"}  # the last comes with matplotlib
    needed = {distributions.get(name, name) for name in imported - {"distributed", "matplotlib_inline"}}
    assert needed == {Requirement(text).name for text in PROJECT["dependencies"]}


def test_conda_users_get_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]
    commands = next(item for item in environment["dependencies"] if isinstance(item, dict))["pip"]
    assert commands == ["--constraint constraints.txt", f"--editable .[{','.join(('book', 'test', 'dask'))}]"]
    assert set(EXTRAS) == {"book", "test", "dask"}
    assert "'.[book,test,dask]'" in (ROOT / "Makefile").read_text()


def test_the_wheel_holds_the_package_alone_and_runs_outside_the_clone(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "varred/py.typed" in names
    assert all(name.startswith(("varred/", "varred-")) for name in names)
    venv.create(tmp_path / "venv", with_pip=False, system_site_packages=False)
    python = tmp_path / "venv" / "bin" / "python"
    target = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, str(wheel)],
        check=True,
    )
    # torch comes from this environment's packages, varred from the wheel alone.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = (
        "import sys, doctest; sys.path.append(sys.argv[1]); import varred.optim.svrg as module; "
        "assert module.__file__.startswith(sys.argv[2]), module.__file__; "
        "result = doctest.testmod(module); assert result.attempted and not result.failed; "
        "import varred.data, varred.sweep, varred.claims, varred.experiments, varred.__main__; "
        "assert varred.data._checksums(); print('ok')"
    )
    done = subprocess.run(
        [python, "-I", "-c", code, site, target], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.strip() == "ok", done.stderr


def test_importing_the_optimizers_loads_torch_and_nothing_heavy_else() -> None:
    code = "import sys, torch; before = set(sys.modules); import varred.optim; print(*(set(sys.modules) - before))"
    added = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[0] for name in added} <= {"varred", "torch"}


def varred(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The status of a command line."""
    monkeypatch.setattr(sys, "argv", ["varred", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train 99-nothing", "chapter '99-nothing' has no runs: choose one of 12-lenet-mnist, "),
        ("train 12-lenet-mnist --preset huge", "preset must be one of smoke, cpu, paper, got 'huge'"),
        ("train 12-lenet-mnist --preset smoke --jobs 0", "jobs must be at least 1, got 0"),
        ("train 12-lenet-mnist --preset smoke --device tpu", "device: Input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ("train --jobs abc", "Invalid value for '--jobs': "),
        ("train", "Missing argument 'chapter'."),
        ("trian", "No such command 'trian'."),
        ("verify --count -1", "Invalid value for '--count': "),
    ],
)
def test_bad_command_lines_give_one_line_and_status_2(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert varred(monkeypatch, *arguments.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"varred: {message}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_an_interrupt_is_one_line_and_says_that_records_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("varred.__main__.work_through", interrupted)
    assert varred(monkeypatch, "train", "12-lenet-mnist", "--preset", "smoke") == 130
    assert capsys.readouterr().err == "varred: stopped; what has been recorded is kept, start again to go on\n"


def test_the_module_runs_and_help_is_no_error() -> None:
    done = subprocess.run([sys.executable, "-m", "varred", "--help"], capture_output=True, text=True, check=True)
    assert "train" in done.stdout
    assert done.stderr == ""


def test_every_claim_has_a_judge() -> None:
    assert set(claims.read(ROOT / "book" / "claims.yml")) == set(claims.JUDGES)


def test_pages_are_computed_from_the_records() -> None:
    files = computed(ROOT / "book")
    assert {path.name for path in files} == {"claims.md", "answer.md", "bench.md", "overview.svg"}
    for path, data in files.items():
        assert path.read_bytes() == data, "run python -m varred pages"


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def history() -> None:
    if shutil.which("git") is None or git("rev-parse", "--show-toplevel").stdout.strip() != str(ROOT.resolve()):
        pytest.skip("this is no clone")
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("the clone is shallow: the history is not here")


@pytest.mark.usefixtures("history")
def test_records_are_trained_from_a_commit_of_this_history() -> None:
    for run in runs.results("cpu").all():
        for commit in {program.commit for program in (run.provenance, *run.provenance.earlier)}:
            assert re.fullmatch(r"[0-9a-f]{12}", commit), "records are trained from a clean commit"
            found = git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0
            assert found, f"{run.config.identity} is of commit {commit}, which is not in the history"


@pytest.mark.usefixtures("history")
def test_criteria_were_committed_before_the_records_they_judge() -> None:
    store, now = runs.results("cpu"), yaml.safe_load((ROOT / "book" / "claims.yml").read_text())
    for beginning, judged in claims.JUDGED.items():
        own = {name: claim for name, claim in now.items() if name.startswith(beginning)}
        assert own
        programs = [program for run in judged(store) for program in (run.provenance, *run.provenance.earlier)]
        for commit in {program.commit for program in programs}:
            then = yaml.safe_load(git("show", f"{commit}:book/claims.yml").stdout)
            assert own == {name: then.get(name) for name in own}
    assert {name for name in now if not name.startswith(tuple(claims.JUDGED))} == set()


def test_a_room_imports_only_from_those_above_it() -> None:
    (sentence,) = (line for line in (ROOT / "CONTRIBUTING.md").read_text().split("\n") if "rooms above it" in line)
    rooms = re.findall(r"`(\w+)`", sentence.partition(":")[2].partition(". ")[0])
    package = ROOT / "src" / "varred"
    inside = {path.stem for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert sorted(rooms) == sorted(name for name in inside if not name.startswith("_"))
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room.startswith("_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "varred":
                names = [node.module] if "." in node.module else [f"varred.{name.name}" for name in node.names]
                for used in (name.split(".")[1] for name in names):
                    if used in rooms and used != room:
                        assert rooms.index(used) < rooms.index(room), f"{path.name} imports {used}"


def test_the_documented_run_of_ones_own_runs(tmp_path: Path) -> None:
    text = (ROOT / "book" / "rerun.md").read_text().partition("## A run of one's own")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    code = code.replace("epochs=2", "epochs=1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.split()[0]).exists()
