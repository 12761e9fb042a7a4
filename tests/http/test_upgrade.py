from __future__ import annotations

import pytest

from trioproxy.errors import UpstreamProtocolError
from trioproxy.http.upgrade import accepted_upgrade, requested_upgrade, upgrade_as_sent


@pytest.mark.parametrize(
    ("method", "tokens", "asked"),
    [
        (b"GET", [b"websocket"], b"websocket"),
        (b"POST", [b"websocket"], None),
        (b"POST", [b"spdy/3.1"], b"spdy/3.1"),
        (b"GET", [b"tcp"], b"tcp"),
        (b"GET", [b"h2c"], None),
        (b"GET", [b"http/2.0"], None),
        (b"GET", [b"tls/1.2", b"http/1.1"], None),
        (b"GET", [b"h2c", b"websocket", b"tcp"], b"websocket"),
        (b"GET", [b"tlsx", b"websocket"], b"tlsx"),
        (b"GET", [], None),
    ],
)
def test_requested(method: bytes, tokens: list[bytes], asked: bytes | None) -> None:
    assert requested_upgrade(method, tokens) == asked


def test_as_sent() -> None:
    headers = [(b"x", b"websocket"), (b"upgrade", b"h2c, WebSocket ,tcp")]
    assert upgrade_as_sent(headers, b"websocket") == b"WebSocket"
    assert upgrade_as_sent([], b"websocket") == b"websocket"


def test_accepted() -> None:
    assert accepted_upgrade([(b"upgrade", b"WebSocket")], b"websocket") == b"WebSocket"


@pytest.mark.parametrize(
    "headers", [[], [(b"upgrade", b"h2c")], [(b"upgrade", b"websocket, h2c")], [(b"upgrade", b"")]]
)
def test_not_what_was_asked(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(UpstreamProtocolError):
        accepted_upgrade(headers, b"websocket")


def test_nothing_was_asked() -> None:
    with pytest.raises(UpstreamProtocolError):
        accepted_upgrade([(b"upgrade", b"websocket")], None)
