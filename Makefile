# The book's two commands are `make book` and `make test`; `make` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHAPTER ?=
PRESET ?=
PARAMS ?=
RENDERED := _build/site/.rendered
PAGES := _config.yml _toc.yml book/build.py $(wildcard book/*.md book/*.bib book/_static/* book/text/*.md book/chapters/*.ipynb book/claims.yml book/results/*.json book/results/times/*.json src/varred/*.py src/varred/*/*.py)
export CHAPTER PRESET PARAMS
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.NOTPARALLEL:
.PHONY: help book test unit smoke site run chapters student bench verify lint constraints clean

help:
	@echo "make book       environment, every chapter executed, HTML rendered (trains nothing)"
	@echo "make test       environment, unit tests, notebooks against their outputs, smoke training, built pages"
	@echo "make run        CHAPTER=12-lenet-mnist PRESET=smoke|cpu|paper PARAMS=\"epochs=5 seeds=[1,2]\""
	@echo "make chapters   execute the texts into book/chapters (the committed notebooks)"
	@echo "make student    notebooks without solutions"
	@echo "make bench      speed, as ratios in one run; on an idle machine"
	@echo "make verify     retrain the first steps of recorded runs and compare"
	@echo "make lint       ruff and mypy"
	@echo "make constraints  write constraints.txt from the environment"
	@echo "make clean      remove what was built, the environment included"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[book,test,dask]'
	@touch $@

book: $(STAMP)
	$(BIN)/python book/build.py render

# The heavy parts run one after another, each with two processes.
test: $(STAMP) lint unit smoke site

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests src -n 2 --dist loadfile --doctest-modules --ignore tests/test_site.py
	OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore TQDM_DISABLE=1 $(BIN)/python -m pytest book/chapters --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg -n 2 --dist loadfile

smoke: $(STAMP)
	chapters=$$($(BIN)/python book/build.py experiments) && test -n "$$chapters" || exit 1; \
	for chapter in $$chapters; do \
		rm -rf .varred/smoke; $(BIN)/python book/build.py run $$chapter --preset smoke || exit 1; \
	done

$(RENDERED): $(STAMP) $(PAGES)
	$(BIN)/python book/build.py render

site: $(RENDERED)
	$(BIN)/python -m pytest tests/test_site.py

# The shell gets the values from the environment: written into the line, quotes and brackets would be the shell's.
run: $(STAMP)
	@test -n "$$CHAPTER" || { echo "which chapter? for example: make run CHAPTER=12-lenet-mnist PRESET=smoke" >&2; exit 2; }
	@$(BIN)/python book/build.py run "$$CHAPTER" $(if $(PRESET),--preset "$$PRESET") $(if $(PARAMS),-p "$$PARAMS")

chapters: $(STAMP)
	$(BIN)/python book/build.py chapters

student: $(STAMP)
	$(BIN)/python book/build.py student

bench: $(STAMP)
	TQDM_DISABLE=1 $(BIN)/python benchmarks/run.py

verify: $(STAMP)
	$(BIN)/python -m varred verify

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

constraints: $(STAMP)
	mkdir -p _build
	$(BIN)/pip freeze --exclude-editable > _build/frozen.txt
	grep -viE '^(nvidia|cuda|triton)' _build/frozen.txt | sed 's/+[a-z0-9.]*$$//' > _build/constraints.txt
	test -s _build/constraints.txt && mv _build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) _build .varred/smoke .pytest_cache .mypy_cache .ruff_cache dist
