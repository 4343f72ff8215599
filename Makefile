.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where pip looks for torch besides PyPI, for example https://download.pytorch.org/whl/cpu: a CPU build is small.
TORCH_INDEX ?=
PROTOS := $(wildcard protos/*/v1/*.proto)

##@ Use

.PHONY: setup
setup: $(STAMP) ## Make .venv with everything Herd needs

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV): torch first, then the rest (a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

.PHONY: serve
serve: $(STAMP) ## Serve the demo model on this machine; Ctrl-C ends it
	@exec $(BIN)/herd serve

##@ Develop

.PHONY: test
test: $(STAMP) ## Run every test
	@$(BIN)/pytest

.PHONY: check
check: $(STAMP) ## Lint, types, import arrows, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory check-protos

.PHONY: format
format: $(STAMP) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: protos
protos: $(STAMP) ## Generate the stubs of protos/
	@$(BIN)/python -m protos.generate

.PHONY: check-protos
check-protos: $(STAMP) ## Fail if the stubs are not what protos/ generates
	@$(BIN)/python -m protos.generate --check

.PHONY: image
image: ## Build the container image with docker, podman or buildah; TORCH_INDEX for a CPU build
	@tool=$$(command -v docker || command -v podman || command -v buildah) \
		|| { echo "image: expected docker, podman or buildah, found none: install one" >&2; exit 1; }; \
	"$$tool" build --tag herd:dev --build-arg TORCH_INDEX="$(TORCH_INDEX)" .

.PHONY: clean
clean: ## Remove .venv and caches
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: help
help: ## Show this
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
