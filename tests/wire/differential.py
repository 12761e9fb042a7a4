"""Our reading of ClientHellos against OpenSSL's: whatever it accepts with a name, we read with that name or refuse.

`any_hello` makes ClientHellos that are almost right, from a source of randomness that is Hypothesis's in the test and a
seeded one here. A long run:

    python -m tests.wire.differential [SECONDS [SEED]]
"""

from __future__ import annotations

import collections
import random
import ssl
import sys
import time

from tests.wire import hellos
from tests.wire.hellos import Extension, OpenSSLReader, Parts, record, server_name, vector
from trioproxy.errors import HelloError
from trioproxy.names import normalise
from trioproxy.wire.client_hello import ClientHello, ClientHelloReader

NAMES = [
    b"cloud.example.com",
    b"CLOUD.example.COM",
    b"cloud.example.com.",
    b"cloud.example.com..",
    b".example.com",
    b"a",
    b"xn--mnchen-3ya.example",
    b"_dmarc.example.com",
    b"*.example.com",
    b"cloud.example.com\0.evil.example",
    b"cloud.example.com\n",
    b" cloud.example.com",
    b"192.0.2.1",
    b"[2001:db8::1]",
    b"2001:db8::1",
    b"",
    b"\0",
    "münchen.example".encode(),
    "\N{KELVIN SIGN}.example".encode(),
    b"a" * 63 + b".example",
    b"a" * 64 + b".example",
    b".".join([b"a" * 49] * 5) + b".exa",
    b".".join([b"a" * 50] * 5),
    b"a." * 127 + b"a",
    b"a." * 128,
]

OTHERS: list[Extension] = [
    (0x0A0A, b""),
    (hellos.ENCRYPTED_CLIENT_HELLO, b"\0"),
    (5, b"\1\0\0\0\0"),
    (21, bytes(40)),
    (35, b""),
    (44, b""),
    (0xFFFE, b"\0" * 300),
    hellos.alpn(b"h2", b"http/1.1"),
    hellos.alpn(b""),
    hellos.alpn(),
    (hellos.ALPN, b"\0\5\2h2"),
]


def _settled(wire: bytes) -> Parts:
    """The parts of what OpenSSL made, with fixed bytes where it put random ones, so that runs can be repeated."""
    found = hellos.parts(wire)
    size = found.head[34]
    found.head = found.head[:2] + hellos.RANDOM + bytes([size]) + hellos.RANDOM[:size] + found.head[35 + size :]
    found.extensions = [
        (kind, content[:6] + hellos.RANDOM if kind == hellos.KEY_SHARE else content)
        for kind, content in found.extensions
    ]
    return found


BASES = [
    _settled(hellos.by_openssl()),
    _settled(hellos.by_openssl(None)),
    _settled(hellos.by_openssl("a.example", ("h2", "http/1.1"), ssl.TLSVersion.TLSv1_2)),
    _settled(hellos.by_openssl("a.example", (), ssl.TLSVersion.TLSv1)),
    hellos.parts(record(hellos.as_a_browser())),
]


def any_hello(rng: random.Random) -> bytes:
    """The first bytes of a connection: a ClientHello with none, one or a few things wrong with it."""
    base = rng.choice(BASES)
    extensions = list(base.extensions)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        _change_extensions(rng, extensions)
    message = bytearray(Parts(base.head, extensions).message())
    if rng.random() < 0.1:
        message = bytearray(hellos.handshake(base.head))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        _change_bytes(rng, message)
    if rng.random() < 0.8:
        message[1:4] = (len(message) - 4).to_bytes(3, "big")
    wire = bytearray(_in_records(rng, bytes(message)))
    if rng.random() < 0.1:
        _change_bytes(rng, wire)
    return bytes(wire)


def _change_extensions(rng: random.Random, extensions: list[Extension]) -> None:
    at = rng.randrange(len(extensions) + 1)
    what = rng.randrange(7)
    if what == 0:
        extensions.insert(at, _any_server_name(rng))
    elif what == 1:
        extensions[:] = [one for one in extensions if one[0] != hellos.SERVER_NAME]
        extensions.insert(min(at, len(extensions)), _any_server_name(rng))
    elif what == 2:
        extensions.insert(at, rng.choice(OTHERS))
    elif what == 3 and extensions:
        extensions.insert(at, rng.choice(extensions))
    elif what == 4 and extensions:
        del extensions[at - 1]
    elif what == 5:
        rng.shuffle(extensions)
    elif what == 6 and extensions:
        kind, content = extensions[at - 1]
        changed = bytearray(content)
        _change_bytes(rng, changed)
        extensions[at - 1] = kind, bytes(changed)


def _any_server_name(rng: random.Random) -> Extension:
    names = [rng.choice(NAMES) for _ in range(rng.choice([1, 1, 1, 1, 2, 0]))]
    kind, content = server_name(*names, kind=rng.choice([0, 0, 0, 0, 1]))
    what = rng.randrange(12)
    if what == 0:
        content += b"\0"
    elif what == 1:
        content = content[:-1]
    elif what == 2:
        content = vector(content, 2)
    return kind, content


def _change_bytes(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    what = rng.randrange(5)
    if what == 0:
        data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5)))
    elif what == 1:
        del data[at : at + rng.randrange(1, 5)]
    elif at < len(data):
        data[at] = [rng.randrange(256), (data[at] + 1) % 256, (data[at] - 1) % 256][what - 2]


def _in_records(rng: random.Random, message: bytes) -> bytes:
    if rng.random() < 0.02:  # as SSLv2 did it
        return (0x8000 | len(message)).to_bytes(2, "big") + message
    wire = bytearray()
    largest = rng.choice([1, 7, 100, 600, 1 << 14, 1 << 14, 1 << 14, 1 << 15])
    at = 0
    while at < len(message):
        if rng.random() < 0.01:
            wire += record(rng.choice([b"", b"", b"\1", b"\2\50"]), rng.choice([20, 21, 22, 22, 23]))
        size = rng.randrange(largest) + 1 if rng.random() < 0.8 else len(message)
        version = b"\3\1" if rng.random() < 0.98 else bytes([rng.choice([2, 3, 3, 3]), rng.randrange(256)])
        wire += record(message[at : at + min(size, 0xFFFF)], version=version)
        at += size
    if rng.random() < 0.1:
        wire += rng.choice([b"\0", record(b"\1", 20), record(b"early", 23), bytes(wire)])
    return bytes(wire)


def outcome(wire: bytes, *cuts: int) -> ClientHello | tuple[type[HelloError], int | None] | None:
    """What `ClientHelloReader` says when `wire` comes cut at these places."""
    reader = ClientHelloReader()
    places = sorted(cut % (len(wire) + 1) for cut in cuts)
    try:
        for start, end in zip([0, *places], [*places, len(wire)], strict=True):
            hello = reader.feed(wire[start:end])
            if hello is not None:
                return hello
    except HelloError as exc:
        return type(exc), exc.alert
    return None


def compare(wire: bytes, openssl: OpenSSLReader) -> str:
    """Hold our reading against OpenSSL's.

    Returns:
        What both did, in a word, for statistics.

    Raises:
        AssertionError: OpenSSL accepts it, and we take it for something else or wait for more.
    """
    ours = outcome(wire)
    theirs = openssl.read(wire)
    if isinstance(ours, tuple):
        return "only OpenSSL accepts" if theirs.accepted else "both refuse"
    if not theirs.accepted:
        return "both wait, or OpenSSL refuses later" if ours is None else "only we accept"
    assert ours is not None, f"OpenSSL has all it needs and we wait: {wire.hex()}"
    name = None if theirs.name is None else normalise(theirs.name)
    assert ours.server_name == name, f"{ours.server_name!r} is not {name!r}: {wire.hex()}"
    return "both accept"


def main() -> None:
    """Compare for some seconds, and say how many ClientHellos that were."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"{seconds:g} s with seed {seed}, {ssl.OPENSSL_VERSION}")
    rng = random.Random(seed)
    openssl = OpenSSLReader()
    counts: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        wire = any_hello(rng)
        counts[compare(wire, openssl)] += 1
        cuts = [rng.randrange(len(wire) + 1) for _ in range(rng.randrange(4))]
        assert outcome(wire, *cuts) == outcome(wire), f"cut at {cuts} it is another: {wire.hex()}"
    for what, count in counts.most_common():
        print(f"{count:10,}  {what}")
    print(f"{counts.total():10,}  in all")


if __name__ == "__main__":
    main()
