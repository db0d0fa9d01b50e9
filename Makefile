# make demo   set up, run the whole system for a few episodes, leave pictures in out/demo
# make test   set up, lint, run every test
PYTHON ?= python3
READY := .venv/.ready
SOURCES := $(wildcard requirements/* scripts/* vla_msgs/* vla_msgs/*/*) setup.py setup.cfg pyproject.toml

.PHONY: setup demo test clean
setup: $(READY)

$(READY): $(SOURCES)
	@PYTHON=$(PYTHON) bash scripts/setup.sh

demo: setup
	.venv/bin/vla demo --out out/demo

test: setup
	.venv/bin/ruff check .
	.venv/bin/python -m pytest

clean:
	rm -rf .venv build install log out
