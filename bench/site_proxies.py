"""The proxies as the front of one site: TLS ends there, requests go to a backend over plain HTTP/1.1.

Each has one worker, TLS 1.3, the same certificate, HTTP/2 where it has it, keep-alive on both sides without a limit on
the number of requests, the forwarding fields that such a backend wants, bodies that are streamed, and no access log.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bench.certificates import Files
from bench.process import free_port, raise_descriptor_limit, running
from bench.proxies import CADDY, NGINX_STREAM, TRIOPROXY, Running
from trioproxy.config.load import SECTIONS

NAME = "site.example.com"

IDLE_BACKENDS = 256
"""Idle connections to the backend that a proxy may keep: more than there are clients at any time. By default nginx
keeps none and Caddy 32."""


@contextlib.contextmanager
def started(name: str, backend: int, certificate: Files, folder: Path) -> Iterator[Running]:
    """The proxy `name`, with `NAME` as its one site, until the end of the block.

    Args:
        name: One of `proxies.installed()`.
        backend: The port of the site's backend.
        certificate: The site's.
        folder: For the proxy's files; it may be used for several.
    """
    port = free_port()
    place = folder / f"site-{name}-{port}"
    place.mkdir()
    environment = {}
    match name:
        case "nginx":
            command = _nginx(place, port, backend, certificate)
        case "haproxy":
            command = _haproxy(place, port, backend, certificate)
        case "caddy":
            command = _caddy(place, port, backend, certificate)
            # One worker of the others is one thread; Go would take all processors.
            environment = {"GOMAXPROCS": "1", "HOME": str(place), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
        case _:
            command = _trioproxy(place, port, backend, certificate)
    with running(command, place / "log", port, environment={**os.environ, **environment}) as child:
        yield Running(name, port, child)


def _nginx(folder: Path, port: int, backend: int, certificate: Files) -> list[str | Path]:
    """Two hops, as nginx needs them where the same port also passes TLS through: `stream` looks, `http` terminates."""
    inner = free_port()
    file = folder / "nginx.conf"
    file.write_text(f"""
{f"load_module {NGINX_STREAM};" if NGINX_STREAM.exists() else ""}
{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 32768; }}
stream {{
    map $ssl_preread_server_name $behind {{
        {NAME} 127.0.0.1:{inner};
    }}
    server {{
        listen 127.0.0.1:{port};
        ssl_preread on;
        proxy_pass $behind;
        proxy_timeout 1h;
    }}
}}
http {{
    access_log off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {certificate.chain};
    ssl_certificate_key {certificate.key};
    upstream backend {{
        server 127.0.0.1:{backend};
        keepalive {IDLE_BACKENDS};
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{inner} ssl http2;
        server_name {NAME};
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_max_temp_file_size 0;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
""")
    return ["nginx", "-p", folder, "-e", "stderr", "-c", file, "-g", "daemon off;"]


def _haproxy(folder: Path, port: int, backend: int, certificate: Files) -> list[str | Path]:
    file = folder / "haproxy.cfg"
    connections = min(16_000, (raise_descriptor_limit() - 200) // 2)
    file.write_text(f"""
global
    nbthread 1
    maxconn {connections}
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    maxconn {connections}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    http-reuse always
    option forwardfor
frontend tls
    bind 127.0.0.1:{port} ssl crt {certificate.both} alpn h2,http/1.1
    http-request set-header X-Forwarded-Proto https
    default_backend only
backend only
    server only 127.0.0.1:{backend} pool-max-conn {IDLE_BACKENDS}
""")
    return ["haproxy", "-db", "-f", file]


def _caddy(folder: Path, port: int, backend: int, certificate: Files) -> list[str | Path]:
    file = folder / "Caddyfile"
    file.write_text(f"""
{{
    admin off
    auto_https off
    persist_config off
    servers {{
        protocols h1 h2
    }}
}}
https://{NAME}:{port} {{
    bind 127.0.0.1
    tls {certificate.chain} {certificate.key}
    reverse_proxy 127.0.0.1:{backend} {{
        transport http {{
            keepalive_idle_conns {IDLE_BACKENDS}
            keepalive_idle_conns_per_host {IDLE_BACKENDS}
        }}
    }}
}}
""")
    return [CADDY, "run", "--config", file, "--adapter", "caddyfile"]


def _trioproxy(folder: Path, port: int, backend: int, certificate: Files) -> list[str | Path]:
    file = folder / "config.toml"
    log = 'access = ""' if "access" in SECTIONS["log"] else ""
    file.write_text(f"""
[listen]
https = ["127.0.0.1:{port}"]
http = []
[limits]  # all of them come from this machine
connections = 100000
connections_per_ip = 100000
[storage]
path = "{folder / "storage"}"
[log]
{log}
[sites."{NAME}"]
"/" = "http://127.0.0.1:{backend}"
tls = {{ certificate = "{certificate.chain}", key = "{certificate.key}" }}
""")
    return [TRIOPROXY, "--config", file, "serve"]
