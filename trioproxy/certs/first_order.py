"""What is worth a warning before a CA is asked for a name for the first time.

A CA counts validations that fail, and allows few. Most fail for one of three reasons that can be seen from here: a AAAA
record that leads to another machine (CAs try IPv6 first), an A record that does, or a port 80 that does not answer
tokens. What cannot be told from here is not guessed at: behind a router that translates addresses the A record is the
router's, and to call our own public address would try the router's hairpin NAT and not what the CA sees.

Nothing here keeps an order from being made. It has `PATIENCE` seconds in all, beside the order.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

from trioproxy.access import Network
from trioproxy.certs.preflight import unusable_storage
from trioproxy.certs.served import Listening, must_announce, reachable
from trioproxy.challenges import HTTP01_PREFIX, ChallengeBoard
from trioproxy.config.model import Config
from trioproxy.errors import StreamError, TrioproxyError, UpstreamError
from trioproxy.http.h1 import ResponseReader, encode_request_head
from trioproxy.http.messages import End, ResponseHead
from trioproxy.net.dial import Dialler
from trioproxy.net.lan import Interface, public_addresses
from trioproxy.net.resolve import Resolver
from trioproxy.net.sock import Reaper, Stream

log = logging.getLogger("trioproxy.certs")

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds for all of it: a name server that is gone is silent for longer."""

MAX_ANSWER = 64 * 1024
"""Bytes of what our own port 80 answers to a question for a token; the right answer has forty."""


@attrs.frozen
class FirstOrder:
    """Looks at what a first order will meet.

    Args:
        board: Where a token of our own is hung.
        listening: Where that is then asked for.
        resolver: Knows what names lead to.
        addresses: Tells this machine's public addresses.
    """

    board: ChallengeBoard
    listening: Listening
    resolver: Resolver = attrs.field(factory=Resolver)
    addresses: Callable[[], tuple[Interface, ...]] = public_addresses

    async def warnings(self, config: Config, name: str) -> list[str]:
        """What to tell about `name`, in sentences; what takes too long is left out."""
        found: list[str] = []
        if problem := unusable_storage(config.storage):
            found.append(f"{name}: a certificate could not be kept in {config.storage}: {problem}")

        async def look_up() -> None:
            found.extend(await records(name, self.resolver, self.addresses()))

        async def ask() -> None:
            found.extend(await self._token(config, name))

        with trio.move_on_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look_up)
                nursery.start_soon(ask)
        return found

    async def beside(
        self, config: Config, name: str, report: Callable[[str], None], order: Callable[[], Awaitable[T]]
    ) -> T:
        """Carry out `order`, the first one of `name`, and meanwhile tell what it may meet: in the log, and `report`."""

        async def warn() -> None:
            for warning in await self.warnings(config, name):
                log.warning("%s", warning)
                report(warning)

        failure: TrioproxyError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warn)
            try:
                result = await order()
            except TrioproxyError as exc:
                failure = exc  # raised outside, for a nursery would wrap it
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    async def _token(self, config: Config, name: str) -> list[str]:
        """Whether our own port 80 answers a token for `name`."""
        address = reachable(self.listening.http())
        if address is None:
            return [f"{name}: nothing listens for plain HTTP here (listen.http), where a CA asks for its tokens"]
        if must_announce(config, address):
            return []
        token, answer = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        trouble = f"{name}: our own listener at {address} does not answer a CA's question for a token"
        with self.board.present(name, token, answer):
            await self.board.seen()
            try:
                stream = await Dialler(Reaper()).dial(address)
                try:
                    head, body = await _get(stream, name, HTTP01_PREFIX + token)
                finally:
                    stream.close()
            except (UpstreamError, StreamError) as exc:
                return [f"{trouble}: {exc}"]
        if head.status != 200 or body != answer.encode():
            return [f"{trouble}, but with status {head.status}: is that trioproxy?"]
        return []


async def records(name: str, resolver: Resolver, own: tuple[Interface, ...]) -> list[str]:
    """What the addresses of `name` say, beside those that this machine has."""
    answer = await resolver.resolve(name)
    if answer.problem:
        return [
            f"{name} has no address that this machine could find out ({answer.problem}): add its A record, or wait "
            "until it has spread"
        ]
    leads_to = [ipaddress.ip_address(address.host) for address in answer.addresses]
    ours = {interface.ip for interface in own}
    # Who answers for a name inside a home may well give an inner address; a CA asks somebody else.
    strange = [address for address in leads_to if address.is_global and address not in ours]
    said = [_about_ipv6(name, str(address), own) for address in strange if address.version == 6]
    if any(interface.version == 4 for interface in own):
        said += [
            f"{name}: its A record leads to {address}, and this machine has another public address: change the record"
            for address in strange
            if address.version == 4
        ]
    return said


def _about_ipv6(name: str, address: str, own: tuple[Interface, ...]) -> str:
    remedy = "CAs try IPv6 first, so give it this machine's address, or remove it"
    networks: set[Network] = {interface.network for interface in own if interface.version == 6}
    if not networks:
        return f"{name}: its AAAA record leads to {address}, but this machine has no public IPv6 address: {remedy}"
    near = any(ipaddress.ip_address(address) in network for network in networks)
    whose = "another machine in this network, perhaps the router" if near else "another machine"
    return f"{name}: its AAAA record leads to {address}, which is {whose}: {remedy}"


async def _get(stream: Stream, host: str, path: str) -> tuple[ResponseHead, bytes]:
    reader = ResponseReader()
    reader.expect(b"GET")
    headers = [(b"host", host.encode()), (b"connection", b"close")]
    await stream.send_all(encode_request_head(b"GET", path.encode(), headers))
    while not isinstance(head := await _next(stream, reader), ResponseHead):
        pass
    body = b""
    while isinstance(piece := await _next(stream, reader), bytes) and len(body) < MAX_ANSWER:
        body += piece
    return head, body


async def _next(stream: Stream, reader: ResponseReader) -> ResponseHead | bytes | End:
    while (event := reader.next()) is None:
        data = await stream.receive_some()
        if data:
            reader.feed(data)
        else:
            reader.feed_eof()
    return event
