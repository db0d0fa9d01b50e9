# make demo   set up, run the whole system for a few episodes, leave pictures in out/demo
# make test   set up, lint, run every test, the quick ones first
# make test-unit   the quick ones alone, in a few minutes
# make types  check types: no folder may have more errors than scripts/type_errors.json says
# make coverage  what the quick tests reach; build/coverage/index.html
# make docs   the documentation as a site; build/docs/index.html
# make nightly  the fault campaign with a seed of its own, which it prints; half an hour
# make clean  remove what the others made
# DISTRIBUTION=jazzy   before any of these: ROS 2 Jazzy instead of Kilted
PYTHON ?= python3
DISTRIBUTION ?= kilted
READY := .venv/.ready-$(DISTRIBUTION)
DOCS ?= .venv/docs
SOURCES := requirements/requirements.in requirements/lock.txt requirements/no-deps.txt \
  requirements/$(DISTRIBUTION).txt \
  scripts/setup.sh scripts/relocate_ros_wheels.py \
  $(wildcard vla_msgs/* vla_msgs/*/* scripts/ros/*/* scripts/ros/*/*/*) setup.py setup.cfg pyproject.toml

# A sourced ROS 2 would hide the one in .venv.
ifdef AMENT_PREFIX_PATH
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH \
  RMW_IMPLEMENTATION
endif

# A file at a time on each core; what has deadlines of a real clock comes last, on one of them.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

.PHONY: setup demo test test-unit types coverage docs nightly clean
setup: $(READY)

$(READY): $(SOURCES)
	@PYTHON=$(PYTHON) DISTRIBUTION=$(DISTRIBUTION) bash scripts/setup.sh

demo: setup
	.venv/bin/vla demo --out out/demo

test: setup
	.venv/bin/ruff check .
	.venv/bin/python -m pytest $(SIDE_BY_SIDE)

test-unit: setup
	.venv/bin/ruff check .
	.venv/bin/python -m pytest test/unit -m unit $(SIDE_BY_SIDE)

types: setup
	.venv/bin/python scripts/check_types.py

coverage: setup
	.venv/bin/coverage run -m pytest test/unit -m unit
	.venv/bin/coverage html --quiet --directory build/coverage
	.venv/bin/coverage report

# In an environment of its own: what builds the site has nothing to do with what runs.
$(DOCS)/.ready: requirements/docs.in requirements/docs-lock.txt | setup
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip -q install -r requirements/docs.in -c requirements/docs-lock.txt
	touch $@

docs: setup $(DOCS)/.ready
	rm -rf build/docs-pages
	.venv/bin/python -m scripts.reference build/docs-pages
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

nightly: setup
	.venv/bin/vla bench faults --seed random --out out/faults

# Only what was made here: what setup installed, and what the lists in out/ name.
clean:
	@rm -rf build/docs build/docs-pages build/coverage
	@$(PYTHON) -m vla_policy_node.outputs.clean out
	@if [ -f .venv/.made_by_setup ] && [ ! -L .venv ]; then rm -rf .venv; \
	elif [ -e .venv ]; then echo "'.venv' stays: it was not made here."; fi
