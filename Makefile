# The two commands of the README: make demo, make test. Both set everything up first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test test-ui test-cluster test-fuzz test-chaos kubernetes image image-check screenshots audit test-unit lint bench bench-api bench-bigger bench-recovery bench-watching bench-scale bench-efficiency soak cards dashboards chart schema settings clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("dbserve needs Python 3.11, 3.12 or 3.13; say which: make PYTHON=python3.12" if not (3, 11) <= sys.version_info < (3, 14) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[control,worker,dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/python -m examples.demo

test: setup
	$(BIN)/python -m pytest tests -m "not chaos and not ui and not cluster and not fuzz and not image"

# The page, in a real Chromium (apt install chromium chromium-driver).
test-ui: setup
	$(BIN)/python -m pytest tests/ui --ignore tests/ui/test_pictures.py

# The pictures in docs/monitoring.md, from a real run.
screenshots: setup
	DBSERVE_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/ui/test_pictures.py

# Slow tests that break things for real: killed workers, stopped raylets, full disks, a Redis that stalls.
CHAOS ?= chaos
test-chaos: setup
	$(BIN)/python -m pytest tests -m "$(CHAOS)"

test-unit: setup
	$(BIN)/python -m pytest tests/unit

# Several Ray nodes on this machine: nodes that die, drain and come, and tasks of several workers across them.
test-cluster: setup
	$(BIN)/python -m pytest tests/cluster -m "cluster and not chaos"

# The running service against its own OpenAPI document, and job files nobody would write.
test-fuzz: setup
	$(BIN)/python -m pytest tests/fuzz

# The chart: rendered for every values file by Helm's engine, and held against schemas and policies.
kubernetes: setup
	$(BIN)/python -m pytest tests/kubernetes

# Both images, with what there is of podman, buildah and docker; deploy/build.sh says what may be set.
image:
	deploy/build.sh

# Both images, built on Debian's packages and run, as root (CI: the control plane's alone; apt install buildah podman runc netavark aardvark-dns iptables
# mmdebstrap catatonit).
IMAGE_TESTS ?= tests/images
image-check: setup
	$(BIN)/python -m pytest $(IMAGE_TESTS)

# Known weaknesses of what constraints.txt pins; says so where the advisories cannot be reached.
audit: setup
	$(BIN)/python -m tests.audit

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python -m tests.ceilings

bench: setup
	$(BIN)/python -m benchmarks.blocks
	$(BIN)/python -m benchmarks.orchestration

bench-api: setup
	$(BIN)/python -m benchmarks.api

# A network that no worker can train end-to-end, trained as blocks by workers of that very size.
bench-bigger: setup
	$(BIN)/python -m benchmarks.bigger

# What it costs to look: a scrape, and a hundred viewers.
bench-watching: setup
	$(BIN)/python -m benchmarks.watching

# A thousand workers that only pretend, on the real store, reconciler and API.
bench-scale: setup
	$(BIN)/python -m benchmarks.scale

# Four isolated blocks at once, against the machine's own limit.
bench-efficiency: setup
	$(BIN)/python -m benchmarks.efficiency

# How long it takes until things go on, after something broke.
bench-recovery: setup
	$(BIN)/python -m benchmarks.recovery

# Jobs run while faults are injected, the same ones for the same seed; fails unless nothing is lost.
MINUTES ?= 10
SEED    ?= 1
soak: setup
	$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) --seed $(SEED)

# Files that code writes; a test fails when one is stale.
cards: setup
	$(BIN)/python -m workers.models.cards

dashboards: setup
	$(BIN)/python -m dashboards

# Of the chart, what is written by code: who may do what in Redis. Rules and dashboards are links that Helm follows.
chart: setup
	$(BIN)/dbserve redis-acl --template > helm/dbserve/files/users.acl

schema: setup
	$(BIN)/python -m dbserve.contracts.report > docs/report.schema.json

settings: setup
	$(BIN)/python -m tests.settings_page > docs/settings.md

clean:
	rm -rf $(VENV) demo-output bench-output .pytest_cache .ruff_cache .hypothesis *.egg-info
