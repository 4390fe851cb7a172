# Everything the project does. GNU Make 3.81 or newer; `make` alone lists the targets.
#
#   VENV=.venv       virtual environment, made on first use; `VENV=` takes the active `python`
#   PROFILE=default  scale of `make figures`: default, smoke or paper
#   ONLY=<notebook>  run one notebook instead of all, e.g. ONLY=02_lime_limit
#   PEERS_PYTHON     Python 3.12 or newer for `make peers`, e.g. PEERS_PYTHON=python3.13

VENV ?= .venv
PROFILE ?= default
ONLY ?=
UV ?= uv
PEERS_PYTHON ?= python3.12

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ifeq ($(strip $(VENV)),)
PYTHON := python
STAMP :=
SITE_STAMP :=
else
PYTHON := $(VENV)/bin/python
# Written last: an environment without it is not complete.
STAMP := $(VENV)/.complete
SITE_STAMP := $(VENV)/.site
endif

# Kernels start in the notebook's folder and must find the package wherever it is not installed.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# A relative cache is meant from here, too.
ifneq ($(XAIUTILS_CACHE),)
export XAIUTILS_CACHE := $(if $(filter /% ~%,$(XAIUTILS_CACHE)),,$(CURDIR)/)$(XAIUTILS_CACHE)
endif

# The longest first: with -j none of them is left to the end.
LONGEST := 01_adversarial_audio 03_fidelity
FOUND := $(basename $(notdir $(wildcard notebooks/*.ipynb)))
ALL := $(filter $(LONGEST),$(FOUND)) $(filter-out $(LONGEST),$(FOUND))
NOTEBOOKS := $(if $(ONLY),$(ONLY),$(ALL))
ifneq ($(filter-out $(ALL),$(NOTEBOOKS)),)
$(error ONLY=$(ONLY): no such notebook; allowed: $(ALL))
endif
ifeq ($(filter $(PROFILE),default smoke paper),)
$(error PROFILE=$(PROFILE): no such profile; allowed: default smoke paper)
endif

EXECUTED := $(NOTEBOOKS:%=build/$(PROFILE)/%.ipynb)
UPDATES := $(NOTEBOOKS:%=update-%)
VERIFIED := $(NOTEBOOKS:%=verify-%)
INPUTS := notebooks/profiles.toml notebooks/claims.toml requirements.lock data/assets.toml \
  data/imagenet_photographs.txt \
  $(filter-out xaiutils/claims.py xaiutils/companion/site/% \
  $(addprefix xaiutils/companion/,ledger.py numbers_in_prose.py readme.py),\
  $(wildcard xaiutils/*.py xaiutils/*/*.py xaiutils/*/*/*.py data/trained/* data/answers/* data/*.json))
PREPARED := build/smoke/prepared
NBVAL := --nbval-lax --nbval-current-env
# Files side by side, one thread each: more workers than four would not fit in 16 GB.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --maxprocesses=4 --dist=loadfile

.PHONY: help figures test verify notebooks lab bench claims lint clean retrain lock \
  findings peers site test-site $(UPDATES) $(VERIFIED)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

figures: $(EXECUTED) $(if $(filter default,$(PROFILE)),figures/CLAIMS.md) ## run what changed, write figures/ (40 min; with -j2 30)

# With -j N each notebook gets its share of the cores, but the last one all: it ends alone. Threads
# that wait must not spin there. Results do not depend on the number of threads.
JOBS = $(patsubst -j%,%,$(filter -j%,$(MAKEFLAGS)))
SHARE = $$(( ($$(getconf _NPROCESSORS_ONLN) + $(JOBS) - 1) / $(JOBS) ))
THREADS = OMP_WAIT_POLICY=PASSIVE \
  $(if $(filter $*,$(lastword $(NOTEBOOKS))),,OMP_NUM_THREADS=$(SHARE))
build/$(PROFILE)/%.ipynb: notebooks/%.ipynb $(INPUTS) | $(STAMP) build/.fetched
	$(if $(JOBS),$(THREADS)) $(PYTHON) -m xaiutils.run $* --profile $(PROFILE)

# A notebook would fetch them too, but without a progress bar.
build/.fetched: data/assets.toml | $(STAMP)
	$(PYTHON) -m xaiutils fetch
	@mkdir -p build && touch $@

# The target exists in a fresh clone; the executed copies make it old.
figures/CLAIMS.md: $(NOTEBOOKS:%=build/default/%.ipynb) notebooks/claims.toml \
  notebooks/headlines.toml | $(STAMP)
	$(PYTHON) -m xaiutils.claims
	$(PYTHON) -m xaiutils.companion.readme

test: lint ## lint, unit tests, all notebooks on tiny inputs (8 min)
	rm -rf $(PREPARED)
	$(PYTHON) -m xaiutils.run --prepare smoke $(PREPARED)
	$(SIDE_BY_SIDE) $(NBVAL) --nbval-cell-timeout=300 $(ALL:%=$(PREPARED)/%.ipynb) tests

verify: $(VERIFIED) ## rerun the committed notebooks, compare their check cells (40 min; -j2 30)

$(VERIFIED): verify-%: | $(STAMP)
	$(if $(JOBS),$(THREADS)) $(PYTHON) -m pytest $(NBVAL) --nbval-cell-timeout=1800 -o faulthandler_timeout=0 \
	  notebooks/$*.ipynb

notebooks: $(UPDATES) ## write the outputs back into the notebooks; reruns those that changed
	$(PYTHON) -m xaiutils.claims
	$(PYTHON) -m xaiutils.companion.readme

$(UPDATES): update-%: | $(STAMP)
	$(if $(JOBS),$(THREADS)) $(PYTHON) -m xaiutils.run --update $*

lab: | $(STAMP) ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab notebooks

bench: | $(STAMP) ## measure speed and accuracy ratios, write build/bench.json (4 min)
	mkdir -p build
	$(PYTHON) -m pytest -s -m benchmark tests/benchmarks

claims: | $(STAMP) ## write figures/CLAIMS.md and README's results from the last runs (seconds)
	$(PYTHON) -m xaiutils.claims
	$(PYTHON) -m xaiutils.companion.readme

lint: | $(STAMP) ## check style and format (seconds)
	$(PYTHON) -m ruff check xaiutils tests notebooks
	$(PYTHON) -m ruff format --check xaiutils tests notebooks

clean: ## remove what was generated; keeps .venv, the cache and committed figures
	rm -rf build .pytest_cache .ruff_cache figures/*/*.pdf

findings: ## run findings/*.sh: do packages still behave as noted there? (1 min, network)
	@mkdir -p build/findings; changed=0; for f in findings/*.sh; do \
	  log=build/findings/$$(basename "$$f" .sh).log; \
	  "$$f" > "$$log" 2>&1; case $$? in 0) echo "ok       $$f";; 3) echo "not run  $$f: see $$log";; \
	  *) echo "changed  $$f: see $$log"; changed=1;; esac; done; exit $$changed

PEERS := build/peers-venv
peers: $(PEERS)/.complete | $(STAMP) ## run captum, lime and shapiq on notebook 02's games: data/peers.json (7 min, network)
	mkdir -p build/peers
	$(PYTHON) -m xaiutils.studies.limit.peer_runs games build/peers/games.npz
	OMP_NUM_THREADS=1 $(PYTHON) -m xaiutils.studies.limit.peer_runs here \
	  build/peers/games.npz build/peers/here.json
	OMP_NUM_THREADS=1 $(PEERS)/bin/python tests/peers/with_shapiq.py \
	  build/peers/games.npz build/peers/shapiq.json
	$(PYTHON) -m xaiutils.studies.limit.peer_runs all \
	  build/peers/games.npz build/peers/here.json build/peers/shapiq.json

# Of its own: shapiq wants Python 3.12, and versions that requirements.lock does not pin.
$(PEERS)/.complete: requirements-peers.lock
	@"$(PEERS_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { \
	  echo "error: $(PEERS_PYTHON) is no Python 3.12 or newer; set PEERS_PYTHON=" >&2; exit 1; }
	"$(PEERS_PYTHON)" -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --no-deps -r requirements-peers.lock
	@touch $@

retrain: | $(STAMP) ## rebuild data/trained/ from nothing on two cores and compare (3.5 h)
	$(PYTHON) -m xaiutils.classifiers.trained --jobs 2

# Shown on the pages with what it gives; made anew where the code has changed.
build/tour/%.ipynb: notebooks/tour/%.ipynb $(INPUTS) xaiutils/companion/site/tour.py \
  | $(SITE_STAMP) build/.fetched
	$(PYTHON) -m xaiutils.companion.site.tour

site: build/tour/ten_calls.ipynb | $(SITE_STAMP) ## write build/site/, web pages of all this (1 min; first time 3)
	$(PYTHON) -m xaiutils.companion.site.collect
	rm -rf build/site
	$(PYTHON) -m sphinx -q -W --keep-going -c xaiutils/companion/site -d build/site-doctrees \
	  build/site-source build/site

test-site: site ## write them, check them in Chromium (2 min)
	$(PYTHON) -m pytest tests/companion/site

lock: ## pin pyproject.toml: requirements*.lock and environment.yml (needs uv)
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	  --extra test --extra lab --output-file requirements.lock pyproject.toml
	sed '/^  - pip:$$/q' environment.yml > environment.yml.new
	sed 's/.*/      - "&"/' requirements.lock >> environment.yml.new
	mv environment.yml.new environment.yml
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	  --extra test --extra lab --extra site --constraints requirements.lock \
	  --output-file requirements-site.lock pyproject.toml
	grep -vxFf requirements.lock requirements-site.lock > requirements-site.lock.new
	mv requirements-site.lock.new requirements-site.lock
	$(UV) pip compile --quiet --universal --python-version 3.12 --no-header --no-annotate \
	  --group peers --output-file requirements-peers.lock

# Make an environment unless there is one; disk space is checked where torch brings CUDA along.
$(VENV)/.complete: requirements.lock
	@if ! "$(VENV)/bin/python" -c 'import pip' 2>/dev/null; then \
	  for p in python3.11 python3.12 python3.13 python3; do \
	    if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      python=$$p; break; fi; done; \
	  if [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 or newer found; install one, or run make VENV= inside an environment" >&2; \
	    exit 1; fi; \
	  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "error: $$python cannot make environments; install its venv module (Debian: python3-venv)" >&2; \
	    exit 1; fi; \
	  free=$$(df -Pk . | awk 'NR == 2 {print $$4}'); \
	  if [ "$$(uname)" = Linux ] && [ "$$free" -lt 8388608 ]; then \
	    echo "error: $$((free / 1048576)) GB free here; the Linux build of torch needs 8 GB to install" >&2; \
	    exit 1; fi; \
	  echo "making $(VENV) with $$python"; \
	  "$$python" -m venv "$(VENV)"; fi
	$(PYTHON) -m pip install --disable-pip-version-check -r requirements.lock
	$(PYTHON) -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What the web pages need on top; nothing of requirements.lock changes.
$(VENV)/.site: requirements-site.lock $(STAMP)
	$(PYTHON) -m pip install --disable-pip-version-check -r requirements-site.lock
	@touch $@
