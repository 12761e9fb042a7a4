"""Sites of a real `trioproxy serve` on loopback, for clients and backends that need no network of their own."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import trio

from tests.e2e.network import Host
from tests.e2e.proxy import Trioproxy
from tests.e2e.software import Software, eventually
from tests.proxy.stage import LOOPBACK


def loopback() -> Host:
    """This machine, with free ports in place of those it is asked for."""
    return Host("loopback", (LOOPBACK,), LOOPBACK, (), isolated=False)


@attrs.frozen
class Sites:
    """A running trioproxy.

    Attributes:
        root: The certificate of its internal authority.
        signer: What signs for that, with its key.
    """

    proxy: Trioproxy
    software: Software

    @property
    def host(self) -> Host:
        return self.proxy.host

    @property
    def port(self) -> int:
        return self.proxy.host.port(443)

    @property
    def at(self) -> str:
        """Address and port of its https listener."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def root(self) -> Path:
        return self.proxy.storage / "internal" / "ca.crt"

    @property
    def signer(self) -> Path:
        return self.root.with_name("intermediate.pem")

    def url(self, name: str, path: str) -> str:
        return f"https://{name}:{self.port}{path}"

    def curl(self, name: str, path: str, *options: str) -> list[str]:
        """The curl command that asks for it by HTTP/2, unless `options` say otherwise."""
        known = f"{name}:{self.port}:{LOOPBACK}"
        common = ("curl", "-sS", "-N", "--http2", "--max-time", "60", "--cacert", str(self.root), "--resolve", known)
        return [*common, *options, self.url(name, path)]

    def trust(self) -> ssl.SSLContext:
        """What a Python client goes by."""
        return ssl.create_default_context(cafile=str(self.root))


def routed(**sites: str) -> str:
    """Sites by the first label of their names in `.test`, each with one target for all paths, by the internal CA."""
    return "".join(f'[sites."{name}.test"]\n"/" = {to}\ntls = "internal"\n' for name, to in sites.items())


def written(proxy: Trioproxy, tables: str, listen: str = "") -> None:
    """Write the configuration: `tables` beside where it listens and keeps its files."""
    https, http = proxy.host.at(443), proxy.host.at(80)
    proxy.config.write_text(
        f'[listen]\nhttps = ["{https}"]\nhttp = ["{http}"]\npublic_https_port = {proxy.host.port(443)}\n{listen}\n'
        f'[storage]\npath = "{proxy.storage}"\n[timeouts]\ndrain = "1s"\n{tables}'
    )


@contextlib.contextmanager
def sites(folder: Path, tables: str, listen: str = "") -> Iterator[Sites]:
    """Serve the `tables` of a configuration, from `ready` until the block ends."""
    proxy = Trioproxy(loopback(), folder, "", Path())
    written(proxy, tables, listen)
    with proxy.serving() as software:
        running = Sites(proxy, software)
        if '"internal"' in tables:
            eventually(running.signer.exists, "the internal authority is there")
        yield running


@contextlib.asynccontextmanager
async def sites_beside(folder: Path, tables: str, listen: str = "") -> AsyncIterator[Sites]:
    """The same for tests whose backends run in this process: stopping leaves its loop alone.

    Starting does not, for what `Software` starts ends with the thread that started it.
    """
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(sites(folder, tables, listen))
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True):  # as long as `Software.stop` has patience
                await trio.to_thread.run_sync(stack.close)
