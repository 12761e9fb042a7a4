"""The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt): who calls, said before the first byte.

A reader is fed what arrives and answers with the header once it is complete; how many bytes of the stream the header
took stands in it, and the caller takes exactly those. Everything that is not exactly a header is an error: a peer that
must send one and does not is misconfigured or an impostor, and guessing would believe it.
"""

from __future__ import annotations

import ipaddress
import re
import struct

import attrs

from trioproxy.errors import BadProxyHeader

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""The first 12 bytes of version 2."""

MAX_V1 = 107
"""Bytes of the longest line of version 1, with CRLF (section 2.1)."""

MAX_V2 = 16 + 4096
"""Bytes of version 2 that we read; the format allows 64 KiB, and senders use a few hundred."""

TLV_ALPN = 0x01
TLV_AUTHORITY = 0x02
TLV_CRC32C = 0x03
TLV_UNIQUE_ID = 0x05

MAX_UNIQUE_ID = 128  # section 2.2.5

_V1_LINE = re.compile(rb"PROXY (?:TCP([46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (\d{1,5}) (\d{1,5})|UNKNOWN(?: .*)?)\r\n")

_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21


@attrs.frozen
class Endpoint:
    """An address literal and a port."""

    host: str
    port: int


@attrs.frozen
class ProxyHeader:
    """What a header says.

    Attributes:
        source: Who calls; None when the sender speaks for itself (LOCAL, UNKNOWN): then the real peer is meant.
        destination: What the caller connected to, likewise.
        size: Bytes that the header took on the wire.
        alpn: TLV ALPN, b"" when absent.
        authority: TLV AUTHORITY, the server name, b"" when absent.
        unique_id: TLV UNIQUE_ID, b"" when absent.
    """

    source: Endpoint | None
    destination: Endpoint | None
    size: int = 0
    alpn: bytes = b""
    authority: bytes = b""
    unique_id: bytes = b""


# ---- writing ------------------------------------------------------------------------------------------


def encode_v1(source: Endpoint, destination: Endpoint) -> bytes:
    """The line of version 1 for a TCP connection; addresses of two families are both written as IPv6."""
    theirs, ours = _same_family(source.host, destination.host)
    return b"PROXY TCP%d %s %s %d %d\r\n" % (
        theirs.version,
        _text(theirs),
        _text(ours),
        source.port,
        destination.port,
    )


def encode_v2(
    source: Endpoint,
    destination: Endpoint,
    *,
    alpn: bytes = b"",
    authority: bytes = b"",
    unique_id: bytes = b"",
) -> bytes:
    """The header of version 2 for a TCP connection; addresses of two families are both written as IPv6.

    Args:
        source: Who calls.
        destination: What it connected to.
        alpn: The protocol that TLS will speak, if one can be told; b"" leaves it out, as for the two below.
        authority: The server name.
        unique_id: Names this connection in both logs, at most 128 bytes.
    """
    theirs, ours = _same_family(source.host, destination.host)
    body = theirs.packed + ours.packed + struct.pack(">HH", source.port, destination.port)
    for kind, value in ((TLV_ALPN, alpn), (TLV_AUTHORITY, authority), (TLV_UNIQUE_ID, unique_id)):
        if value:
            body += struct.pack(">BH", kind, len(value)) + value
    family = _TCP4 if theirs.version == 4 else _TCP6
    return SIGNATURE + struct.pack(">BBH", _PROXY, family, len(body)) + body


def _text(address: _Address) -> bytes:
    mapped = getattr(address, "ipv4_mapped", None)  # Python before 3.13 writes ::ffff:c633:6401
    return (f"::ffff:{mapped}" if mapped else str(address)).encode()


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _same_family(source: str, destination: str) -> tuple[_Address, _Address]:
    theirs, ours = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if theirs.version == ours.version:
        return theirs, ours
    return _as_ipv6(theirs), _as_ipv6(ours)


def _as_ipv6(address: _Address) -> ipaddress.IPv6Address:
    return address if address.version == 6 else ipaddress.IPv6Address(f"::ffff:{address}")


# ---- reading ------------------------------------------------------------------------------------------


def read_header(data: bytes) -> ProxyHeader | None:
    """The header at the beginning of `data`, whatever follows it; None when more bytes are needed.

    Raises:
        BadProxyHeader: no sequence of further bytes can make this a header that we take.
    """
    if data[:12] == SIGNATURE[: len(data)]:
        return _read_v2(data) if len(data) >= 16 else None
    if data[:6] == b"PROXY "[: len(data)]:
        return _read_v1(data)
    raise BadProxyHeader("the peer must begin with a PROXY header, and did not")


def missing(data: bytes) -> int:
    """How many bytes at least must follow `data`, an incomplete header, before `read_header` can say more."""
    if data[:12] == SIGNATURE[: len(data)] and data:
        wanted = 16 if len(data) < 16 else 16 + struct.unpack_from(">H", data, 14)[0]
        return max(1, wanted - len(data))
    return 1


def _read_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise BadProxyHeader("a PROXY line of more than 107 bytes")
        return None
    line = _V1_LINE.fullmatch(data[: end + 1])
    if line is None:
        raise BadProxyHeader("a PROXY line that is none of version 1")
    version, source, destination, *ports = line.groups()
    if version is None:
        return ProxyHeader(None, None, end + 1)
    try:
        addresses = [ipaddress.ip_address(text.decode()) for text in (source, destination)]
    except ValueError:
        raise BadProxyHeader("a PROXY line whose addresses are none") from None
    numbers = [int(port) for port in ports]
    well_formed = all(str(n).encode() == port and n <= 65535 for n, port in zip(numbers, ports, strict=True))
    if not well_formed or any(address.version != int(version) for address in addresses):
        raise BadProxyHeader("a PROXY line whose addresses and ports do not fit its family")
    theirs, ours = (Endpoint(_unmapped(a), n) for a, n in zip(addresses, numbers, strict=True))
    return ProxyHeader(theirs, ours, end + 1)


def _read_v2(data: bytes) -> ProxyHeader | None:
    command, family, length = struct.unpack_from(">BBH", data, 12)
    size = 16 + length
    if command not in (_LOCAL, _PROXY):
        raise BadProxyHeader("a PROXY header of an unknown version or command")
    if size > MAX_V2:
        raise BadProxyHeader(f"a PROXY header of {size} bytes; {MAX_V2} are read at most")
    if command == _PROXY and family not in (_TCP4, _TCP6):
        raise BadProxyHeader("a PROXY header for something that is not TCP over IPv4 or IPv6")
    width = 4 if family == _TCP4 else 16
    if command == _PROXY and length < 2 * width + 4:
        raise BadProxyHeader("a PROXY header too short for its addresses")
    if len(data) < size:
        return None
    if command == _LOCAL:  # whatever else it carries is to be skipped (section 2.2)
        return ProxyHeader(None, None, size)
    theirs = ipaddress.ip_address(data[16 : 16 + width])
    ours = ipaddress.ip_address(data[16 + width : 16 + 2 * width])
    ports = struct.unpack_from(">HH", data, 16 + 2 * width)
    tlvs = _tlvs(data[:size], 20 + 2 * width)
    return ProxyHeader(
        Endpoint(_unmapped(theirs), ports[0]),
        Endpoint(_unmapped(ours), ports[1]),
        size,
        alpn=tlvs.get(TLV_ALPN, b""),
        authority=tlvs.get(TLV_AUTHORITY, b""),
        unique_id=tlvs.get(TLV_UNIQUE_ID, b""),
    )


def _unmapped(address: _Address) -> str:
    """The address as text, an IPv4 one as such even when it came inside IPv6."""
    return str(getattr(address, "ipv4_mapped", None) or address)


def _tlvs(header: bytes, start: int) -> dict[int, bytes]:
    """The type-length-value fields of a whole header, which begin at `start`; its checksum, if any, is checked."""
    found: dict[int, bytes] = {}
    position = start
    while position < len(header):
        if position + 3 > len(header):
            raise BadProxyHeader("a PROXY header with a broken field at its end")
        kind, length = struct.unpack_from(">BH", header, position)
        end = position + 3 + length
        if end > len(header):
            raise BadProxyHeader("a PROXY header with a field longer than itself")
        value = header[position + 3 : end]
        if kind == TLV_CRC32C:
            zeroed = header[: position + 3] + bytes(length) + header[end:]
            if length != 4 or crc32c(zeroed) != int.from_bytes(value, "big"):
                raise BadProxyHeader("a PROXY header whose checksum is wrong")
        if kind == TLV_UNIQUE_ID and length > MAX_UNIQUE_ID:
            raise BadProxyHeader("a PROXY header with a unique id of more than 128 bytes")
        found[kind] = value
        position = end
    return found


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960 appendix B (Castagnoli), which few senders use: a table in Python is fast enough."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
