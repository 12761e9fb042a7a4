# Everything a developer does. Each target does the set-up that it needs, and skips what is already done.

export PATH := $(PATH):/usr/sbin:/sbin
PY := .venv/bin/python
ARGS ?=

.PHONY: run test lint format bench chaos soak autobahn bulk browser apps clean tools suites acme2certifier short-lived hot-swap thousand

run: .venv/.run  ## the scene on loopback, with stand-in backends; Ctrl-C ends it
	@.venv/bin/trioproxy demo

test: .venv/.test tools suites  ## every test; ARGS="tests/http -k chunked" chooses
	$(PY) -m pytest -n 2 --dist loadfile -o faulthandler_timeout=120 $(ARGS)

lint: .venv/.lint  ## style, types, and the Trio rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m flake8 trioproxy tests bench

format: .venv/.lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: .venv/.bench  ## beside nginx, HAProxy and Caddy, some fifteen minutes; ARGS="--quick", ARGS="bulk idle" do less
	@setup/debian.sh bench
	$(PY) -m bench $(ARGS)

autobahn: .venv/.test  ## Autobahn's WebSocket cases, without the proxy and through it; ARGS='1.* 7.*' chooses
	$(PY) -m tests.autobahn $(ARGS)

bulk: .venv/.test  ## five gigabytes up and down through a site, and the memory meanwhile; ARGS="--http2 20"
	$(PY) -m tests.bulk $(ARGS)

chaos: .venv/.test tools  ## everything of docs/reliability.md but the soak, ten minutes; ARGS="upgrades dns --short" chooses
	$(PY) -m tests.chaos $(ARGS)

soak: .venv/.test tools  ## a million requests, 200,000 connections, 20,000 WebSockets, and what is left of them
	$(PY) -m tests.chaos soak $(ARGS)

browser:  ## Chromium, with which `make test` does more
	@setup/debian.sh browser

apps: .venv/.test browser  ## JupyterLab and Radicale through the proxy, used in Chromium; pictures of it in .work/apps
	$(PY) -m tests.apps $(ARGS)

short-lived: .venv/.test tools  ## certificates of 59 seconds from Pebble, renewed three times under load
	$(PY) -m tests.short_lived $(ARGS)

hot-swap: .venv/.test tools  ## certificates replaced under 200 new TLS connections a second
	$(PY) -m tests.hot_swap $(ARGS)

thousand: .venv/.test tools  ## a thousand first certificates from Pebble, paced by the ledger; some five minutes
	$(PY) -m tests.thousand $(ARGS)

acme2certifier: .venv/.test  ## renewal information and profiles at a CA that others wrote
	@test -x .work/acme2certifier/bin/pip || python3 -m venv .work/acme2certifier
	@.work/acme2certifier/bin/pip install --quiet --disable-pip-version-check acme2certifier==0.46
	$(PY) -m pytest tests/acme/test_with_acme2certifier.py tests/certs/test_with_acme2certifier.py $(ARGS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .work build dist/*.whl dist/*.tar.gz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

tools:
	@setup/debian.sh test

# Tests that others wrote; they skip where these cannot be fetched.
suites: .venv/.test
	@$(PY) -m tests.suites

# A stamp for each set of dependencies, renewed when they change.
.venv/.run: pyproject.toml setup/venv.sh setup/debian.sh
	setup/venv.sh
	@touch $@

.venv/.test: pyproject.toml setup/venv.sh setup/debian.sh
	setup/venv.sh test
	@touch $@ .venv/.run

.venv/.bench: pyproject.toml setup/venv.sh setup/debian.sh
	setup/venv.sh bench
	@touch $@ .venv/.run

.venv/.lint: pyproject.toml setup/venv.sh setup/debian.sh
	setup/venv.sh dev
	@touch $@ .venv/.test .venv/.run
