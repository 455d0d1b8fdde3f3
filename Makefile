# Everything runs in .venv, made from requirements.lock; the embedded database and other state live in .veza.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
MANAGE := $(BIN)/python manage.py
# What the deployment check is run against: no value here is used anywhere else.
DEPLOYED := USE_TLS=true DEBUG=false ALLOWED_HOSTS=pay.example.com \
	SECRET_KEY=only-for-the-deployment-check-0123456789-abcdefghijklmnopqrstuvwxyz \
	STRIPE_SECRET_KEY=sk_test_deploymentcheck STRIPE_WEBHOOK_SECRETS=whsec_deploymentcheck
# The modules that move money: every line and branch of them is run by the tests.
MONEY := marketplace/services/*,marketplace/inbox.py,marketplace/gateway/*,marketplace/models/*,marketplace/workers/*
MONEY := $(MONEY),marketplace/slots.py,marketplace/money.py,marketplace/backoff.py,marketplace/states.py

.PHONY: help env lock migrate demo test simulate bench check format screenshots chromium stop clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is %d.%d; choose another by PYTHON=…" % sys.version_info[:2])'
	@echo "Making .venv from requirements.lock (about half a minute) …"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip --quiet --quiet --disable-pip-version-check install --require-hashes -r requirements.lock
	@touch $@

env: .venv/installed ## Make .venv from the lock file

lock: ## Resolve requirements.lock anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-strip-extras --extra tracing --group dev pyproject.toml -o requirements.lock

migrate: env ## Bring the database up to date
	@$(MANAGE) migrate

demo: env ## See it work: a local Stripe, the site, the workers, sample data, one refund
	@$(MANAGE) demo

chromium: env
	@sh scripts/ensure_chromium.sh

test: env chromium ## Run the whole suite
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov --cov-report= --ignore=tests/simulation
	@# Watched line by line it would take as long again, and cover nothing that no other test does.
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/simulation
	@$(BIN)/coverage report --include='$(MONEY)' --fail-under=100
	@$(BIN)/coverage report --format=total --fail-under=90 | sed 's/^/Coverage of all, lines and branches, in percent: /'

simulate: env ## Days of faults and crashes from seeds: SEEDS=5000, SEED=123 for one with its steps, PLANT=? for bugs
	@$(BIN)/python -m tests.simulation $(if $(SEEDS),--seeds=$(SEEDS)) $(if $(SEED),--seed=$(SEED)) $(if $(PLANT),--plant='$(PLANT)')

bench: env ## Measure the bars, about half an hour; ONLY=throughput,claim for some, QUICK=1 for a look
	@$(BIN)/python -m bench $(if $(ONLY),--only=$(ONLY)) $(if $(QUICK),--quick) $(if $(DOCS),--docs)

check: env ## Lint, types, layers, migrations, deployment settings, docs
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(DEPLOYED) $(MANAGE) makemigrations --check --dry-run
	@$(DEPLOYED) $(MANAGE) check --deploy --fail-level WARNING
	@$(DEPLOYED) $(MANAGE) spectacular --validate --fail-on-warn --file /dev/null
	@$(BIN)/python scripts/generate_docs.py --check

format: env ## Format the code, mend what can be mended
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

screenshots: env chromium ## Take docs/screenshots anew, of the real pages in a browser
	@$(BIN)/python scripts/screenshots.py

stop: ## Stop the embedded database, if it runs
	@if [ -f .venv/installed ]; then $(BIN)/python -m veza.database stop; fi

clean: stop ## Remove all that make made; .env stays
	rm -rf .venv .veza staticfiles htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
