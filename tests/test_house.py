"""The plan of the house (docs/architecture.md), held by walking the imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "trioproxy"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    {"cli"},
    {"standalone"},
    {"server"},
    {"life"},
    {"proxy", "certs", "control"},
    {"acme", "snapshot"},
    {"net", "routing", "process", "witness"},
    {"http", "wire"},
    {"config"},
    {"access", "challenges", "names"},
    {"errors", "logs"},
]
"""The rooms from top to bottom. A room may import those on lower floors, and nothing beside or above itself."""

SEPARATE = {frozenset({"proxy", "certs"}), frozenset({"proxy", "acme"})}
"""Rooms that never import each other, whatever the floors say: they meet at `snapshot` and `challenges`."""

PURE = [
    "wire",
    "http",
    "config",
    "routing",
    "access",
    "names",
    "errors",
    "challenges",
    "certs/policy",
    "certs/bundle",
    "acme/ari",
    "acme/journal",
    "acme/problems",
    "acme/protocol",
    "acme/remedies",
    "acme/signing",
]
"""Rooms and files that decide and do not act: whatever they go by, they are handed."""

IMPURE_MODULES = {
    "asyncio", "multiprocessing", "os", "random", "secrets", "select", "selectors", "signal", "socket", "ssl",
    "subprocess", "threading", "time", "trio",
}  # fmt: skip

READS_THE_FILE = {"config/load": {"os"}}
"""Where a configuration is read from its file and `$STATE_DIRECTORY`: the one exception, and what it may import."""

MAX_LINES = 400

NOT_AT_START = {"acme", "josepy", "publicsuffixlist", "requests", "rich"}
"""Packages that cost more to import than the whole start may; imported where they are used."""


def short(path: Path) -> str:
    """`certs/policy` for `trioproxy/certs/policy.py`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def room(module: str) -> str:
    """`certs` for `certs/policy`."""
    return module.partition("/")[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every module that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            yield node.lineno, node.module
            if node.module == "trioproxy":  # `from trioproxy import names` imports a room
                yield from ((node.lineno, f"trioproxy.{alias.name}") for alias in node.names if alias.name.islower())


def each_import() -> Iterator[tuple[str, str, str]]:
    """Where (`trioproxy/x.py:3`), in which module, and what of ours it imports as room name."""
    for path in MODULES:
        for line, name in imports(path):
            if name.startswith("trioproxy."):
                yield f"{path.relative_to(ROOT)}:{line}", short(path), name.split(".")[1]


def test_every_module_is_in_a_room_that_the_plan_knows() -> None:
    known = set().union(*FLOORS) | {"__init__", "__main__"}
    assert {room(short(path)) for path in MODULES} <= known


def test_the_drawing_shows_the_same_floors() -> None:
    drawing = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    assert [set(line.split("  ")[0].split(", ")) for line in drawing.strip().splitlines()] == FLOORS


def test_arrows_run_downward_only() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{where}: {room(module)} imports {target}"
        for where, module, target in each_import()
        if target != room(module) and target != "__version__" and floor.get(room(module), -1) >= floor[target]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_proxy_and_the_certificates_do_not_know_each_other() -> None:
    wrong = [
        f"{where}: {room(module)} imports {target}"
        for where, module, target in each_import()
        if frozenset({room(module), target}) in SEPARATE
    ]
    assert not wrong, "\n".join(wrong)


def test_pure_rooms_neither_wait_nor_ask_the_system() -> None:
    wrong = []
    for path in MODULES:
        module = short(path)
        if not any(module == pure or module.startswith(pure + "/") for pure in PURE):
            continue
        forbidden = IMPURE_MODULES - READS_THE_FILE.get(module, set())
        wrong += [f"{module}:{line}: {name}" for line, name in imports(path) if name.partition(".")[0] in forbidden]
        wrong += [
            f"{module}:{node.lineno}: reads the clock"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr in {"now", "today", "utcnow"}
        ]
    assert not wrong, "\n".join(wrong)


def test_only_net_meets_the_errors_of_sockets() -> None:
    """`net` raises ours for them, so `proxy` and `acme` have nothing of the kind to catch."""
    wrong = []
    for path in MODULES:
        if room(short(path)) not in {"proxy", "acme"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                caught = {
                    n.id if isinstance(n, ast.Name) else n.attr
                    for n in ast.walk(node.type)
                    if isinstance(n, ast.Name | ast.Attribute)
                }
                if caught & {"OSError", "BrokenResourceError", "ClosedResourceError", "BusyResourceError", "SSLError"}:
                    wrong.append(f"{short(path)}:{node.lineno}: {', '.join(sorted(caught))}")
    assert not wrong, "\n".join(wrong)


def test_no_file_holds_two_rooms() -> None:
    lengths = {short(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_each_dependency_has_an_upper_bound_and_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    wanted = [*project["project"]["dependencies"]]
    for group in project["dependency-groups"].values():
        wanted += [requirement for requirement in group if isinstance(requirement, str)]
    wrong = [requirement for requirement in wanted if not re.search(r"<\s*\d|==", requirement)]
    wrong += [r for r in wanted if not re.search(rf'^\s*"{re.escape(r)}",\s+# \S', text, re.MULTILINE)]
    assert not wrong, f"no upper bound, or no comment beside it: {wrong}"


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after `statement`."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.fail(done.stderr)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["trioproxy.cli.main", "trioproxy.cli.serve", "trioproxy.server"])
def test_the_start_imports_nothing_slow(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert "trioproxy" in loaded
    assert not loaded & NOT_AT_START
