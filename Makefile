# make demo | test | check | docs: each from nothing. PYTHON=python3.12 make demo takes another interpreter.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
GL_PACKAGES := libegl1 libgl1-mesa-dri

.PHONY: demo test check docs setup gl
.DEFAULT_GOAL := help

help:
	@echo "make demo   demonstrations, encoder, stages 2 and 3 of VRL3: a policy and a page (minutes after set-up)"
	@echo "make test   run the tests"
	@echo "make check  ruff and mypy"
	@echo "make docs   write docs/cli.md anew from the commands"

demo: setup gl
	$(BIN)/vrl3data demo demo

test: setup gl
	$(BIN)/pytest -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python docs/make_cli.py

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vrl3data needs Python 3.11 or later; say PYTHON=python3.12 make ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test]'
	@touch $@

# Rendering without a screen needs Mesa's software GL.
gl:
	@if ldconfig -p | grep -q 'libEGL\.so\.1' && ls /usr/lib*/dri/*swrast* /usr/lib/*/dri/*swrast* 2>/dev/null | grep -q .; \
	then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends $(GL_PACKAGES); \
	else \
		echo "rendering needs: sudo apt-get install $(GL_PACKAGES)"; exit 1; \
	fi
