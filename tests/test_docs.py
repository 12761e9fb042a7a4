"""What the documents show must work: users copy it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
import trustme

from tests.conftest import needs
from trioproxy.cli.trace import PHASES
from trioproxy.config.load import load
from trioproxy.witness.exposition import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COPIED = ["README.md", "docs/getting-started.md", "docs/client-address.md"]
"""Pages whose configurations are shown to be copied whole; docs/configuration.md also shows parts and mistakes."""

TELLING = 10
"""Characters of a message's fixed text that are enough to recognise it by."""

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", COPIED)
def test_configurations_have_no_mistakes(page: str, tmp_path: Path) -> None:
    shown = blocks(ROOT / page, "toml")
    assert shown
    for number, text in enumerate(shown):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        load(file)


def test_the_readme_shows_the_scene_in_seven_lines() -> None:
    assert len(blocks(ROOT / "README.md", "toml")[0].splitlines()) == 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = without_code(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_make_targets_that_are_named_exist() -> None:
    named = {target for page in PAGES for target in re.findall(r"(?:`|^)make ([\w-]+)", page.read_text(), re.MULTILINE)}
    assert named
    assert named <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def messages_of_the_code() -> set[str]:
    """The pieces of all texts in the package that no value is put into, as far as they are long enough to tell."""
    pieces: set[str] = set()
    for path in (ROOT / "trioproxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.update(piece.strip() for piece in re.split(r"%[sdgr]|\{\w+\}", node.value))
    return {piece for piece in pieces if len(piece) >= TELLING}


def test_the_messages_that_are_explained_are_those_of_the_code() -> None:
    known = messages_of_the_code()
    explained = re.findall(r"^\| `([^`]+)`", (ROOT / "docs/getting-started.md").read_text(), re.MULTILINE)
    assert explained
    unknown = []
    for message in explained:
        parts = [part.strip() for part in message.split("…") if len(part.strip()) >= TELLING]
        if not any(piece in message or any(part in piece for part in parts) for piece in known):
            unknown.append(message)
    assert unknown == []


def first_column(page: str) -> set[str]:
    """What stands in backticks in the first column of a page's tables."""
    rows = re.findall(r"^\| (`[^|]*`) \|", (ROOT / page).read_text(), re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def test_every_metric_is_told_of_and_no_other() -> None:
    told = {word for word in first_column("docs/operations.md") if word.startswith(("trioproxy_", "process_"))}
    assert told == set(FAMILIES)


def test_every_command_and_every_event_of_the_control_socket_is_told_of() -> None:
    told = first_column("docs/control.md")
    asked: set[str] = set()
    for path in (ROOT / "trioproxy").rglob("*.py"):
        asked.update(re.findall(r'"(certs\.\w+|connections\.close)"', path.read_text()))
    commands = {"status", "connections", "trace", "reload", "upgrade", *asked}
    assert commands <= told
    assert told - commands == {*PHASES, "dropped"}


def test_the_two_pictures_differ_in_colour_only() -> None:
    def bare(name: str) -> str:
        return re.sub(r"#[0-9a-f]{6}", "#", (ROOT / "docs/pictures" / name).read_text())

    assert bare("scene-light.svg") == bare("scene-dark.svg")


def pair(folder: Path) -> Path:
    """A file with a key and a certificate."""
    file = folder / "pair.pem"
    trustme.CA().issue_cert("cloud.myname.com").private_key_and_cert_chain_pem.write_to_path(str(file))
    return file


@needs("nginx")
def test_nginx_accepts_the_configuration_that_it_is_compared_by(tmp_path: Path) -> None:
    [text] = blocks(ROOT / "README.md", "nginx")
    text = re.sub(r"/etc/letsencrypt/\S+\.pem", str(pair(tmp_path)), text)
    # Who runs the tests may not bind ports below 1024, and nginx binds them even to check the file.
    text = re.sub(r"listen (443|80)\b", r"listen 127.0.0.1:4\1", text)
    text = re.sub(r"^include .*", f"load_module {STREAM_MODULE};" if STREAM_MODULE.exists() else "", text, flags=re.M)
    for folder in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        option = "client_body_temp_path" if folder == "body" else f"{folder}_temp_path"
        text = text.replace("http {\n", f"http {{\n    {option} {tmp_path / folder};\n", 1)
    file = tmp_path / "nginx.conf"
    text = text.replace("http {\n", "http {\n    access_log off;\n", 1)
    file.write_text(f"pid {tmp_path / 'pid'};\nerror_log stderr;\n{text}")
    done = subprocess.run(["nginx", "-t", "-c", file], capture_output=True, text=True, timeout=60, env=os.environ)
    if 'unknown directive "stream"' in done.stderr:
        pytest.skip("nginx has no stream module here (make test installs libnginx-mod-stream)")
    assert done.returncode == 0, done.stderr


@needs("nginx")
def test_nginx_accepts_what_it_is_to_take_proxy_headers_by(tmp_path: Path) -> None:
    [text] = blocks(ROOT / "docs/client-address.md", "nginx")
    text = text.replace("/etc/ssl/pbx.pem", str(pair(tmp_path))).replace("listen 443", "listen 127.0.0.1:4443")
    file = tmp_path / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"    {kind}_temp_path {tmp_path / kind};\n" for kind in kinds)
    head = f"pid {tmp_path / 'pid'};\nerror_log stderr;\nevents {{}}\n"
    file.write_text(f"{head}http {{\n    access_log off;\n{folders}{text}}}\n")
    done = subprocess.run(["nginx", "-t", "-c", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@needs("haproxy")
def test_haproxy_accepts_what_it_is_to_take_proxy_headers_by(tmp_path: Path) -> None:
    [text] = blocks(ROOT / "docs/client-address.md", "haproxy")
    file = tmp_path / "haproxy.cfg"
    rest = "backend pbx\n    mode http\n    timeout connect 5s\n    timeout server 5s\n"
    text = text.replace("mode http\n", "mode http\n    timeout client 5s\n", 1)
    file.write_text(text.replace("/etc/ssl/pbx.pem", str(pair(tmp_path))) + rest)
    done = subprocess.run(["haproxy", "-c", "-f", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
