"""Visitors who verify what they are shown as a browser would, so many of them a second, and what they saw."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import TypeVar

import attrs
import trio
from cryptography import x509

from tests.certs.serving import NAME
from tests.life.served import PATIENCE, Served
from tests.proxy.stage import LOOPBACK, Caller

T = TypeVar("T")

REQUEST = b"GET / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % NAME.encode()


def trusting(root_pem: bytes) -> ssl.SSLContext:
    """What a client goes by that trusts this root and nobody else: names and dates are checked too."""
    return ssl.create_default_context(cadata=root_pem.decode())


@attrs.frozen
class Visit:
    """One that went well.

    Attributes:
        begun: When the connection was begun; seconds since the epoch, to be compared with other processes' moments.
        shown: When the certificate had come.
        serial: Its serial number.
        not_before: Its validity, in the same seconds.
        not_after: The same.
    """

    begun: float
    shown: float
    serial: int
    not_before: float
    not_after: float


@attrs.define
class Visits:
    """What came of all of them.

    Attributes:
        good: Those that got a certificate that verified, and their answer.
        failed: Why the others did not.
    """

    good: list[Visit] = attrs.field(factory=list)
    failed: list[str] = attrs.field(factory=list)

    @property
    def serials(self) -> list[int]:
        """Of the certificates that were shown, in the order of their first being seen."""
        return list(dict.fromkeys(visit.serial for visit in sorted(self.good, key=lambda visit: visit.shown)))

    def first(self, serial: int) -> Visit:
        """Who saw that certificate before everybody else."""
        return min((visit for visit in self.good if visit.serial == serial), key=lambda visit: visit.shown)

    def last(self, serial: int) -> Visit:
        """Who came last and still saw it."""
        return max((visit for visit in self.good if visit.serial == serial), key=lambda visit: visit.begun)

    def rate(self) -> float:
        """Connections begun in a second, from the first to the last."""
        moments = [visit.begun for visit in self.good]
        return (len(moments) - 1) / (max(moments) - min(moments))


@asynccontextmanager
async def visitors(service: Served, trust: ssl.SSLContext, rate: float, answer: bytes) -> AsyncIterator[Visits]:
    """Have `rate` of them come a second until the block ends, whatever became of those before.

    Each makes a connection of its own, without resuming a session, and asks for one page.

    Args:
        service: Whom they call.
        trust: Makes up their mind about certificates.
        rate: Connections a second.
        answer: What a good answer begins with.
    """
    visits, over = Visits(), trio.CancelScope()

    async def visit() -> None:
        try:
            with trio.fail_after(PATIENCE):
                visits.good.append(await _visit(service.https, trust, answer))
        except Exception as exc:
            visits.failed.append(repr(exc))

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            due = trio.current_time()
            with over:
                while True:
                    nursery.start_soon(visit)
                    due += 1 / rate
                    await trio.sleep_until(due)

        nursery.start_soon(send)
        yield visits
        over.cancel()


async def _visit(port: int, trust: ssl.SSLContext, answer: bytes) -> Visit:
    """One of them, on a bare socket: Trio's streams would take half of what a connection costs this process."""
    begun, got = time.time(), bytearray()
    with socket.socket() as tcp:
        tcp.setblocking(False)
        if tcp.connect_ex((LOOPBACK, port)) == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(tcp)
        with trust.wrap_socket(tcp, server_hostname=NAME, do_handshake_on_connect=False) as tls:
            await _when_ready(tls, tls.do_handshake)
            shown = time.time()
            serial, not_before, not_after = _said(tls.getpeercert(binary_form=True) or b"")
            await _when_ready(tls, partial(tls.send, REQUEST))
            while data := await _when_ready(tls, tls.recv):
                got += data
    if not got.startswith(answer):
        raise AssertionError(f"got {bytes(got)!r}")
    return Visit(begun, shown, serial, not_before, not_after)


async def _when_ready(tls: ssl.SSLSocket, act: Callable[[], T]) -> T:
    while True:
        try:
            return act()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(tls)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(tls)


@lru_cache(64)
def _said(der: bytes) -> tuple[int, float, float]:
    """What a certificate says: its serial number and its validity."""
    leaf = x509.load_der_x509_certificate(der)
    return leaf.serial_number, leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()


async def regular(service: Served, trust: ssl.SSLContext, pause: float, answered: list[bytes]) -> None:
    """One who stays: requests on one connection, until cancelled; each answer's body is added to `answered`."""
    tcp = await trio.open_tcp_stream(LOOPBACK, service.https)
    stream = trio.SSLStream(tcp, trust, server_hostname=NAME, https_compatible=True)
    try:
        caller = Caller(stream)
        while True:
            answered.append((await caller.ask("GET", "/", NAME)).body)
            await trio.sleep(pause)
    finally:
        await trio.aclose_forcefully(stream)
