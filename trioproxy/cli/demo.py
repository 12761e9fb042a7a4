"""`trioproxy demo`: the scene on loopback, with small stand-ins for the backends, in one process."""

from __future__ import annotations

import ssl
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import click
import trio

from trioproxy.certs.contexts import server_context
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.store import Store
from trioproxy.cli.common import load_config
from trioproxy.config.model import Config, HostPort, Limits, Log, Route, Target
from trioproxy.errors import ListenError, RequestError
from trioproxy.http.h1 import RequestReader, encode_response_head
from trioproxy.http.messages import End, RequestHead
from trioproxy.logs import configure
from trioproxy.server import Server


@click.command("demo")
@click.pass_context
def command(context: click.Context) -> None:
    """Serve the configuration with stand-in backends on this machine, and show what to try. Ctrl-C stops it."""
    config = load_config(context)
    configure("warning")
    with tempfile.TemporaryDirectory(prefix="trioproxy-demo-") as folder:
        # The demo leaves nothing behind, so it keeps its keys elsewhere than a real server would, and no log.
        control = Path(folder, "control.sock")
        config = attrs.evolve(config, storage=Path(folder), control_socket=control, log=Log(access=""))
        try:
            trio.run(_demo, config)
        except* ListenError as group:
            sys.exit("\n".join(f"trioproxy: {exc}" for exc in group.exceptions))


async def _demo(config: Config) -> None:
    async with trio.open_nursery() as nursery:
        for name, address, tls in _backends(config):
            await nursery.start(_stand_in, name, address, tls)
        server = Server(config, lambda: config)
        await nursery.start(_until_stopped, server, nursery.cancel_scope)
        for name, route, to in _targets(config):
            if not _can_stand_in(route, to):
                with_header = f" with PROXY {route.proxy_protocol}" if route.proxy_protocol else ""
                click.echo(f"{name}: there is no stand-in for {to}{with_header}, so that one itself is called.")
        click.echo(_what_to_try(config))


async def _until_stopped(  # noqa: ASYNC128 - the server tells when it has started
    server: Server, all_of_it: trio.CancelScope, task_status: trio.TaskStatus[object]
) -> None:
    await server.run(task_status)
    all_of_it.cancel()


def _backends(config: Config) -> Iterator[tuple[str, HostPort, ssl.SSLContext | None]]:
    """Every backend that there is a stand-in for: what it calls itself, where, and its TLS."""
    for entry in config.passthrough.values():
        # Its own authority, which trioproxy knows nothing of, as a PBX that looks after its certificate itself has.
        own_ca = InternalCA(Store(config.storage / f"backend-{entry.to[0].port}"))
        yield entry.name, entry.to[0], server_context(own_ca.issue(entry.name))
        yield f"{entry.name} (port 80)", entry.http_to, None
    named: dict[HostPort, str] = {}
    for name, route, to in _targets(config):
        if _can_stand_in(route, to):
            named.setdefault(HostPort(to.host, to.port), name)
    for address, name in named.items():
        yield name, address, None


def _targets(config: Config) -> Iterator[tuple[str, Route, Target]]:
    for site in config.sites.values():
        if site.alias_of:
            continue
        for route in site.routes:
            for to in route.to:
                yield f"{site.name}{route.prefix}", route, to


def _can_stand_in(route: Route, to: Target) -> bool:
    """The stand-ins of sites speak HTTP/1.1 over TCP, and nothing before it."""
    return to.scheme == "http" and not route.proxy_protocol


async def _stand_in(
    name: str,
    address: HostPort,
    tls: ssl.SSLContext | None,
    task_status: trio.TaskStatus[None],
) -> None:
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as exc:
        raise ListenError(f"{address}, which the demo needs for its stand-in of {name}: {exc.strerror}") from exc
    task_status.started()
    await trio.serve_listeners(partial(_serve, name, tls), listeners)


async def _serve(name: str, tls: ssl.SSLContext | None, transport: trio.SocketStream) -> None:
    """Answer every request with what arrived here."""
    stream = transport if tls is None else trio.SSLStream(transport, tls, server_side=True, https_compatible=True)
    reader = RequestReader(Limits())
    request: RequestHead | None = None
    try:
        async with stream:
            while data := await stream.receive_some(65536):
                reader.feed(bytes(data))
                while (event := reader.next()) is not None:
                    if isinstance(event, RequestHead):
                        request = event
                    elif isinstance(event, End) and request is not None:
                        await stream.send_all(_echo(name, request, over_tls=tls is not None))
    except (trio.BrokenResourceError, RequestError):
        return  # the visitor has gone, or tried something odd on the stand-in itself


def _echo(name: str, request: RequestHead, *, over_tls: bool) -> bytes:
    lines = [
        f"This is the stand-in for {name}.",
        "TLS ended here: trioproxy passed it through untouched." if over_tls else "Plain HTTP reached this backend.",
        "",
        f"{request.method.decode()} {request.target.decode()}",
        f"host: {request.authority.decode()}",
        *(f"{field.decode()}: {value.decode('latin-1')}" for field, value in request.headers),
    ]
    body = "\n".join(lines).encode() + b"\n"
    fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    return encode_response_head(200, b"OK", fields) + (b"" if request.method == b"HEAD" else body)


def _what_to_try(config: Config) -> str:
    https = config.listen.https[0].port
    http = config.listen.http[0].port if config.listen.http else None
    passed, sites = ([name for name in names if "*" not in name] for names in (config.passthrough, config.sites))
    lines = ["", "trioproxy is running. Try, in another terminal:", ""]
    for name in passed:
        lines += [
            f"  curl -k https://{name}:{https}/",
            "      TLS goes through to the backend, with the backend's certificate",
        ]
        if http is not None:
            lines += [
                f"  curl http://{name}:{http}/.well-known/test",
                "      what the backend's own ACME client needs goes there too",
            ]
    for name in sites:
        lines += [f"  curl -k https://{name}:{https}/", "      TLS ends in trioproxy; the backend sees your address"]
        if http is not None:
            lines += [f"  curl -i http://{name}:{http}/", "      redirected to https"]
    lines += ["", "Or in a browser (it will warn: these certificates come from no public authority):", ""]
    lines += [f"  https://{name}:{https}/" for name in (*sites, *passed)]
    lines += ["", "Ctrl-C stops it."]
    return "\n".join(lines)
