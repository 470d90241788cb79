# Everything a person does here starts with `make`. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Its makers advertise what comes after it with every build.
export NO_MKDOCS_2_WARNING := 1
# The environment is made anew only when a lock or the package's own entry changed: the stamp is named after them.
LOCK_HASH := $(shell { cat requirements/bootstrap.txt requirements/dev.txt; sed '/^\[tool/,$$d' pyproject.toml; } | \
  sha256sum | cut -c1-16)
INSTALLED := $(VENV)/installed-$(LOCK_HASH)
# What we are measured against, and what examines images and Terraform: their dependencies would move or slow down our own.
OTHERS := .venv-peers .venv-images .venv-terraform
# Where the stack and the runs keep what they know: the registry, models, predictions, feedback, the data's default remote.
STATE := $(or $(SHOPFLOOR_STATE_DIR),.shopfloor)
installed = .venv-$(1)/installed-$(shell sha256sum requirements/$(1).txt | cut -c1-16)

.PHONY: help run demo stop test test-compose test-cluster test-terraform images lint docs format bench storm soak lock lock-add clean purge

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(INSTALLED):
	@echo "Installing $$(grep -c '==' requirements/dev.txt) packages into $(VENV): some minutes where none is cached" >&2
	@if [ -x $(BIN)/shopfloor ]; then $(BIN)/shopfloor down; fi  # it runs on the packages that are replaced
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes \
	  --build-constraints requirements/dev.txt -r requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

install: $(INSTALLED)  ## create .venv from the hash lock (again only when the lock changed)

.venv-peers/installed-% .venv-images/installed-% .venv-terraform/installed-%: | $(INSTALLED)
	@echo "Installing into $(@D) from requirements/$(patsubst .venv-%,%,$(@D)).txt" >&2
	@$(PYTHON) -m venv --clear $(@D)
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(@D)/bin/python --require-hashes \
	  --build-constraints requirements/dev.txt -r requirements/$(patsubst .venv-%,%,$(@D)).txt
	@touch $@

run: $(INSTALLED)  ## start the stack, version the data, train, gate and serve the flight_delays model
	@$(BIN)/shopfloor up
	@$(BIN)/shopfloor data prepare flight_delays
	@$(BIN)/shopfloor submit pipelines/training.py --use-case flight_delays

# An imported model's file differs each time that it is made: it is made once. A gate that is missed leaves a champion.
DEMO = $(STATE)/demo
demo: $(INSTALLED)  ## run every use case that comes along to an endpoint, and ask each one; again, it reuses what is there
	@$(BIN)/shopfloor up >&2
	@for name in flight_delays aircraft_seats digits; do \
	  echo "$$name" >&2; $(BIN)/shopfloor data prepare $$name || exit; \
	  $(BIN)/shopfloor submit pipelines/training.py --use-case $$name >&2; code=$$?; \
	  case $$code in 0|3) ;; *) exit $$code;; esac; done
	@echo iris >&2; [ -f $(DEMO)/iris/model.skops ] || { rm -rf $(DEMO)/iris.part; mkdir -p $(DEMO); \
	  $(BIN)/python -m pipelines.iris.elsewhere $(DEMO)/iris.part && mv $(DEMO)/iris.part $(DEMO)/iris; }
	@version=$$($(BIN)/shopfloor models import $(DEMO)/iris/model.skops --name iris --example $(DEMO)/iris/rows.json --json | \
	  sed -n 's/^  "version": "\(.*\)",$$/\1/p') && $(BIN)/shopfloor deploy iris@$$version >&2
	@$(BIN)/shopfloor ask

stop: $(INSTALLED)  ## stop what `make run` or `make demo` started
	@$(BIN)/shopfloor down

# Two processes; what needs the same Ray cluster runs in the same one, and first (tests/conftest.py).
test: $(INSTALLED)  ## every test but the benchmarks, the storm and those with targets of their own
	@$(BIN)/python -m pytest tests -m "not storm" --ignore=tests/benchmarks --numprocesses 2 --dist loadscope --durations 25 \
	  --ignore-glob='tests/e2e/test_compose*.py' --ignore-glob='tests/e2e/test_cluster*.py' \
	  --ignore-glob='tests/e2e/test_terraform*.py'

test-compose: images  ## the stack of docker-compose.yml from nothing, on this machine's Docker engine
	@$(BIN)/python -m pytest tests/e2e/test_compose*.py --durations 0

test-cluster: $(INSTALLED)  ## the engine argo on a real cluster: make test-cluster KUBECONFIG=PATH
	@$(BIN)/python -m pytest tests/e2e/test_cluster*.py --durations 0 -rs

test-terraform: $(call installed,terraform)  ## examine terraform/ by rules and plan all of it in a pretended account
	@.venv-terraform/bin/checkov --directory terraform --framework terraform --skip-download --quiet --compact
	@$(BIN)/python -m pytest tests/e2e/test_terraform*.py --durations 0 -rs

lint: $(INSTALLED)  ## ruff, mypy --strict on the package, the import contracts, the documentation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/mkdocs build --quiet --strict

# The version is the package's; the digest of the base image, where one was examined: make images BASE_DIGEST=sha256:...
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
VARIANT := cpu
IMAGE := shopfloor/platform:$(VERSION)$(if $(filter-out cpu,$(VARIANT)),-$(VARIANT))

images: $(call installed,images)  ## build the platform image (VARIANT=gpu for the other) and its bill of materials
	@.venv-images/bin/hadolint platform/images/Dockerfile
	@mkdir -p build
	@.venv-images/bin/cyclonedx-py requirements requirements/runtime.txt --pyproject pyproject.toml --output-reproducible \
	  --output-file build/platform.cdx.json 2> build/cyclonedx.log || { cat build/cyclonedx.log >&2; exit 1; }
	@DOCKER_BUILDKIT=1 docker build $(DOCKER_BUILD_OPTIONS) --file platform/images/Dockerfile --tag $(IMAGE) \
	  --build-arg VERSION=$(VERSION) --build-arg VARIANT=$(VARIANT) --build-arg BASE_DIGEST=$(BASE_DIGEST) \
	  --build-arg REVISION=$(shell git rev-parse HEAD 2> /dev/null || echo unknown) .
	@echo "Built $(IMAGE); what is in it: build/platform.cdx.json" >&2

docs: $(INSTALLED)  ## build the documentation into build/site
	@$(BIN)/mkdocs build --quiet --strict
	@echo "Open build/site/README.html, or see it live: $(BIN)/mkdocs serve" >&2

format: $(INSTALLED)  ## rewrite the sources in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(INSTALLED) $(call installed,peers)  ## measure ours against the peers, in one table
	@$(BIN)/python -m tests.benchmarks

storm: $(INSTALLED)  ## what dies in the middle of whole runs, and 200 pairs of deployers who change one endpoint at once
	@$(BIN)/python -m pytest tests/e2e/test_main_job.py -m storm --durations 0
	@STORM_INTERLEAVINGS=200 $(BIN)/python -m pytest tests/integration/test_interleavings.py

soak: $(INSTALLED)  ## twenty minutes of load: whether the endpoint's memory and descriptors stay what they are
	@$(BIN)/python -m tests.benchmarks.soak

RESOLVE = $(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --custom-compile-command "make lock"
PINS = grep -oE '^[A-Za-z0-9._-]+==[^ ;]+'

lock: $(INSTALLED)  ## resolve requirements/*.in anew into hash locks: every package may move
	@for name in bootstrap runtime dev images peers terraform; do \
	  $(RESOLVE) --upgrade requirements/$$name.in --output-file requirements/$$name.txt || exit 1; done
	@$(RESOLVE) -c requirements/runtime.txt requirements/gpu.in --output-file requirements/gpu.txt

lock-add: $(INSTALLED)  ## lock what is new in requirements/*.in, and move no other package
	@for name in bootstrap runtime dev images peers terraform; do \
	  lock=requirements/$$name.txt; cp $$lock $$lock.before || exit 1; \
	  $(RESOLVE) requirements/$$name.in --output-file $$lock || { mv $$lock.before $$lock; exit 1; }; \
	  moved=$$(comm -23 <($(PINS) $$lock.before | sort) <($(PINS) $$lock | sort)); \
	  if [ -n "$$moved" ]; then mv $$lock.before $$lock; \
	    echo "$$lock stays: these would have to move or go:" $$moved "Then it is \`make lock\`." >&2; exit 1; fi; \
	  comm -13 <($(PINS) $$lock.before | sort) <($(PINS) $$lock | sort) | sed "s|^|$$lock: |"; rm $$lock.before; done

clean:  ## stop the stack and remove what can be made again: the environment, the build, the caches
	@if [ -x $(BIN)/shopfloor ]; then $(BIN)/shopfloor down; fi
	@rm -rf $(VENV) $(OTHERS) build *.egg-info platform/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache .schemathesis "$(STATE)/hashes" "$(STATE)/fetched"

purge:  ## say what the stack and the runs hold; with CONFIRM=yes stop the stack and delete it for good
	@if [ ! -d "$(STATE)" ]; then echo "There is no $(STATE)."; exit 0; fi; \
	case "$(realpath $(STATE))" in /|"$(realpath $(HOME))") echo "$(STATE) is more than the state." >&2; exit 2; esac; \
	case "$(CURDIR)/" in "$(realpath $(STATE))"/*) echo "$(STATE) is more than the state." >&2; exit 2; esac; \
	echo "$(STATE) holds what nothing can make again: registered models, runs, predictions, feedback and, in dvc-remote," \
	  "the data that was pushed to no other remote:"; du -sh "$(STATE)"/* 2>/dev/null | sort -rh; \
	if [ "$(CONFIRM)" != yes ]; then echo "Nothing was deleted. To delete all of it: make purge CONFIRM=yes" >&2; exit 2; fi; \
	if [ -x $(BIN)/shopfloor ]; then $(BIN)/shopfloor down || exit 1; fi; \
	rm -rf "$(STATE)" && echo "Deleted $(STATE)."
