# `make serve` and `make test` are all a user needs; `make` alone lists the rest. Needs Python 3.11 and make.
#   STUDIES=  a folder of NIfTI, NRRD or DICOM, or a DICOMweb address    PORT=  where the server listens
#   ARGS=     more arguments for the program that the target runs         PYTHON=  a Python 3.11 that is not on the path
.DEFAULT_GOAL := help
.PHONY: help install serve pacs test e2e check format bench lock clean

BIN := .venv/bin
export PYTHON
# Compiled code is kept wherever the caller's environment would not: without it every start takes 15 s more.
unexport PYTHONDONTWRITEBYTECODE
# Tests of real CT run where the data lie beside the checkout; those of CUDA are asked for with ARGS="-m gpu".
MARKS := not gpu$(if $(wildcard ../shared/data), , and not data)

help: ## List these targets
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: ## Make .venv fit requirements.txt (the others do this first)
	@sh scripts/environment.sh install

serve: install ## Start the server: make serve STUDIES=folder-or-DICOMweb-address PORT=8000
	@$(BIN)/polycl serve $(if $(STUDIES),--studies "$(STUDIES)") $(if $(PORT),--port $(PORT)) $(ARGS)

pacs: install ## Start a throw-away PACS with sample studies, for make serve: make pacs PORT=8042
	@$(BIN)/python scripts/throwaway_pacs.py $(if $(PORT),--port $(PORT)) $(ARGS)

test: install ## Run the tests: make test ARGS="-k volume"
	$(BIN)/pytest -m "$(MARKS)" $(ARGS)

e2e: install ## Run the tests that drive a browser and a PACS; their screenshots go to out/e2e
	$(BIN)/pytest -m e2e tests/e2e $(ARGS)

check: install ## Check format, lint, types and that the lock fits pyproject.toml
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pip check
	$(BIN)/pytest tests/unit/test_repository.py

format: install ## Format the code and fix what lint can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: install ## Measure this machine and print a table; JSON goes to out/bench.json
	@mkdir -p out
	$(BIN)/polycl bench --json out/bench.json $(ARGS)

lock: install ## Rewrite requirements.txt from pyproject.toml: make lock ARGS=--upgrade
	@sh scripts/environment.sh lock $(ARGS)

clean: ## Remove .venv, caches and build output
	rm -rf .venv out build dist lib/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find apps bench lib scripts tests -name __pycache__ -prune -exec rm -rf {} +
