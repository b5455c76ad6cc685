# Two commands: `make demo` and `make test`. Each makes .venv first, with the exact versions of requirements.lock.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
TESTERS := "hypothesis>=6.100" "pandas>=2.2" "pytest>=8.2" "pytest-xdist>=3.6"
# A process of tests per core, but not more than memory has room for: each loads torch.
ABREAST := -n auto --maxprocesses 4 --dist worksteal

# Without its bytecode torch takes twice as long to import, in every process.
unexport PYTHONDONTWRITEBYTECODE
# As the command line has it: threads that spin while they wait take the cores from whatever else runs.
export OMP_WAIT_POLICY := PASSIVE

# The fast tests: a minute or two.
FAST := -m "not slow and not real and not long"

# What computes numbers: promised of any CPU, and so tried as other CPUs would compute (see .ci/run).
NUMERIC := $(addprefix tests/test_,$(addsuffix .py,fitting heads modules forward vectors tuning finetune train cut boundary \
  training selection baselines metrics intervals calibration audit predict evaluate images augment probe embed onnx))

.PHONY: demo test test-numeric test-fast test-long test-lowest lint check faults bench docs venv lock clean

demo: $(STAMP)  ## the whole loop on generated images, offline
	$(BIN)/featcache demo

test: $(STAMP)  ## the tests, but for the long ones
	$(BIN)/python -m pytest $(ABREAST) -m "not real and not long"

test-numeric: $(STAMP)  ## those of the tests that compute numbers
	$(BIN)/python -m pytest -q $(ABREAST) -m "not real and not long" $(NUMERIC)

test-fast: $(STAMP)  ## the fast tests; of another Python with VENV=.venv-3.12 PYTHON=python3.12
	$(BIN)/python -m pytest -q $(ABREAST) $(FAST)

test-long: $(STAMP)  ## tests on real X-rays (FEATCACHE_SHARED), the README, short versions of `make faults`
	$(BIN)/python -m pytest $(ABREAST) -m "real or long"

lint: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test-fast  ## both

# Warnings of old libraries about each other are not ours to mend.
test-lowest: $(LOWEST)/.installed  ## the demo and the fast tests with the oldest versions that pyproject.toml allows
	rm -rf $(LOWEST)/demo && mkdir $(LOWEST)/demo && cd $(LOWEST)/demo && ../bin/featcache demo
	$(LOWEST)/bin/python -m pytest -q $(ABREAST) $(FAST) -W default

faults: $(STAMP)  ## faults of every kind, long versions: about an hour on two cores
	$(BIN)/python -m tests.faults

bench: $(STAMP)  ## measured ratios; see benchmarks/README.md
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/finetune.py
	$(BIN)/python benchmarks/cpu_vs_gpu.py

docs: $(STAMP)  ## the documentation site, in dist/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs dist/docs

venv: $(STAMP)  ## only the environment

lock: $(BIN)/uv  ## pin the newest versions pyproject.toml allows
	$(BIN)/uv pip compile -q --upgrade pyproject.toml --extra dev --extra dicom --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" -o requirements.lock

$(STAMP): pyproject.toml requirements.lock | $(BIN)/uv
	$(BIN)/uv pip install -q --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

$(LOWEST)/.installed: pyproject.toml | $(BIN)/uv
	$(BIN)/uv venv -q --clear --python 3.11 $(LOWEST)
	$(BIN)/uv pip compile -q --python $(LOWEST)/bin/python --resolution lowest-direct --no-emit-index-url --no-annotate \
	  pyproject.toml --extra dicom --extra llm --extra onnx --extra parquet --extra umap -o $(LOWEST)/lowest.txt
	$(BIN)/uv pip install -q --python $(LOWEST)/bin/python -r $(LOWEST)/lowest.txt $(TESTERS)
	$(BIN)/uv pip install -q --python $(LOWEST)/bin/python --no-deps -e .
	@touch $@

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "featcache needs Python 3.11 or newer; none was found (set PYTHON=…)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV): install this Python's venv package (Debian: python3-venv)"; exit 2; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv

clean:
	rm -rf $(VENV) .venv-* dist featcache-demo
