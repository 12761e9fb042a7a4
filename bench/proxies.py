"""The proxies that are compared, and how each passes TLS through: one worker, names to ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import attrs

from bench.process import BenchError, Child, free_port, raise_descriptor_limit, running

NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

TRIOPROXY = Path(sysconfig.get_path("scripts")) / "trioproxy"
CADDY = Path(sysconfig.get_path("scripts")) / "caddy"

PASSING = ("nginx", "haproxy", "trioproxy")
"""Those that pass TLS through; Caddy can only with a module that its official build lacks."""

PIPES = 256
"""Pipes that HAProxy may splice through; by its own rule it would want a quarter of its connections' number."""

os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps both, and ordinary users do not look


@attrs.frozen
class Running:
    """A proxy that runs: its name in the results, the port where it takes TLS, and its processes."""

    name: str
    port: int
    child: Child


def installed() -> dict[str, str]:
    """The proxies that can be measured here, and their versions.

    Raises:
        BenchError: nginx, which everything is compared with, is not among them.
    """
    found = {}
    if shutil.which("nginx"):
        found["nginx"] = _first(["nginx", "-v"], r"nginx/(\S+)")
    if shutil.which("haproxy"):
        found["haproxy"] = _first(["haproxy", "-v"], r"version (\S+)")
    if "nginx" not in found:
        raise BenchError("nginx is not here: sudo apt-get install nginx-light libnginx-mod-stream haproxy")
    if CADDY.exists():
        found["caddy"] = _first([str(CADDY), "version"], r"v(\S+)")
    found["trioproxy"] = version("trioproxy")
    return found


def _first(command: list[str], pattern: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(pattern, ran.stdout + ran.stderr)
    return match[1] if match else "?"


@contextlib.contextmanager
def started(name: str, names: Mapping[str, int], folder: Path) -> Iterator[Running]:
    """The proxy `name`, which sends each of `names` to its port, until the end of the block.

    Args:
        name: One of `PASSING`.
        names: Host names and ports of 127.0.0.1.
        folder: For its files; it may be used for several.
    """
    port = free_port()
    place = folder / f"{name}-{port}"
    place.mkdir()
    command = {"nginx": _nginx, "haproxy": _haproxy, "trioproxy": _trioproxy}[name](place, port, names)
    with running(command, place / "log", port) as child:
        yield Running(name, port, child)


def _nginx(folder: Path, port: int, names: Mapping[str, int]) -> list[str | Path]:
    behind = "\n".join(f"        {name} 127.0.0.1:{to};" for name, to in names.items())
    file = folder / "nginx.conf"
    file.write_text(f"""
{f"load_module {NGINX_STREAM};" if NGINX_STREAM.exists() else ""}
{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 32768; }}
stream {{
    map_hash_max_size 65536;
    map_hash_bucket_size 128;
    map $ssl_preread_server_name $behind {{
{behind}
    }}
    server {{
        listen 127.0.0.1:{port};
        ssl_preread on;
        proxy_pass $behind;
        proxy_timeout 1h;
    }}
}}
""")
    return ["nginx", "-p", folder, "-e", "stderr", "-c", file, "-g", "daemon off;"]


def _haproxy(folder: Path, port: int, names: Mapping[str, int]) -> list[str | Path]:
    table = folder / "names.map"
    table.write_text("".join(f"{name} to_{to}\n" for name, to in names.items()))
    backends = "\n".join(f"backend to_{to}\n    server only 127.0.0.1:{to}" for to in dict.fromkeys(names.values()))
    file = folder / "haproxy.cfg"
    connections = min(16_000, (raise_descriptor_limit() - 2 * PIPES - 200) // 2)
    file.write_text(f"""
global
    nbthread 1
    maxconn {connections}
    maxpipes {PIPES}
defaults
    mode tcp
    maxconn {connections}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    option splice-auto
frontend tls
    bind 127.0.0.1:{port}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend %[req.ssl_sni,lower,map({table})]
{backends}
""")
    return ["haproxy", "-db", "-f", file]


def _trioproxy(folder: Path, port: int, names: Mapping[str, int]) -> list[str | Path]:
    file = folder / "config.toml"
    lines = [
        f'[listen]\nhttps = ["127.0.0.1:{port}"]\nhttp = []',
        "[limits]\nconnections = 100000\nconnections_per_ip = 100000",  # all of them come from this machine
        f'[storage]\npath = "{folder / "storage"}"',
        "[passthrough]",
        *(f'"{name}" = "127.0.0.1:{to}"' for name, to in names.items()),
    ]
    file.write_text("\n".join(lines) + "\n")
    return [TRIOPROXY, "--config", file, "serve"]
