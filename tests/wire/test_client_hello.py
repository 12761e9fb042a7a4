"""ClientHellos in every disguise that TLS allows, and in those that it does not."""

from __future__ import annotations

import ssl
import sys
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire import hellos
from tests.wire.differential import outcome
from tests.wire.hellos import alpn, handshake, message, record, records, server_name, vector, without_extensions
from trioproxy.errors import BadServerName, HelloError, MalformedHello, NotTLS
from trioproxy.names import MAX_NAME, normalise
from trioproxy.wire.alerts import Alert
from trioproxy.wire.client_hello import MAX_HELLO, MAX_RECORD, ClientHello, ClientHelloReader

TLS = ssl.TLSVersion
MESSAGE = message(server_name(b"cloud.example.com"), alpn(b"h2", b"http/1.1"), (21, bytes(30)))
BROWSER = hellos.as_a_browser()


def read(wire: bytes) -> ClientHello | None:
    return ClientHelloReader().feed(wire)


def refused(wire: bytes) -> HelloError:
    with pytest.raises(HelloError) as caught:
        read(wire)
    return caught.value


def of_size(size: int) -> bytes:
    """A handshake message of exactly `size` bytes that names a.example."""
    fixed = [server_name(b"a.example"), *((kind, bytes(0xF000)) for kind in range(100, 100 + size // 0xF100))]
    return message(*fixed, (99, bytes(size - len(message(*fixed, (99, b""))))))


# ---- what is read out of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS.TLSv1, TLS.TLSv1_1, TLS.TLSv1_2, TLS.TLSv1_3])
@pytest.mark.parametrize("name", ["cloud.example.com", None])
@pytest.mark.parametrize("protocols", [(), ("h2", "http/1.1"), ("http/1.1",), ("h2",), ("acme-tls/1",)])
def test_what_openssl_sends(version: ssl.TLSVersion, name: str | None, protocols: tuple[str, ...]) -> None:
    wire = hellos.by_openssl(name, protocols, version)
    offered = tuple(protocol.encode() for protocol in protocols)
    assert read(wire) == ClientHello(name, offered, len(wire), encrypted_client_hello=False)


def test_what_a_browser_sends() -> None:
    wire = record(BROWSER)
    assert 1600 < len(wire) < 2000
    assert read(wire) == ClientHello(
        "cloud.example.com", (b"\x1a\x1a", b"h2", b"http/1.1"), len(wire), encrypted_client_hello=True
    )


@pytest.mark.parametrize(
    ("version", "offered"),
    [
        (TLS.TLSv1, ("TLSv1",)),
        (TLS.TLSv1_1, ("TLSv1.1",)),
        (TLS.TLSv1_2, ("TLSv1.2",)),
        (TLS.TLSv1_3, ("TLSv1.3", "TLSv1.2", "TLSv1.1", "TLSv1")),
    ],
)
def test_the_versions_that_are_offered(version: ssl.TLSVersion, offered: tuple[str, ...]) -> None:
    hello = read(hellos.by_openssl(version=version))
    assert hello is not None
    assert hello.versions == offered


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        (BROWSER, ("TLSv1.3", "TLSv1.2")),
        (without_extensions(), ("TLSv1",)),
        (message((43, b"")), ("TLSv1.2",)),
        (message((43, b"\x04\x03\x04\x03")), ("TLSv1.3",)),
    ],
)
def test_versions_that_nobody_knows_are_left_out(text: bytes, offered: tuple[str, ...]) -> None:
    hello = read(record(text))
    assert hello is not None
    assert hello.versions == offered


@pytest.mark.parametrize("text", [without_extensions(), without_extensions(rest=vector(b"", 2)), message((21, b""))])
def test_a_hello_may_have_no_name(text: bytes) -> None:
    assert read(record(text)) == ClientHello(None, (), len(text) + 5, encrypted_client_hello=False)


@pytest.mark.parametrize("minor", range(256))
def test_any_minor_version_of_a_record_is_read(minor: int) -> None:
    assert read(record(MESSAGE, version=bytes([3, minor]))) is not None


def test_what_follows_in_other_records_is_not_ours() -> None:
    wire = record(MESSAGE)
    for more in [record(b"\1", 20), record(bytes(500), 23), record(MESSAGE), b"\0", b"GET / HTTP/1.1\r\n"]:
        hello = read(wire + more)
        assert hello is not None
        assert hello.size == len(wire)


# ---- however it comes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [MESSAGE, BROWSER], ids=["small", "browser"])
def test_byte_by_byte_in_records_of_any_size(text: bytes) -> None:
    for size in [1, 2, 3, 4, 5, 7, 9, 100, len(text) - 1, len(text)]:
        wire = records(text, *[size] * (len(text) // size + 1))
        reader = ClientHelloReader()
        answers = [reader.feed(wire[at : at + 1]) for at in range(len(wire))]
        assert answers[:-1] == [None] * (len(wire) - 1)
        assert answers[-1] is not None
        assert answers[-1].server_name == "cloud.example.com"
        assert answers[-1].size == len(wire)


def test_split_anywhere_by_tcp() -> None:
    wire = records(MESSAGE, 3, 50, 1)
    whole = read(wire)
    assert whole is not None
    for first in range(len(wire) + 1):
        for second in (first, first + 1, first + 7, len(wire) - 1):
            assert outcome(wire, first, max(first, min(second, len(wire)))) == whole


def test_split_anywhere_into_two_records() -> None:
    for size in range(1, len(BROWSER)):
        hello = read(records(BROWSER, size))
        assert hello is not None
        assert (hello.server_name, hello.size) == ("cloud.example.com", len(BROWSER) + 10)


def test_nothing_is_said_before_the_end() -> None:
    for wire in [record(MESSAGE), records(MESSAGE, 1, 2, 3, 4, 5), records(BROWSER, 512, 1)]:
        for end in range(len(wire)):
            assert read(wire[:end]) is None


@pytest.mark.parametrize("text", [MESSAGE, BROWSER, of_size(40_000), without_extensions(suites=b"\0\5")])
def test_missing_is_never_too_much(text: bytes) -> None:
    for wire in [record(text)] if len(text) <= MAX_RECORD else []:
        reader = ClientHelloReader()
        for at in range(len(wire)):
            assert 1 <= reader.missing <= len(wire) - at
            if at >= 9:  # both headers are there
                assert reader.missing == len(wire) - at
            reader.feed(wire[at : at + 1])
    for size in [1, 2, 6, 1000, MAX_RECORD]:
        wire = records(text, *[size] * (len(text) // size + 1))
        if len(wire) > MAX_HELLO:
            continue
        reader = ClientHelloReader()
        for at in range(len(wire)):
            assert 1 <= reader.missing <= len(wire) - at
            reader.feed(wire[at : at + 1])


def test_waiting_for_what_is_missing_takes_few_looks_even_at_records_of_one_byte() -> None:
    wire = records(BROWSER, *[1] * len(BROWSER))
    reader = ClientHelloReader()
    at = looks = 0
    while reader.feed(wire[at : (at := at + reader.missing)]) is None:
        looks += 1
    assert at == len(wire)
    assert looks < 50  # of 10,000 bytes


def test_each_byte_is_looked_at_once() -> None:
    """Twice the bytes cost twice the calls, however small the pieces; to begin anew each time would cost four times."""

    def calls(size: int) -> int:
        counted = 0

        def count(frame: FrameType, event: str, _: object) -> None:
            nonlocal counted
            counted += event in {"call", "c_call"}

        wire = records(of_size(size), *[1] * size)
        reader = ClientHelloReader()
        sys.setprofile(count)
        try:
            for at in range(len(wire)):
                reader.feed(wire[at : at + 1])
        finally:
            sys.setprofile(None)
        return counted

    assert calls(2000) < 2.2 * calls(1000)


# ---- what is no TLS -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\nHost: cloud.example.com\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0") + bytes(20),  # SSLv2
        bytes(64),
        b"\xff" * 64,
        record(b"\2\50", 21),
        record(b"\1", 20),
        record(MESSAGE, 23),
        record(MESSAGE, version=b"\2\0"),
        record(MESSAGE, version=b"\xfe\xff"),  # DTLS
    ],
)
def test_what_is_no_tls_is_known_by_its_first_bytes_and_gets_no_answer(wire: bytes) -> None:
    telling = 1 if wire[0] != 22 else 2
    reader = ClientHelloReader()
    for at in range(telling - 1):
        assert reader.feed(wire[at : at + 1]) is None
    with pytest.raises(NotTLS) as caught:
        reader.feed(wire[telling - 1 : telling])
    assert caught.value.alert is None
    assert outcome(wire) == (NotTLS, None)


# ---- what is broken -----------------------------------------------------------------------------------


def test_cut_off_anywhere_with_lengths_that_say_so() -> None:
    """However much of the body is left, it is refused; except where a hello may end: before its extensions."""
    for text in [MESSAGE, BROWSER]:
        body = text[4:]
        end_of_head = len(hellos.parts(record(text)).head)
        for size in range(len(body)):
            wire = record(handshake(body[:size]))
            if size == end_of_head:
                assert read(wire) == ClientHello(None, (), len(wire), encrypted_client_hello=False)
            else:
                assert isinstance(refused(wire), MalformedHello)


BROKEN_RECORDS = {
    "an empty record at the start": (record(b"") + record(MESSAGE), Alert.UNEXPECTED_MESSAGE),
    "an empty record within": (record(MESSAGE[:9]) + record(b"") + record(MESSAGE[9:]), Alert.UNEXPECTED_MESSAGE),
    "a record over 16 KiB": (record(of_size(MAX_RECORD + 1)), Alert.RECORD_OVERFLOW),
    "an alert within": (record(MESSAGE[:9]) + record(b"\1\0", 21) + record(MESSAGE[9:]), Alert.UNEXPECTED_MESSAGE),
    "early data within": (record(MESSAGE[:9]) + record(b"x", 23) + record(MESSAGE[9:]), Alert.UNEXPECTED_MESSAGE),
    "another version within": (record(MESSAGE[:9]) + record(MESSAGE[9:], version=b"\2\0"), Alert.PROTOCOL_VERSION),
    "a HelloRequest": (record(handshake(b"", 0)), Alert.UNEXPECTED_MESSAGE),
    "a ServerHello": (record(handshake(MESSAGE[4:], 2)), Alert.UNEXPECTED_MESSAGE),
    "a byte after it": (record(MESSAGE + b"\0"), Alert.UNEXPECTED_MESSAGE),
    "a second one after it": (record(MESSAGE + MESSAGE), Alert.UNEXPECTED_MESSAGE),
    "a byte after it, in two records": (records(MESSAGE + b"\0", 60), Alert.UNEXPECTED_MESSAGE),
}


@pytest.mark.parametrize(("wire", "alert"), BROKEN_RECORDS.values(), ids=BROKEN_RECORDS)
def test_broken_records(wire: bytes, alert: Alert) -> None:
    error = refused(wire)
    assert isinstance(error, MalformedHello)
    assert error.alert == alert
    for cut in range(len(wire)):
        assert outcome(wire, cut) == (MalformedHello, alert)


BROKEN_MESSAGES = {
    "too short to be one": handshake(bytes(40)),
    "a session id of 33 bytes": message(session_id=bytes(33)),
    "no cipher suite": message(suites=b""),
    "half a cipher suite": message(suites=b"\0\5\0"),
    "no compression method": message(compressions=b""),
    "a byte after the extensions": without_extensions(rest=vector(b"", 2) + b"\0"),
    "one byte of the extensions' length": without_extensions(rest=b"\0"),
    "extensions that reach beyond the message": without_extensions(rest=b"\0\5\0\0\0\0"),
    "half an extension's header": without_extensions(rest=vector(b"\0\0\0", 2)),
    "an extension that reaches beyond the others": without_extensions(rest=vector(b"\0\x15\0\2\0", 2)),
    "ALPN without a list": message((hellos.ALPN, b"")),
    "ALPN with an empty list": message(alpn()),
    "ALPN with an empty name": message(alpn(b"h2", b"")),
    "ALPN with a name that is too long": message((hellos.ALPN, b"\0\3\3h2")),
    "ALPN with a list that is too long": message((hellos.ALPN, b"\0\4\2h2")),
    "ALPN with a byte after the list": message((hellos.ALPN, b"\0\3\2h2\0")),
}


@pytest.mark.parametrize("text", BROKEN_MESSAGES.values(), ids=BROKEN_MESSAGES)
def test_broken_messages(text: bytes) -> None:
    error = refused(record(text))
    assert isinstance(error, MalformedHello)
    assert error.alert == Alert.DECODE_ERROR


@pytest.mark.parametrize("kind", [hellos.ALPN, hellos.KEY_SHARE, 0x0A0A, 0xFFFF])
def test_no_extension_comes_twice(kind: int) -> None:
    content = alpn(b"h2")[1]
    error = refused(record(message((kind, content), server_name(b"a.example"), (kind, content))))
    assert isinstance(error, MalformedHello)
    assert error.alert == Alert.ILLEGAL_PARAMETER


def test_up_to_64_kib_and_not_more() -> None:
    text = of_size(MAX_HELLO - 5 * 5)  # in five records
    wire = records(text, 1000)
    assert len(wire) == MAX_HELLO
    hello = read(wire)
    assert hello is not None
    assert (hello.server_name, hello.size) == ("a.example", MAX_HELLO)
    larger = records(of_size(MAX_HELLO - 5 * 5 + 1), 1000)
    assert outcome(larger) == (MalformedHello, Alert.DECODE_ERROR)


def test_too_large_is_known_as_soon_as_it_is_said() -> None:
    reader = ClientHelloReader()
    with pytest.raises(MalformedHello):
        reader.feed(records(of_size(MAX_HELLO), 1000)[:9])  # the headers of the record and of the message


def test_record_headers_count() -> None:
    text = of_size(11_000)
    assert read(record(text)) is not None
    assert outcome(records(text, *[1] * len(text))) == (MalformedHello, Alert.DECODE_ERROR)


# ---- server names -------------------------------------------------------------------------------------

BAD_NAMES = {
    "empty": b"",
    "NUL": b"\0",
    "NUL within": b"cloud.example.com\0.evil.example",
    "not LDH": b"clo_ud.example.com",
    "a space": b"cloud.example.com ",
    "a newline": b"cloud.example.com\n",
    "a wildcard": b"*.example.com",
    "an empty label": b"cloud..example.com",
    "two dots at the end": b"cloud.example.com..",
    "a dot alone": b".",
    "a hyphen first": b"-cloud.example.com",
    "a label of 64": b"a" * 64 + b".example",
    "a name of 254": b".".join([b"a" * 49] * 5) + b".exam",
    "IPv4": b"192.0.2.1",
    "IPv4 in hexadecimal, in part": b"0xc0.0.2.1",
    "IPv6": b"2001:db8::1",
    "IPv6 in brackets": b"[2001:db8::1]",
    "a port": b"cloud.example.com:443",
    "UTF-8": "münchen.example".encode(),
    "a letter that folds to k": "\N{KELVIN SIGN}.example".encode(),
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_that_are_none(name: bytes) -> None:
    assert outcome(record(message(server_name(name)))) == (BadServerName, Alert.ILLEGAL_PARAMETER)


BAD_EXTENSIONS = {
    "two names": server_name(b"a.example", b"b.example"),
    "the same name twice": server_name(b"a.example", b"a.example"),
    "another type of name": server_name(b"a.example", kind=1),
    "another type of name first": (0, vector(b"\1\0\1x\0\0\x09a.example", 2)),
    "no name": server_name(),
    "nothing": (0, b""),
    "a byte after the list": (0, server_name(b"a.example")[1] + b"\0"),
    "a list that is too long": (0, b"\0\x0d" + server_name(b"a.example")[1][2:]),
    "a name that is too long": (0, b"\0\x0c\0\0\x0aa.example"),
    "a name that is too short": (0, b"\0\x0c\0\0\x08a.example"),
}


@pytest.mark.parametrize("extension", BAD_EXTENSIONS.values(), ids=BAD_EXTENSIONS)
def test_extensions_that_hold_not_one_name(extension: hellos.Extension) -> None:
    assert outcome(record(message(extension))) == (BadServerName, Alert.ILLEGAL_PARAMETER)


@pytest.mark.parametrize("second", [b"a.example", b"b.example"])
def test_two_server_name_extensions(second: bytes) -> None:
    wire = record(message(server_name(b"a.example"), alpn(b"h2"), server_name(second)))
    assert outcome(wire) == (BadServerName, Alert.ILLEGAL_PARAMETER)


def test_the_message_names_what_was_sent_on_one_line_of_ascii() -> None:
    error = refused(record(message(server_name(b"a\r\n\x1b[31m\xe2\x80\xae"))))
    assert str(error) == r"b'a\r\n\x1b[31m\xe2\x80\xae' is no host name"


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
HOST_NAMES = st.lists(LABELS, min_size=1, max_size=6).map(".".join)


@given(name=HOST_NAMES.filter(lambda name: not name.rpartition(".")[2].isdigit()), data=st.data())
def test_every_spelling_of_a_name_is_that_name(name: str, data: st.DataObject) -> None:
    upper = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    spelt = "".join(letter.upper() if up else letter for letter, up in zip(name, upper, strict=True))
    for spelling in [name, spelt, spelt + "."]:
        hello = read(record(message(server_name(spelling.encode()))))
        assert hello is not None
        assert hello.server_name == name == normalise(spelling)


def test_the_longest_name() -> None:
    name = b".".join([b"a" * 49] * 5) + b".exa"
    assert len(name) == MAX_NAME
    for spelling in [name, name + b"."]:
        hello = read(record(message(server_name(spelling))))
        assert hello is not None
        assert hello.server_name == name.decode()
