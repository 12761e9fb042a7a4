"""What the first bytes of a server tell, byte by byte."""

from __future__ import annotations

import ssl

import pytest
import trustme

from trioproxy.wire.alerts import fatal_alert
from trioproxy.wire.server_answer import MISREAD, ServerAnswer, read_answer

HELLO = bytes([22, 3, 3, 0, 90, 2, 0, 0, 86])
NO = ServerAnswer(understood=False)


def test_a_server_hello_is_known_by_its_sixth_byte() -> None:
    for size in range(6):
        assert read_answer(HELLO[:size]) is None
    for size in range(6, len(HELLO)):
        assert read_answer(HELLO[:size]) == ServerAnswer(understood=True)


def test_a_real_one_is_known() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("a.b").configure_cert(context)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="a.b")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    assert read_answer(to_client.read()) == ServerAnswer(understood=True)


@pytest.mark.parametrize("alert", [40, 70, 80, 112, 120])
def test_an_alert_about_wishes_comes_from_one_who_has_read_them(alert: int) -> None:
    record = fatal_alert(alert)
    for size in range(7):
        assert read_answer(record[:size]) is None
    assert read_answer(record + b"more") == ServerAnswer(understood=True, alert=alert)


@pytest.mark.parametrize("alert", sorted(MISREAD))
def test_an_alert_about_bytes_comes_from_one_who_could_not_read(alert: int) -> None:
    assert read_answer(fatal_alert(alert)) == ServerAnswer(understood=False, alert=alert)


@pytest.mark.parametrize(
    "text", [b"HTTP/1.1 400 Bad Request\r\n", b"\x16\x02\x00", b"\x15HTTP", b"\x17\x03\x03\x00\x01\x00", b"\0"]
)
def test_everything_else_is_no_tls(text: bytes) -> None:
    assert read_answer(text) == ServerAnswer(understood=False, text=text)


def test_a_handshake_message_that_no_server_begins_with_is_none() -> None:
    request = bytes([22, 3, 3, 0, 4, 1, 0, 0, 0])
    assert read_answer(request) == ServerAnswer(understood=False, text=request)


def test_who_ends_too_soon_has_not_understood() -> None:
    assert read_answer(b"", ended=True) == NO
    for part in (HELLO[:5], fatal_alert(112)[:6]):
        assert read_answer(part, ended=True) == ServerAnswer(understood=False, text=part)
    assert read_answer(HELLO, ended=True) == ServerAnswer(understood=True)
