# Every way to run the project. `make` alone lists them.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
USE := $(VENV)/.ready
DEV := $(VENV)/.ready-dev

# Proofs that measure time, or that need the whole machine: these run alone, the others two at a time.
ALONE := $(patsubst %,tests/faults/test_%.py,chaos fairness_live redis_is_disposable stores_away time) \
	$(patsubst %,tests/bench/test_%.py,growth limits meter peers ratios reliability soak)
TWO_AT_A_TIME := -q -n 2 --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help demo up test prove soak lint dev migrate api worker load lab notebooks clean
.SUFFIXES:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(USE) ## Show the whole system at work, with servers of its own (no Docker)
	@$(BIN)/scheduler demo

up: $(USE) ## Run Postgres, Valkey, the API and three workers until Ctrl-C (no Docker)
	@$(BIN)/scheduler up

test: lint ## Check the style, then run the tests
	@$(BIN)/pytest -m "not slow" $(TWO_AT_A_TIME)

prove: $(DEV) ## Run the slow proofs: faults, load, twins
	@failed=0; \
	$(BIN)/pytest -m slow $(TWO_AT_A_TIME) --durations=20 $(addprefix --ignore=,$(ALONE)) || failed=1; \
	$(BIN)/pytest -m slow -v --durations=20 $(ALONE) || failed=1; \
	exit $$failed

soak: $(USE) ## Half an hour at half load: nothing may grow (make soak ARGS="--minutes 5")
	@$(BIN)/bench soak $(or $(ARGS),--out docs/records/soak.json)

lint: $(DEV) ## Check format, style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

dev: ## Start Postgres, Redis, Prometheus and Grafana in Docker
	@docker compose up -d

migrate: $(USE) ## Bring the database's schema up to date
	@$(BIN)/scheduler migrate

api: $(USE) ## Run the API: HTTP on :8080, metrics on :2112
	@$(BIN)/scheduler api

worker: $(USE) ## Run a worker, metrics on :2113 (WORKER_POOL=24 RETRY_BATCH_SIZE=250 make worker)
	@METRICS_ADDR=$${METRICS_ADDR:-:2113} $(BIN)/scheduler worker

load: $(USE) ## Send tasks (make load ARGS="-n 2000 -w 8 -pct-flaky 15 -pct-fail 5")
	@$(BIN)/scheduler load $(ARGS)

lab: $(DEV) ## Open the notebooks in JupyterLab, on this machine alone and with a token
	@exec $(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) notebooks

notebooks: $(DEV) ## Execute the notebooks into docs/notebooks
	@$(BIN)/bench notebooks

clean: ## Remove the virtual environment and caches; .scheduler/ and results/ stay
	@rm -rf $(VENV) dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What it takes to use the project, and what it takes to work on it. Most of the latter is never imported, and not
# worth the time to compile it.

$(VENV)/.made:
	@python=; for each in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
		if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$each; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "Python 3.11 or newer is needed and was not found: install it, or name it: make PYTHON=..." >&2; exit 1; \
	elif [ -x $(BIN)/pip ]; then :; \
	elif ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$python cannot make virtual environments: install its venv package (Debian: apt install python3-venv)" >&2; exit 1; \
	else echo "making $(VENV)"; "$$python" -m venv --clear $(VENV); fi
	@$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(USE): $(VENV)/.made pyproject.toml
	@$(BIN)/pip install --quiet --editable ".[embedded,bench]"
	@touch $@

$(DEV): $(VENV)/.made pyproject.toml
	@$(BIN)/pip install --quiet --no-compile --editable ".[embedded,bench,locust,notebooks]" --group dev
	@touch $(USE) $@
