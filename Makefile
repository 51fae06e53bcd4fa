# `make demo` and `make test` set up a virtual environment and run; both work offline once it stands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# faiss-gpu where there is a GPU, faiss-cpu elsewhere: one module, two packages. milvus-lite asks for faiss-cpu.
EXTRA := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu,milvus-lite)

.PHONY: demo test test-slow test-slurm bench soak lint setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Armillary needs Python 3.11 or newer, found {v.major}.{v.minor}; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[$(EXTRA),test]'
	touch $@

demo: setup
	$(BIN)/armillary demo

# A file's tests on one core each: several share what takes long to make.
test: setup
	$(BIN)/python -m pytest -m "not slow and not slurm" -q --numprocesses=auto --maxprocesses=4 --dist=loadfile

# A Milvus server from PyPI, 58 MB, in an environment of its own: its tests are left out where it cannot be had.
MILVUS := $(VENV)/milvus-server

$(MILVUS)/bin/milvus-server: | setup
	$(PYTHON) -m venv $(MILVUS)
	-$(MILVUS)/bin/python -m pip install --disable-pip-version-check --quiet milvus==2.3.5

# Ray Serve, 100 MB: the tests of replicas are left out where it cannot be had.
$(VENV)/.ray: | setup
	-$(BIN)/python -m pip install --disable-pip-version-check --quiet 'ray[serve]>=2.60' && touch $@

test-slow: setup $(MILVUS)/bin/milvus-server $(VENV)/.ray
	$(BIN)/python -m pytest -m "slow and not slurm" -q

# On a real Slurm of two nodes on this machine, from Debian's packages; installs them where they are missing.
test-slurm: setup
	tests/slurm/install_slurm.sh
	$(BIN)/python -m pytest -m slurm -q tests/slurm

# Every claim of speed, in minutes; without --quick the scripts give the figures of the docs.
bench: setup
	for script in benchmarks/*.py; do echo $$script; OMP_NUM_THREADS=1 $(BIN)/python $$script --quick || exit 1; done

# Ten minutes of mixed load on a server: no wrong answer, no leak, nothing acknowledged lost.
soak: setup
	$(BIN)/python benchmarks/soak.py

# mypy needs the package under its own name: a folder that links the checkout.
lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p .typecheck && ln -sfn .. .typecheck/armillary
	cd .typecheck && ../$(BIN)/mypy --config-file ../pyproject.toml --explicit-package-bases --namespace-packages \
		$(foreach part,__init__.py cli.py settings.py data tokenizers models training serving slurm evaluation demo commands,armillary/$(part))

clean:
	rm -rf $(VENV) build dist *.egg-info .typecheck .mypy_cache .ruff_cache .pytest_cache
