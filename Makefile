# vLLM Proxy. `make help` lists what can be done; README.md says what it is.

.DEFAULT_GOAL := help
.PHONY: help run start stop restart status logs check-config install test parity check format unit integration engine \
        docs protos protos-check demo-model demo-lora fuzz bench bench-admission chaos-admission rolling-restart clean
MAKEFLAGS += --no-print-directory

#: Settings: make run CONFIG=other/config.yaml MODEL=Qwen/Qwen3-0.6B
CONFIG ?= config/config.yaml
MODEL ?=
SERVICE ?= all
TAIL ?= 100

GATEWAY := .venv/gateway/bin/python
ENGINE := .venv/vllm/bin/python
export PYTHON CONFIG MODEL MODEL_ARGS

help: ## Lists these targets
	@awk 'BEGIN { FS = ":.*## " } /^## / { printf "\n%s\n", substr($$0, 4) } /^[a-z%-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@printf '\nSettings: CONFIG=%s  MODEL=a Hub name or folder  PYTHON=python3.12\n' '$(CONFIG)'

## Running it
run: ## Installs what is missing, starts everything, follows the logs; Ctrl-C stops it
	@scripts/start.sh --follow

start: ## Starts everything in the background and waits until the model answers
	@scripts/start.sh

stop: ## Stops everything
	@scripts/stop.sh

restart: ## Stops, then starts
	@scripts/stop.sh
	@scripts/start.sh

restart-%: ## Restarts one service, or all, one process at a time; no request fails where another process can take it
	@scripts/proxyctl.sh restart $(filter-out all,$*)

start-%: ## Starts one service: auth, router, edge, engine-vllm
	@scripts/start.sh $*

stop-%: ## Stops one service
	@scripts/stop.sh $*

status: ## Says what runs, since when, what it serves, how loaded it is, and which limits were hit
	@scripts/vllm-proxy status || test $$? -eq 3

logs: ## Follows a service's log: make logs SERVICE=edge TAIL=100 (auth, router, engine-vllm, vllm, supervisord, all)
	@scripts/vllm-proxy logs "$(SERVICE)" --lines "$(TAIL)" --follow

check-config: ## Says whether the configuration is good, one line for each fault
	@scripts/install.sh gateway
	@scripts/proxyctl.sh check

## Models
demo-model: ## Makes the demo model (models/smollm2-135m-instruct)
	@scripts/install.sh demo
	@$(ENGINE) -m scripts.make_demo_model

demo-lora: demo-model ## Trains two demo adapters (adapters/pirate, adapters/robot)
	@$(ENGINE) -m scripts.train_demo_lora

## Developing
install: ## Installs the environments under .venv/: the gateway's, vLLM's, SGLang's if it has a start command
	@scripts/install.sh dev vllm
	@scripts/install.sh --for "$(CONFIG)"

check: ## Format, lint, types, protos, unit tests: what one runs while writing
	@scripts/install.sh dev
	@scripts/phase.sh "format" $(GATEWAY) -m ruff format --check .
	@scripts/phase.sh "lint" $(GATEWAY) -m ruff check .
	@scripts/phase.sh "types" $(GATEWAY) -m mypy
	@scripts/phase.sh "protos" $(MAKE) protos-check
	@scripts/phase.sh "unit tests" $(GATEWAY) -m pytest -q -n 2 tests/unit

test: ## Everything that needs no GPU: make check, then integration tests and the real engines
	@scripts/test.sh

parity: demo-lora ## Compares the gateway with vLLM's own server, answer by answer
	@scripts/install.sh dev clients
	@scripts/phase.sh "parity with vLLM's own server" $(GATEWAY) -m pytest -q tests/parity

format: ## Formats and fixes what ruff can
	@scripts/install.sh dev
	@$(GATEWAY) -m ruff format .
	@$(GATEWAY) -m ruff check --fix .

docs: ## Generates docs/CONFIGURATION.md from the settings
	@scripts/install.sh dev
	@$(GATEWAY) -m scripts.config_reference

protos: ## Generates services/vllm_proxy/api from protos/
	@scripts/install.sh dev
	@$(GATEWAY) -m scripts.protos

protos-check: ## Generated code is what protos/ say and loads in every environment
	@scripts/install.sh dev
	@$(GATEWAY) -m scripts.protos --check

fuzz: ## Makes up requests from the API's description for 20 minutes (SECONDS=, SEED=; URL=, KEY=, FUZZ_MODEL=: a running edge)
	@scripts/install.sh dev clients
	@$(GATEWAY) -m tests.conformance.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(URL),--url $(URL)) $(if $(KEY),--key $(KEY)) $(if $(FUZZ_MODEL),--model $(FUZZ_MODEL))

bench: ## CPU per token and latency, beside other gateways (bench-results/)
	@scripts/install.sh dev
	@$(GATEWAY) -m tests.load.bench

bench-admission: ## Admissions and settlements a second at 10 and 1,000,000 keys, SQLite and Redis
	@scripts/install.sh dev
	@$(GATEWAY) -m tests.load.admission

chaos-admission: ## Kills auth, edges, hosts and Redis 50 times under 200 streams, then balances the books (SEED=…)
	@scripts/install.sh dev
	@$(GATEWAY) -m tests.load.chaos $(if $(SEED),--seed $(SEED))

rolling-restart: ## Restarts every service under 2,000 streams, of which none may fail (ROUNDS=…)
	@scripts/install.sh dev
	@$(GATEWAY) -m tests.load.rolling $(if $(ROUNDS),--rounds $(ROUNDS))

clean: ## Removes environments, logs and caches; keeps models, adapters, keys and usage
	@scripts/stop.sh
	rm -rf .venv .run .pids logs .pytest_cache .mypy_cache .ruff_cache .hypothesis services/*.egg-info
	find services scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
