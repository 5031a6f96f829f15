# One verb each; continuous integration calls `make test`, and then the long ones beside it.
# `make help` lists them. Two commands matter to a newcomer: `make demo` and `make test`.

SHELL := /bin/bash
PY := .venv/bin/python
SETUP := PYTHONPATH=operator:pipelines python3 -m trimwheel_demo.setup
# Several torch processes share the machine: one compute thread each, or they stall each other.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PYTHONDONTWRITEBYTECODE :=
SEED ?= 0
FRESH ?=
DETACH ?=
BAD_POLICY ?=
REPORT ?= build/demo-report.json
TESTS ?=
UNIT := -m "not cluster and not e2e and not slow"
NO_CLUSTER := -m "not cluster and not e2e"
# Two processes, each with whole files: what a file's tests share is made once.
PARALLEL := -n 2 --dist loadfile

.PHONY: help setup lock fmt lint test-unit test faults coverage e2e generate verify demo down bench env

help: ## list the verbs
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: ## check the machine, make .venv, get Kubernetes and friends, train the demo model (cached)
	@$(SETUP) --steps python,binaries,model

demo: ## play the whole loop on this machine (DETACH=1 SEED=n FRESH=1 BAD_POLICY=file REPORT=path)
	@SEED="$(SEED)" FRESH="$(FRESH)" $(SETUP) --steps python,binaries,model --plan demo
	@SEED="$(SEED)" DETACH="$(DETACH)" BAD_POLICY="$(BAD_POLICY)" REPORT="$(REPORT)" \
	  $(PY) -m trimwheel_demo play

down: ## stop and remove all that `make demo` started
	@if [ -x $(PY) ]; then $(PY) -m trimwheel_demo down; else echo "nothing to stop: no .venv here"; fi

# Tests bring a cluster and a Prometheus of their own, whatever the demo is told to use.
test faults e2e: export TRIMWHEEL_USE_KUBECONFIG =
test faults e2e: export TRIMWHEEL_USE_PROMETHEUS =
test faults e2e: export TRIMWHEEL_USE_MLFLOW =

test: ## set up what is missing; unit tests, tests on the embedded cluster, the first story
	@$(SETUP) --steps python,binaries,model --plan test
	@$(PY) -m pytest $(NO_CLUSTER) -q $(PARALLEL)
	@$(PY) -m pytest -m "(cluster or e2e) and not faults" --durations=15

faults: ## the story again, with services taken away under load (long)
	@$(SETUP) --steps python,binaries,model --plan quiet
	@$(PY) -m pytest -m faults -s

test-unit: ## tests without a cluster, under a minute
	@$(SETUP) --steps python --plan quiet
	@$(PY) -m pytest $(UNIT) -q $(PARALLEL)

coverage: ## lines that unit and cluster tests reach, by package; by file in build/coverage/files.txt
	@$(SETUP) --steps python,binaries --plan quiet
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(PY) -m coverage run -m pytest -q -m "not e2e" $(TESTS); status=$$?; \
	  $(PY) -m coverage combine -q; $(PY) -m coverage report > build/coverage/files.txt; \
	  for package in */trimwheel_*/; do \
	    printf '%-32s %3s %%\n' $$package $$($(PY) -m coverage report --format=total --include="$$package*"); done; \
	  printf '%-32s %3s %%\n' all $$($(PY) -m coverage report --format=total); exit $$status

e2e: ## the story as a test, on real components
	@$(SETUP) --steps python,binaries,model --plan quiet
	@$(PY) -m pytest -m "e2e and not faults" -s

fmt: ## format and sort imports
	@$(PY) -m ruff format operator workers pipelines dashboards tests
	@$(PY) -m ruff check --fix --exit-zero -q operator workers pipelines dashboards tests

lint: ## ruff, mypy --strict, import contracts
	@$(PY) -m ruff check operator workers pipelines dashboards tests
	@$(PY) -m mypy
	@.venv/bin/lint-imports

generate: ## rewrite generated files: CRDs, dashboards, rules, reference pages
	@$(PY) -m trimwheel_api.generate
	@$(PY) -m trimwheel_dashboards.generate
	@$(PY) -m trimwheel_cli.generate_docs

verify: generate lint ## regenerate, lint, then fail on any difference or untracked file
	@test -z "$$(git status --porcelain)" || { git status --short; echo "generated files are not current: commit the result of make generate"; exit 1; }

lock: ## pin every dependency with hashes
	@cd requirements && for name in bootstrap dev; do \
	  ../.venv/bin/uv pip compile -q --generate-hashes --no-header --no-annotate --no-emit-index-url \
	    --no-emit-package trimwheel $$name.in -o $$name.txt; done
	@for extras in operator workers+s3 pipelines+s3+postgresql; do \
	  .venv/bin/uv pip compile -q --generate-hashes --no-header --no-annotate --no-emit-index-url \
	    $$(printf -- '--extra %s ' $${extras//+/ }) pyproject.toml -o requirements/$${extras%%+*}.txt; done

bench: ## every figure of docs/benchmarks (long)
	@for name in replay certificate canary drift serving task rollback; do .venv/bin/trimwheel bench $$name || exit 1; done

env: ## print the exports that reach a running demo
	@.venv/bin/trimwheel env
