"""Where a request came from: what backends are told about it, and whose word counts.

A client can send what it likes under the names of the forwarding fields, so they are dropped and written anew from
what the connection itself shows. Only a peer that the configuration names as a trusted proxy is believed. Its fields
are extended, and the client is looked for in them from right to left: each proxy adds on the right the address that it
saw, so the list is as good as its right-hand end, and the first address there that is not a trusted proxy's is the
client's. What stands to the left of that one the client may have made up.

There are two such lists, X-Forwarded-For and Forwarded (RFC 7239), and many proxies write only the first and pass on
whatever comes as the second. So the first counts where both are there, and the second goes on only if it says the same;
else it is written anew from the first. Where only the second is there, it counts.
"""

from __future__ import annotations

import re

import attrs

from trioproxy.access import Address, Network, parse, within
from trioproxy.http.fields import TOKEN
from trioproxy.http.messages import Headers, RequestHead

_FORWARDED_PAIR = re.compile(rb"[ \t]*(" + TOKEN + rb")=(" + TOKEN + rb'|"(?:[^"\\]|\\.)*")[ \t]*([;,]|\Z)', re.DOTALL)
"""A parameter of Forwarded (RFC 7239 section 4) and what ends it."""

_FIELDS = frozenset(
    b"forwarded x-forwarded-for x-forwarded-proto x-forwarded-port x-forwarded-host x-forwarded-prefix".split()
)
"""What is believed of a trusted proxy. Other fields that begin with X-Forwarded may be anybody's."""

_PORTS = {b"http": b"80", b"https": b"443"}

_UNKNOWN = b"unknown"  # RFC 7239 section 6.2


@attrs.frozen
class Arrival:
    """What is known about where a connection's requests come from.

    Attributes:
        client_ip: The peer's address, IPv6 without brackets: the client's, or a trusted proxy's.
        scheme: "https" or "http".
        port: The port that clients use from outside.
        trusted: If the peer is a trusted proxy, the networks of all trusted proxies; else empty.
        fields: The forwarding fields that are the same for all its requests.
        forwarded: The beginning of its Forwarded (RFC 7239), to which the host is added.
    """

    client_ip: str
    scheme: str
    port: int
    trusted: tuple[Network, ...] = ()
    fields: Headers = attrs.field(init=False, repr=False, eq=False)
    forwarded: bytes = attrs.field(init=False, repr=False, eq=False)

    @fields.default
    def _make_fields(self) -> Headers:
        address = self.client_ip.encode()
        return [
            (b"x-forwarded-for", address),
            (b"x-forwarded-proto", self.scheme.encode()),
            (b"x-forwarded-port", b"%d" % self.port),
            (b"x-real-ip", address),
        ]

    @forwarded.default
    def _make_forwarded(self) -> bytes:
        # RFC 7239 section 6: an IPv6 address stands in brackets, and brackets want quotes.
        node = f'"[{self.client_ip}]"' if ":" in self.client_ip else self.client_ip
        return f"for={node};proto={self.scheme}".encode()


def client_of(head: RequestHead, arrival: Arrival) -> str:
    """The address of the client that sent a request, through trusted proxies or not."""
    return _trace(_Received(head.headers), arrival)[0] if arrival.trusted else arrival.client_ip


def extended(head: RequestHead, arrival: Arrival, prefix: bytes | None) -> Headers:
    """The forwarding fields of a request that came by a trusted proxy.

    Args:
        head: The request as it came.
        arrival: Where it came from.
        prefix: What was taken off the path by us; None if nothing was.
    """
    received = _Received(head.headers)
    client, said = _trace(received, arrival)
    scheme = arrival.scheme.encode()
    proto = received.get(b"x-forwarded-proto") or said.get(b"proto") or scheme
    port = b"%d" % arrival.port if proto == scheme else _PORTS.get(proto.lower(), b"")
    ours = arrival.forwarded + (b';host="%b"' % head.authority if head.authority else b"")
    fields = [
        (b"x-forwarded-for", b", ".join([*received.nodes, arrival.client_ip.encode()])),
        (b"x-forwarded-proto", proto),
        (b"x-forwarded-port", received.get(b"x-forwarded-port") or port),
        (b"x-real-ip", client.encode()),
        (b"x-forwarded-host", received.get(b"x-forwarded-host") or said.get(b"host") or head.authority),
        (b"forwarded", b", ".join([*received.elements, ours])),
        (b"x-forwarded-prefix", received.get(b"x-forwarded-prefix").rstrip(b"/") + (prefix or b"")),
    ]
    return [field for field in fields if field[1]]


class _Received:
    """The forwarding fields that a trusted proxy sent.

    Attributes:
        nodes: Whom the request has passed, the client first; as written, and not always addresses.
        elements: The same as elements of Forwarded.
        said: What each of these says beside.
    """

    def __init__(self, headers: Headers) -> None:
        self._fields: dict[bytes, bytes] = {}
        for name, value in headers:
            if value and name in _FIELDS:
                self._fields[name] = self._fields[name] + b", " + value if name in self._fields else value
        listed = [node for part in self.get(b"x-forwarded-for").split(b",") if (node := part.strip(b" \t"))]
        self.elements = _elements(self.get(b"forwarded"))
        self.said = [_pairs(element) for element in self.elements]
        told = [_bare(pairs.get(b"for", _UNKNOWN)) for pairs in self.said]
        self.nodes = listed or told
        if told != [_bare(node) for node in self.nodes]:
            self.elements = [b"for=" + _node(node) for node in self.nodes]
            self.said = [{}] * len(self.nodes)

    def get(self, name: bytes) -> bytes:
        """The value of a field, of several joined; b"" when there is none."""
        return self._fields.get(name, b"")


def _trace(received: _Received, arrival: Arrival) -> tuple[str, dict[bytes, bytes]]:
    """The client's address, and what was said in Forwarded by the proxy that saw it."""
    client: str = arrival.client_ip
    said: dict[bytes, bytes] = {}
    for node, pairs in zip(reversed(received.nodes), reversed(received.said), strict=True):
        address = _address(node)
        if address is None:
            break  # nobody can say who that is: the one that told of it is the last that is known
        client, said = str(address), pairs
        if not within(address, arrival.trusted):
            break
    return client, said


def _address(node: bytes) -> Address | None:
    """The address that an entry of X-Forwarded-For or a node of RFC 7239 section 6 names; None when it names none."""
    text = node.decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return parse(text)
    except ValueError:
        return None


def _bare(node: bytes) -> bytes:
    """A node without port and brackets, as X-Forwarded-For has it."""
    address = _address(node)
    return str(address).encode() if address is not None else node


def _node(node: bytes) -> bytes:
    """An entry of X-Forwarded-For as a node of Forwarded."""
    bare = _bare(node)
    if b":" in bare:
        return b'"[%b]"' % bare if _address(bare) is not None else _UNKNOWN
    return bare if re.fullmatch(TOKEN, bare) else _UNKNOWN


def _elements(value: bytes) -> list[bytes]:
    """The elements of Forwarded, as written; none at all when it breaks its grammar."""
    elements: list[bytes] = []
    start = position = 0
    while position < len(value):
        pair = _FORWARDED_PAIR.match(value, position)
        if pair is None:
            return []
        position = pair.end()
        if pair[3] != b";":
            elements.append(value[start : pair.end(2)].strip(b" \t"))
            start = position
    return elements if start == position else []


def _pairs(element: bytes) -> dict[bytes, bytes]:
    """The parameters of an element, names in lower case, values without quotes."""
    return {pair[1].lower(): pair[2].strip(b'"') for pair in _FORWARDED_PAIR.finditer(element)}
