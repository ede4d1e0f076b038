# Wavefold's own errands. All of it happens in .venv, demo/ and runs/demo; `make clean` takes them away.
#
#   make demo       from nothing to two trained folds and a report, on a laptop
#   make test       every test; `.venv/bin/pytest` alone runs the quick ones
#   make lint       ruff and mypy
#   make bench      side by side with others, on a quiet machine: bench/RESULTS.md
#
# Another interpreter than python3: make demo PYTHON=python3.12

PYTHON ?= python3
PIP_FLAGS ?=

SHELL := /bin/sh
STARTED := $(shell date +%s)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint bench clean
help:
	@sed -n 's/^#   //p' Makefile

# --- the environment ---------------------------------------------------------------------------

.venv/bin/python:
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'error: $(PYTHON) not found; apt install python3 python3-venv, or make PYTHON=python3.11'; exit 1; } >&2
	@'$(PYTHON)' -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo "error: $$('$(PYTHON)' -V 2>&1) cannot run wavefold, it needs 3.10 to 3.13; say which: make PYTHON=python3.11"; exit 1; } >&2
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'error: $(PYTHON) cannot make environments; apt install python3-venv, or make PYTHON=python3.11'; exit 1; } >&2
	$(PYTHON) -m venv .venv

# pip says either nothing for two minutes or 200 lines: its log is kept aside, its last line shown.
define install
@echo "\$$ pip install -e '$(1)'    (1-2 minutes; with torch and CUDA some 6 GB on disk)"
@( while sleep 5; kill -0 $$$$ 2>/dev/null; do tail -n 1 .venv/pip.log | cut -c 1-90; done ) & \
.venv/bin/python -m pip install --no-input --progress-bar off $(PIP_FLAGS) -e '$(1)' >.venv/pip.log 2>&1; \
code=$$?; kill $$!; \
[ $$code = 0 ] || { grep -i error .venv/pip.log | tail -n 5; \
    echo "error: pip could not install wavefold (a network, a proxy, a full disk?); all it said: .venv/pip.log"; \
    exit $$code; } >&2
endef

.venv/.installed: setup.cfg setup.py pyproject.toml shards/native.c shards/draws.c | .venv/bin/python
	$(call install,.)
	@touch $@

.venv/.installed-dev: setup.cfg setup.py pyproject.toml shards/native.c shards/draws.c | .venv/bin/python
	$(call install,.[dev])
	@touch $@ .venv/.installed

# --- the demo ----------------------------------------------------------------------------------

# `stage NAME COMMAND` shows a command as one would type it, runs it and notes the time it took. What
# launch.local prints is kept, because its last two lines, the score and the report, belong at the end.
demo: .venv/.installed
	@. .venv/bin/activate; \
	times=$$(printf '%-16s %5d s' install $$(($$(date +%s) - $(STARTED)))); \
	stage() { \
	    printf '\n$$ %s\n' "$$2"; begin=$$(date +%s); \
	    eval "$$2 $$3" || { code=$$?; echo "make demo: $$1 failed with exit code $$code" >&2; exit $$code; }; \
	    times=$$(printf '%s\n%-16s %5d s' "$$times" "$$1" $$(($$(date +%s) - begin))); \
	}; \
	printf '\n$$ . .venv/bin/activate\n'; \
	stage 'demo audio' "python -m shards demo demo/audio"; \
	stage 'shards' "python -m shards build demo/audio demo/shards --segment_seconds=2 --overlap=0.5 \
	--sample_rate=16000 --n_mels=64 --n_fft=1024 --hop_length=256 --group_from='^(site-\d)' --folds=2"; \
	stage 'train, collect' 'python -m launch.local configs/demo.yaml --folds=2 --jobs=2' '>demo/collected.txt'; \
	cat demo/collected.txt; \
	printf '\n%s\n%-16s %5d s\n' "$$times" total $$(($$(date +%s) - $(STARTED))); \
	tail -n 2 demo/collected.txt

# --- tests -------------------------------------------------------------------------------------

test: .venv/.installed-dev
	.venv/bin/python -m pytest -m ""

lint: .venv/.installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy shards toolkit $(wildcard launch/*.py train.py)

bench: .venv/.installed-dev
	for name in mel build order augment optim precision exact trainer folds loader start checkpoint; do .venv/bin/python bench/$$name.py --write || exit; done

clean:
	rm -rf .venv demo runs/demo
