"""The ClientHello: read as it comes, and asked for where its connection wants to go.

Between the socket and a server name lie three grammars. A TLS *record* (RFC 8446 section 5.1) has a header of five
bytes and up to 16 KiB of content; the contents of successive handshake records are one stream of bytes, in which a
*handshake message* (section 4) has a header of four bytes; and that message, the ClientHello (section 4.1.2), holds
vectors in vectors. Records and messages know nothing of each other's boundaries, and TCP nothing of either, so
`ClientHelloReader` takes any piece of any size, keeps what it has understood, and looks at no byte twice. The vectors
are read once, when the message is whole.

What comes out decides which server a client talks to, and that server (OpenSSL in this process, anything behind a
passthrough) will read the same bytes again. Were the two readings different, a client could choose by one and be served
by the other. So everything that might be read in two ways is refused, although some servers accept it:

- an empty record, which OpenSSL skips (RFC 8446 section 5.1 forbids empty handshake records);
- an SSLv2 ClientHello, which OpenSSL still reads, and which cannot hold a name;
- bytes after the ClientHello in its last record: OpenSSL refuses them in TLS 1.3 and cannot finish a TLS 1.2 handshake
  that has them, since nothing that a client may say next can be known yet. What follows in a record of its own, such
  as early data, is not ours to judge;
- an extension that comes twice, whichever: OpenSSL refuses that only of extensions which it knows;
- a server_name with anything but one host_name in it (RFC 6066 section 3).

Only the first ClientHello counts. A client that is asked for another one (HelloRetryRequest) must repeat the name, and
if it does not, it speaks to the server that the first one chose.
"""

from __future__ import annotations

import functools
import struct
from typing import NoReturn

import attrs

from trioproxy.errors import BadServerName, MalformedHello, NotTLS
from trioproxy.names import normalise
from trioproxy.wire.alerts import Alert

MAX_HELLO = 64 * 1024
"""Bytes on the wire that a ClientHello may take, record headers counted. Post-quantum key shares bring one to some
2 KB; in records of one byte each, which is legal, that is 12."""

MAX_RECORD = 1 << 14  # RFC 8446 section 5.1
_RECORD_HEADER = 5
_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
_MESSAGE_HEADER = 4
_VERSION_AND_RANDOM = 2 + 32
_SESSION_ID = _MESSAGE_HEADER + _VERSION_AND_RANDOM
_LEAST = _SESSION_ID + 1 + (2 + 2) + (1 + 1)  # no session id, one suite, one compression
_MAX_SESSION_ID = 32

_SERVER_NAME = 0  # RFC 6066 section 3
_ALPN = 16  # RFC 7301
_SUPPORTED_VERSIONS = 43  # RFC 8446 section 4.2.1
_ENCRYPTED_CLIENT_HELLO = 0xFE0D  # RFC 9849
_LENGTHS = struct.Struct("!HBBH")  # the length of a record, the type of the message in it, and the length of that
_TO_BE_READ = frozenset((_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS))
_EXTENSION = struct.Struct("!HH")  # its type and its length
_ONE_NAME = struct.Struct("!HBH")  # the length of a list of names, the type of its first one, and the length of that
_VERSIONS = {b"\3\0": "SSLv3", b"\3\1": "TLSv1", b"\3\2": "TLSv1.1", b"\3\3": "TLSv1.2", b"\3\4": "TLSv1.3"}
_USUAL_PROTOCOLS = {b"\0\x0c\2h2\x08http/1.1": (b"h2", b"http/1.1"), b"\0\x09\x08http/1.1": (b"http/1.1",)}
_HOST_NAME = 0  # the only NameType there ever was
_TOO_LONG = "a length that reaches beyond what holds it"


@attrs.define  # and not frozen, which takes four times as long to make: each connection has one
class ClientHello:
    """What the proxy wants to know of a ClientHello. Nobody changes it.

    Attributes:
        server_name: The host name of the server_name extension, normalised; None when there is no such extension.
        alpn: The protocols that the client offers by ALPN, in its order; empty when it offers none.
        size: Bytes on the wire of the records that hold it.
        encrypted_client_hello: Whether it has an encrypted inner one (or pretends to, as browsers do). Then
            `server_name` is the outer, public name.
    """

    server_name: str | None
    alpn: tuple[bytes, ...]
    size: int
    encrypted_client_hello: bool
    _versions: bytes = attrs.field(default=b"", eq=False, repr=False)

    @property
    def versions(self) -> tuple[str, ...]:
        """The TLS versions that the client offers, in its order, without those that nobody knows (GREASE).

        One that says no more than the old field of the version (RFC 8446 section 4.1.2) offers that and older ones.
        """
        said = self._versions
        offered = (said[at : at + 2] for at in range(0, len(said), 2))
        return tuple(_VERSIONS[version] for version in offered if version in _VERSIONS)


class ClientHelloReader:
    """Reads one ClientHello from the first bytes of a connection. After a value or an error it is used up."""

    __slots__ = ("_header", "_left", "_message", "_taken", "_total")

    def __init__(self) -> None:
        self._header = bytearray()  # of the record that begins, until it is whole
        self._left = 0  # bytes that the present record still lacks
        self._message = bytearray()
        self._total = 0  # length of the whole message, once its header is there
        self._taken = 0

    @property
    def missing(self) -> int:
        """How many bytes must come, at least, before the ClientHello can be whole; 1 or more.

        It is exact for a ClientHello in one record, and too small only by the headers of records which are smaller
        than they could be.
        """
        lacking = (self._total or _LEAST) - len(self._message)
        beyond = max(0, lacking - self._left)  # must come in records whose header is not there yet
        return self._left + beyond + -(-beyond // MAX_RECORD) * _RECORD_HEADER - len(self._header)

    def feed(self, data: bytes | memoryview) -> ClientHello | None:
        """Take the next bytes. What lies behind the ClientHello is ignored.

        Returns:
            The ClientHello, or None when more bytes are needed.

        Raises:
            NotTLS: it does not begin like a TLS handshake.
            MalformedHello: it breaks the grammar, or is larger than `MAX_HELLO`.
            BadServerName: it has no usable host name where it should have one.
        """
        if not self._taken and (message := _whole_message(data)) is not None:
            return _parse(message, _RECORD_HEADER + len(message))
        view = memoryview(data)
        at = 0
        while at < len(view):
            if not self._left:
                at += self._take_header(view[at : at + _RECORD_HEADER - len(self._header)])
                continue
            content = view[at : at + self._left]
            at += len(content)
            self._taken += len(content)
            self._left -= len(content)
            self._message += content
            if self._message_is_whole():
                return _parse(bytes(self._message), self._taken)
        return None

    def _take_header(self, piece: memoryview) -> int:
        header = self._header
        header += piece
        self._taken += len(piece)
        first = not self._message
        if header[0] != _HANDSHAKE_RECORD:
            if first:
                raise NotTLS(f"the first byte is 0x{header[0]:02x}, which begins no TLS handshake")
            raise MalformedHello(f"a record of type {header[0]} inside the ClientHello", Alert.UNEXPECTED_MESSAGE)
        if len(header) > 1 and header[1] != 3:  # any minor version: RFC 8446 section 5.1
            if first:
                raise NotTLS(f"the second byte is 0x{header[1]:02x}, which is no version of TLS")
            raise MalformedHello("a record of another version inside the ClientHello", Alert.PROTOCOL_VERSION)
        if len(header) == _RECORD_HEADER:
            length = int.from_bytes(header[3:], "big")
            if not length:
                raise MalformedHello("an empty handshake record", Alert.UNEXPECTED_MESSAGE)
            if length > MAX_RECORD:
                raise MalformedHello(f"a record of {length} bytes", Alert.RECORD_OVERFLOW)
            header.clear()
            self._left = length
            self._check_size()
        return len(piece)

    def _message_is_whole(self) -> bool:
        message = self._message
        if message[0] != _CLIENT_HELLO:
            raise MalformedHello(f"a handshake message of type {message[0]}", Alert.UNEXPECTED_MESSAGE)
        if not self._total:
            if len(message) < _MESSAGE_HEADER:
                return False
            self._total = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
            self._check_size()
        if len(message) + self._left > self._total:
            raise MalformedHello("bytes after the ClientHello in its record", Alert.UNEXPECTED_MESSAGE)
        return len(message) == self._total

    def _check_size(self) -> None:
        if self._taken + self.missing > MAX_HELLO:
            raise MalformedHello(f"a ClientHello of more than {MAX_HELLO} bytes")


def _whole_message(data: bytes | memoryview) -> bytes | None:
    """The ClientHello when `data` is one record that holds it and nothing else, as it nearly always is; else None."""
    length = len(data) - _RECORD_HEADER
    if not _MESSAGE_HEADER <= length <= MAX_RECORD or data[0] != _HANDSHAKE_RECORD or data[1] != 3:
        return None
    if data[3 : 3 + _LENGTHS.size] != _LENGTHS.pack(length, _CLIENT_HELLO, 0, length - _MESSAGE_HEADER):
        return None
    return bytes(data[_RECORD_HEADER:])


def _parse(message: bytes, size: int) -> ClientHello:
    """Read the vectors."""
    end = len(message)
    try:
        session_id = message[_SESSION_ID]
        at = _SESSION_ID + 1 + session_id
        suites = message[at] << 8 | message[at + 1]
        at += 2 + suites
        compressions = message[at]
        at += 1 + compressions
    except IndexError:
        raise MalformedHello(_TOO_LONG) from None
    if at > end:
        raise MalformedHello(_TOO_LONG)
    if session_id > _MAX_SESSION_ID or not suites or suites % 2 or not compressions:
        raise MalformedHello("a session id, cipher suites or compression methods of a wrong length")
    if at == end:  # as clients wrote it before TLS 1.2
        return ClientHello(None, (), size, encrypted_client_hello=False, versions=_legacy_version(message))
    if end - at < 2 or end - at - 2 != message[at] << 8 | message[at + 1]:
        raise MalformedHello("extensions of another length than what is left for them")
    kinds, contents = _extensions(message, at + 2)
    name, alpn = contents.get(_SERVER_NAME), contents.get(_ALPN)
    return ClientHello(
        None if name is None else _server_name(name),
        () if alpn is None else _protocols(alpn),
        size,
        _ENCRYPTED_CLIENT_HELLO in kinds,
        contents.get(_SUPPORTED_VERSIONS, b"")[1:] or _legacy_version(message),  # the first byte is a length
    )


def _legacy_version(message: bytes) -> bytes:
    return message[_MESSAGE_HEADER : _MESSAGE_HEADER + 2]


def _extensions(message: bytes, at: int) -> tuple[set[int], dict[int, bytes]]:
    """The types of the extensions from `at` to the end of the message, and the contents of those that matter."""
    kinds = []
    contents = {}
    first, end = at, len(message)
    unpack = _EXTENSION.unpack_from
    try:
        while at < end:
            kind, length = unpack(message, at)
            kinds.append(kind)
            if kind in _TO_BE_READ:
                contents[kind] = message[at + 4 : at + 4 + length]
            at += 4 + length
    except struct.error:
        raise MalformedHello("an extension without room for its length") from None
    if at != end:
        raise MalformedHello("an extension that reaches beyond the others")
    distinct = set(kinds)
    if len(distinct) != len(kinds):
        _refuse_double(message, first)
    return distinct, contents


def _refuse_double(message: bytes, at: int) -> NoReturn:
    """Name the first extension that comes twice, of those from `at` on; there is one."""
    seen: set[int] = set()
    kind, length = _EXTENSION.unpack_from(message, at)
    while kind not in seen:
        seen.add(kind)
        at += _EXTENSION.size + length
        kind, length = _EXTENSION.unpack_from(message, at)
    if kind == _SERVER_NAME:
        raise BadServerName("two server_name extensions")
    raise MalformedHello(f"extension {kind} comes twice", Alert.ILLEGAL_PARAMETER)


@functools.lru_cache(maxsize=4096)  # only what is a name stays, and that is short
def _server_name(content: bytes) -> str:
    if len(content) < 5 or content[:5] != _ONE_NAME.pack(len(content) - 2, _HOST_NAME, len(content) - 5):
        raise BadServerName("a server_name extension that holds something else than one host name")
    name = content[5:]
    try:
        return normalise(name.decode("ascii"))
    except ValueError as exc:  # InvalidName is one, and so is what `decode` raises
        raise BadServerName(f"{name!r} is no host name") from exc


def _protocols(content: bytes) -> tuple[bytes, ...]:
    usual = _USUAL_PROTOCOLS.get(content)
    if usual is not None:
        return usual
    if len(content) < 3 or int.from_bytes(content[:2], "big") != len(content) - 2:
        raise MalformedHello("an ALPN extension that holds something else than one list")
    protocols = []
    at = 2
    while at < len(content):
        start = at + 1
        at = start + content[at]
        if at > len(content):
            raise MalformedHello(_TOO_LONG)
        if at == start:
            raise MalformedHello("an empty protocol name in ALPN")
        protocols.append(content[start:at])
    return tuple(protocols)
