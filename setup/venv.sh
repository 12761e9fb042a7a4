#!/usr/bin/env bash
# Makes .venv from a Python that is new enough and installs trioproxy into it, editable.
#
#   setup/venv.sh [GROUP]      GROUP: a dependency group of pyproject.toml to install as well
#
# PYTHON in the environment names the interpreter to take; by default the first of python3, python3.14 ... python3.11
# that will do.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

choose_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    say "no Python of version 3.11 or newer found${PYTHON:+ under the name $PYTHON}. On Debian: sudo apt-get install python3"
    return 1
}

# An environment whose Python has gone, or that was interrupted while it was made, is made anew.
if ! { new_enough .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    python=$(choose_python)
    setup/debian.sh venv "$python"
    rm -rf .venv
    "$python" -m venv .venv
fi
# Dependency groups (PEP 735) came with pip 25.1; Debian 12 brings 23.
if ! .venv/bin/python -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (25, 1))'; then
    .venv/bin/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
fi
.venv/bin/python -m pip install -q --disable-pip-version-check -e . ${1:+--group "$1"}
