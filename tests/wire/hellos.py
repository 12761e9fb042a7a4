"""ClientHellos to test with: made by OpenSSL, made by hand, cut into records; and OpenSSL's own reading of one."""

from __future__ import annotations

import functools
import ssl
import sys
import warnings

import attrs

SERVER_NAME = 0
SUPPORTED_GROUPS = 10
ALPN = 16
SUPPORTED_VERSIONS = 43
KEY_SHARE = 51
ENCRYPTED_CLIENT_HELLO = 0xFE0D

RANDOM = bytes(range(32))
SUITES = bytes.fromhex("130113021303c02bc02f")

Extension = tuple[int, bytes]


def vector(content: bytes, width: int) -> bytes:
    """`content` behind its length in `width` bytes."""
    return len(content).to_bytes(width, "big") + content


def server_name(*names: bytes, kind: int = 0) -> Extension:
    """A server_name extension that lists `names`."""
    return SERVER_NAME, vector(b"".join(bytes([kind]) + vector(name, 2) for name in names), 2)


def alpn(*protocols: bytes) -> Extension:
    return ALPN, vector(b"".join(vector(protocol, 1) for protocol in protocols), 2)


def message(
    *extensions: Extension,
    version: bytes = b"\x03\x03",
    session_id: bytes = b"",
    suites: bytes = SUITES,
    compressions: bytes = b"\0",
) -> bytes:
    """A ClientHello as handshake message, with an extension block that may be empty."""
    block = b"".join(kind.to_bytes(2, "big") + vector(content, 2) for kind, content in extensions)
    return without_extensions(version, session_id, suites, compressions, vector(block, 2))


def without_extensions(
    version: bytes = b"\x03\x01",
    session_id: bytes = b"",
    suites: bytes = SUITES,
    compressions: bytes = b"\0",
    rest: bytes = b"",
) -> bytes:
    """A ClientHello as handshake message that ends after the compression methods, as in TLS 1.0, or with `rest`."""
    return handshake(
        version + RANDOM + vector(session_id, 1) + vector(suites, 2) + vector(compressions, 1) + rest,
    )


def handshake(body: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(body, 3)


def record(content: bytes, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    return bytes([kind]) + version + vector(content, 2)


def records(content: bytes, *sizes: int) -> bytes:
    """`content` in records of these sizes; what is left goes in records as large as may be."""
    cut = []
    at = 0
    for size in (*sizes, *[1 << 14] * (len(content) // (1 << 14) + 1)):
        if at < len(content):
            cut.append(record(content[at : at + size]))
            at += size
    return b"".join(cut)


@functools.cache
def by_openssl(
    name: str | None = "cloud.example.com",
    protocols: tuple[str, ...] = (),
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> bytes:
    """The records in which an OpenSSL client that speaks nothing above `version` begins."""
    context = _any_version(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = version
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake that needs no server")


def _any_version(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@attrs.frozen
class Reading:
    """What an OpenSSL server makes of a ClientHello.

    Attributes:
        accepted: Whether it read it to the end, and asked for a certificate.
        name: The server name it asked with, None for none; U+FFFD if the name was not ASCII.
    """

    accepted: bool
    name: str | None = None


class OpenSSLReader:
    """An OpenSSL server that reads ClientHellos, of every version it knows, and does not answer them."""

    def __init__(self) -> None:
        self._names: list[str | None] = []
        self._context = _any_version(ssl.PROTOCOL_TLS_SERVER)
        self._context.sni_callback = self._asked

    def _asked(self, _: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        self._names.append(name)
        return ssl.AlertDescription.ALERT_DESCRIPTION_HANDSHAKE_FAILURE.value  # enough of it

    def read(self, wire: bytes) -> Reading:
        self._names.clear()
        incoming = ssl.MemoryBIO()
        incoming.write(wire)
        server = self._context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
        # A name that is not ASCII never reaches the callback: `ssl` complains to this hook instead.
        complaints: list[object] = []
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: complaints.append(unraisable.exc_type)
        try:
            server.do_handshake()
        except ssl.SSLError:
            pass
        finally:
            sys.unraisablehook = hook
        if complaints:
            return Reading(accepted=True, name="\N{REPLACEMENT CHARACTER}")
        return Reading(accepted=True, name=self._names[0]) if self._names else Reading(accepted=False)


def _grease(low: int) -> int:
    return low << 12 | 0xA0A | low << 4


def as_a_browser(name: bytes = b"cloud.example.com") -> bytes:
    """What a browser of today sends: GREASE everywhere, a post-quantum key share, an inner ClientHello. 1.8 KB."""
    share = bytes(range(256)) * 5
    shares = [(_grease(2), b"\0"), (0x11EC, share[:1216]), (0x001D, share[:32])]
    return message(
        (_grease(1), b""),
        server_name(name),
        (SUPPORTED_GROUPS, vector(b"".join(group.to_bytes(2, "big") for group, _ in shares), 2)),
        alpn(bytes.fromhex("1a1a"), b"h2", b"http/1.1"),
        (ENCRYPTED_CLIENT_HELLO, bytes([0, 0, 1, 0, 1, 7]) + vector(share[:32], 2) + vector(share[:144], 2)),
        (SUPPORTED_VERSIONS, vector(_grease(3).to_bytes(2, "big") + b"\x03\x04\x03\x03", 1)),
        (13, vector(bytes.fromhex("040308040401050308050501"), 2)),
        (KEY_SHARE, vector(b"".join(group.to_bytes(2, "big") + vector(key, 2) for group, key in shares), 2)),
        (_grease(4), b"\0"),
        session_id=RANDOM,
        suites=_grease(5).to_bytes(2, "big") + SUITES,
    )


@attrs.define
class Parts:
    """A ClientHello taken apart.

    Attributes:
        head: Its body up to the extensions.
        extensions: Its extensions.
    """

    head: bytes
    extensions: list[Extension]

    def message(self) -> bytes:
        block = b"".join(kind.to_bytes(2, "big") + vector(content, 2) for kind, content in self.extensions)
        return handshake(self.head + vector(block, 2))


def parts(wire: bytes) -> Parts:
    """The parts of a ClientHello in one record."""
    body = wire[9:]
    at = 34
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    head, block = body[:at], body[at + 2 :]
    extensions: list[Extension] = []
    while block:
        end = 4 + int.from_bytes(block[2:4], "big")
        extensions.append((int.from_bytes(block[:2], "big"), block[4:end]))
        block = block[end:]
    return Parts(head, extensions)
