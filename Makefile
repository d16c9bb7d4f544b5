# `make demo` runs the main job, `make test` the tests. Each sets up .venv first; everything stays in this folder.
PYTHON ?= python3
BIN := .venv/bin
UV := .venv/uv/bin/uv
export RWK_HOME ?= $(CURDIR)/.rwk
export UV_CACHE_DIR ?= $(CURDIR)/.venv/cache
export MPLCONFIGDIR ?= $(CURDIR)/.venv/matplotlib
export HF_HOME ?= $(CURDIR)/.venv/huggingface
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test check lock clean

demo: .venv/ready
	$(BIN)/rwk demo --out demo

test: .venv/ready  # one thread each: threads that wait for each other cost far more
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(UV) build --quiet --out-dir .venv/dist

lock: .venv/ready  # after a change of the dependencies in pyproject.toml
	$(UV) pip compile --quiet --universal --no-annotate --no-header --group dev pyproject.toml -o requirements.lock

# Any Python 3.11 or newer will do; if $(PYTHON) is older, uv looks for another one.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv/uv
	.venv/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check uv
	$(UV) venv --quiet --allow-existing --python ">=3.11" .venv
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/rwk  # where mypy finds rwk.rewards and the others
	touch $@

clean:
	rm -rf .venv .rwk demo build dist *.egg-info
