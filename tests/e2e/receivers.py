"""Backends that tell whom they believe to be their client: nginx and HAProxy as anybody runs them, behind a proxy.

Each answers requests with the client's address and port, and writes them into its log, for whoever reads logs (a
fail2ban, say) sees no answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import trustme

from tests.e2e.network import Host
from tests.e2e.software import Software, listening, running

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{ }}
http {{
    log_format told "client=$remote_addr port=$remote_port name=$ssl_server_name";
    access_log /dev/stdout told;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
{listen}
{trust}
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        location / {{ return 200 "$remote_addr\\n"; }}
    }}
}}
"""

BELIEVING = """
        set_real_ip_from 10.1.2.0/24;
        set_real_ip_from fd00:1::/64;
        set_real_ip_from 127.0.0.0/8;
        real_ip_header proxy_protocol;
"""

HAPROXY = """
global
    log stdout format raw local0
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend tls
{bind}
    http-request capture fc_pp_authority len 100
    http-request capture fc_pp_unique_id,hex len 260
    log global
    log-format "client=%ci port=%cp name=%[capture.req.hdr(0)] id=%[capture.req.hdr(1)]"
    http-request return status 200 content-type text/plain lf-string "%ci\\n"
"""


def certificate(issuer: trustme.CA, folder: Path, *names: str) -> Path:
    """A PEM file with key and chain for these names."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "backend.pem"
    issuer.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(file))
    return file


def _addresses(host: Host, port: int, *, ipv6: bool = True) -> list[str]:
    """What to listen on: all addresses of a host in its namespace, the one it has on loopback."""
    number = host.port(port)
    return [f"{host.listen}:{number}", *([f"[::]:{number}"] if host.isolated and ipv6 else [])]


@contextlib.contextmanager
def nginx(
    host: Host, folder: Path, pem: Path, port: int = 443, *, proxy_protocol: bool = False, ipv6: bool = True
) -> Iterator[Software]:
    """nginx with TLS on `port`; with `proxy_protocol` it wants a PROXY header and goes by it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = "ssl proxy_protocol" if proxy_protocol else "ssl"
    listen = "\n".join(f"        listen {a} {options};" for a in _addresses(host, port, ipv6=ipv6))
    config = folder / "nginx.conf"
    trust = BELIEVING if proxy_protocol else ""
    config.write_text(NGINX.format(folder=folder, listen=listen, trust=trust, certificate=pem))
    with running(host, "nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)) as software:
        listening(host, port)
        yield software


@contextlib.contextmanager
def haproxy(host: Host, folder: Path, pem: Path, port: int = 443) -> Iterator[Software]:
    """HAProxy with TLS on `port`, where it wants a PROXY header."""
    folder.mkdir(parents=True, exist_ok=True)
    bind = "\n".join(f"    bind {a} accept-proxy ssl crt {pem}" for a in _addresses(host, port))
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(bind=bind))
    with running(host, "haproxy", "-db", "-f", str(config)) as software:
        listening(host, port)
        yield software


FRONT = """
global
    log stdout format raw local0
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
"""


@contextlib.contextmanager
def front(host: Host, folder: Path, to: str, *ways: tuple[int, str]) -> Iterator[None]:
    """HAProxy as a load balancer before a proxy: each way is a port, and options of the server to which it leads."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"listen at{port}\n    bind 0.0.0.0:{port}\n    bind [::]:{port}\n    server only {to} {options}\n"
        for port, options in ways
    ]
    config = folder / "haproxy.cfg"
    config.write_text(FRONT + "".join(lines))
    with running(host, "haproxy", "-db", "-f", str(config)):
        listening(host, *(port for port, _ in ways))
        yield
