"""PROXY headers: what we write, what we read, split anywhere, and everything that is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.errors import BadProxyHeader
from trioproxy.wire.proxy_protocol import (
    MAX_V1,
    SIGNATURE,
    Endpoint,
    ProxyHeader,
    crc32c,
    encode_v1,
    encode_v2,
    missing,
    read_header,
)

FOUR = Endpoint("192.0.2.7", 50000), Endpoint("198.51.100.1", 443)
SIX = Endpoint("2001:db8::7", 50000), Endpoint("2001:db8::1", 443)
MIXED = Endpoint("2001:db8::7", 50000), Endpoint("198.51.100.1", 443)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(body)) + body


ADDRESSES_4 = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack(">HH", 50000, 443)

GOOD = {
    "v1 over IPv4": (encode_v1(*FOUR), FOUR),
    "v1 over IPv6": (encode_v1(*SIX), SIX),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", (None, None)),
    "v1 unknown with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", (None, None)),
    "v2 over IPv4": (encode_v2(*FOUR), FOUR),
    "v2 over IPv6": (encode_v2(*SIX), SIX),
    "v2 with TLVs": (encode_v2(*FOUR, alpn=b"h2", authority=b"pbx.test", unique_id=b"1"), FOUR),
    "v2 local": (v2(0x20, 0x00, b""), (None, None)),
    "v2 local with addresses": (v2(0x20, 0x11, ADDRESSES_4), (None, None)),
    "v2 with a field of an unknown kind": (v2(0x21, 0x11, ADDRESSES_4 + tlv(0xEE, b"?")), FOUR),
}


@pytest.mark.parametrize(("data", "addresses"), GOOD.values(), ids=GOOD)
def test_good_headers_are_read_whatever_follows_and_wherever_they_are_cut(
    data: bytes, addresses: tuple[Endpoint | None, Endpoint | None]
) -> None:
    for following in (b"", b"\x16\x03\x01", b"\r\n", b"PROXY "):
        header = read_header(data + following)
        assert header is not None
        assert (header.source, header.destination) == addresses
        assert header.size == len(data)
    for cut in range(len(data)):
        assert read_header(data[:cut]) is None
        assert 1 <= missing(data[:cut]) <= len(data) - cut


def test_the_lines_of_version_1_are_as_the_specification_shows_them() -> None:
    assert encode_v1(*FOUR) == b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n"
    assert encode_v1(*SIX) == b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n"


def test_mixed_families_are_promoted_to_ipv6() -> None:
    assert encode_v1(*MIXED) == b"PROXY TCP6 2001:db8::7 ::ffff:198.51.100.1 50000 443\r\n"
    for encode in (encode_v1, encode_v2):
        header = read_header(encode(*MIXED))
        assert header is not None
        assert (header.source, header.destination) == MIXED


def test_what_the_tlvs_carry_comes_back() -> None:
    data = encode_v2(*SIX, alpn=b"http/1.1", authority=b"pbx.test", unique_id=b"0af3")
    assert read_header(data) == ProxyHeader(*SIX, len(data), b"http/1.1", b"pbx.test", b"0af3")


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


@pytest.mark.parametrize("right", [True, False])
def test_a_checksum_is_checked(right: bool) -> None:
    body = ADDRESSES_4 + tlv(1, b"h2") + tlv(3, bytes(4))
    checksum = crc32c(v2(0x21, 0x11, body)) ^ (0 if right else 1)
    data = v2(0x21, 0x11, body[:-4] + checksum.to_bytes(4, "big"))
    if right:
        assert read_header(data) is not None
    else:
        with pytest.raises(BadProxyHeader, match="checksum"):
            read_header(data)


BAD = {
    "nothing of the kind": b"GET / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01\x02\x00",
    "lower case": b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "v1 of an unknown protocol": b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "v1 over 107 bytes": b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
    "v1 without end": b"PROXY UNKNOWN " + b"x" * MAX_V1,
    "v1 with LF alone": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n",
    "v1 with two spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
    "v1 with the other family": b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
    "v1 with a leading zero in an address": b"PROXY TCP4 192.0.02.7 198.51.100.1 1 2\r\n",
    "v1 with a leading zero in a port": b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    "v1 with a port out of range": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
    "v1 with a sign": b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
    "v1 without ports": b"PROXY TCP4 192.0.2.7 198.51.100.1\r\n",
    "v1 with a scope": b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
    "v2 of another version": v2(0x11, 0x11, ADDRESSES_4),
    "v2 of an unknown command": v2(0x22, 0x11, ADDRESSES_4),
    "v2 over UDP": v2(0x21, 0x12, ADDRESSES_4),
    "v2 over a unix socket": v2(0x21, 0x31, bytes(216)),
    "v2 of no family": v2(0x21, 0x00, b""),
    "v2 too short": v2(0x21, 0x11, ADDRESSES_4[:-1]),
    "v2 too long": SIGNATURE + struct.pack(">BBH", 0x21, 0x11, 65535),
    "v2 with half a field": v2(0x21, 0x11, ADDRESSES_4 + b"\x04\x00"),
    "v2 with a field too long": v2(0x21, 0x11, ADDRESSES_4 + b"\x04\x00\x09abc"),
    "v2 with a unique id too long": v2(0x21, 0x11, ADDRESSES_4 + tlv(5, bytes(129))),
    "a broken signature": SIGNATURE[:11] + b"X\x21\x11\0\0",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_everything_else_is_refused_wherever_it_is_cut(data: bytes) -> None:
    with pytest.raises(BadProxyHeader):
        read_header(data)
    for cut in range(len(data)):  # and no beginning of it is taken for a whole header
        try:
            assert read_header(data[:cut]) is None
        except BadProxyHeader:
            break


@given(st.binary(max_size=300))
def test_no_input_makes_it_fail_otherwise(noise: bytes) -> None:
    for beginning in (b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\0\x20"):
        try:
            header = read_header(beginning + noise)
        except BadProxyHeader:
            continue
        assert header is None or header.size <= len(beginning + noise)


addresses = st.ip_addresses().map(str)
ports = st.integers(0, 65535)


@given(addresses, ports, addresses, ports)
def test_what_we_write_we_read(source: str, port: int, destination: str, other: int) -> None:
    ends = Endpoint(source, port), Endpoint(destination, other)
    for encode in (encode_v1, encode_v2):
        header = read_header(encode(*ends) + b"more")
        assert header is not None
        assert header.source is not None
        assert header.destination is not None
        assert (header.source.port, header.destination.port) == (port, other)
