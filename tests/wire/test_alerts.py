"""Alerts, as an independent client understands them."""

from __future__ import annotations

import ssl
import warnings

import pytest

from trioproxy.errors import (
    BadServerName,
    HelloTimeout,
    MalformedHello,
    MissingServerName,
    NotTLS,
    SilentPeer,
    TruncatedHello,
    UnknownServerName,
)
from trioproxy.wire.alerts import Alert, fatal_alert


def test_the_bytes() -> None:
    assert fatal_alert(Alert.UNRECOGNIZED_NAME) == bytes.fromhex("15 0303 0002 02 70")


@pytest.mark.parametrize("alert", Alert)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_openssl_calls_it_by_the_same_name(alert: Alert, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    incoming = ssl.MemoryBIO()
    client = context.wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(fatal_alert(alert))
    with pytest.raises(ssl.SSLError) as caught:
        client.do_handshake()
    assert caught.value.reason is not None
    assert caught.value.reason.endswith(f"ALERT_{alert.name}") or caught.value.reason.endswith(f"V1_{alert.name}")


def test_each_error_carries_its_alert() -> None:
    carried = {
        MalformedHello: Alert.DECODE_ERROR,
        BadServerName: Alert.ILLEGAL_PARAMETER,
        UnknownServerName: Alert.UNRECOGNIZED_NAME,
        MissingServerName: Alert.MISSING_EXTENSION,
        HelloTimeout: Alert.DECODE_ERROR,
        NotTLS: None,
        TruncatedHello: None,
        SilentPeer: None,
    }
    assert {error: error("why").alert for error in carried} == carried
    assert MalformedHello("why", Alert.RECORD_OVERFLOW).alert == Alert.RECORD_OVERFLOW
