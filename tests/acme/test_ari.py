"""Renewal information as a CA sends it, sense and nonsense."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from trioproxy.acme import ari
from trioproxy.acme.ari import Window
from trioproxy.acme.problems import AcmeProtocolError

START = datetime(2026, 11, 1, tzinfo=UTC)
END = START + timedelta(days=90)
DAY = timedelta(days=1)


def certificate(serial: int, key_identifier: bytes | None, extension: bool = True) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, START, END)
    if extension:
        aki = x509.AuthorityKeyIdentifier(key_identifier, None, None)
        if key_identifier is None:
            aki = x509.AuthorityKeyIdentifier(None, [x509.DNSName("x")], 1)
        builder = builder.add_extension(aki, critical=False)
    return builder.sign(key, hashes.SHA256())


def test_the_example_of_the_rfc() -> None:
    aki = bytes.fromhex("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")
    assert ari.certificate_id(certificate(0x87654321, aki)) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


def test_a_number_whose_first_bit_is_not_set_has_no_zero_before_it() -> None:
    assert ari.certificate_id(certificate(0x7F, b"\0")) == "AA.fw"


def test_a_certificate_without_its_issuers_identifier_has_no_name() -> None:
    assert ari.certificate_id(certificate(1, None, extension=False)) == ""
    assert ari.certificate_id(certificate(1, None)) == ""


def info(start: object, end: object, **more: object) -> bytes:
    return json.dumps({"suggestedWindow": {"start": start, "end": end}, **more}).encode()


def read(body: bytes, retry_after: float | None = None) -> ari.Advice:
    return ari.read(body, retry_after, START, END)


def test_a_window() -> None:
    advice = read(
        info("2026-12-01T00:00:00Z", "2026-12-03T02:00:00.123456789+02:00", explanationURL="https://ca.test/why"),
        7200.0,
    )
    assert advice.window is not None
    assert advice.window.start == START + 30 * DAY
    assert advice.window.end == START + 32 * DAY + timedelta(microseconds=123456)
    assert (advice.ask_again, advice.explanation_url, advice.doubt) == (7200.0, "https://ca.test/why", "")


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [(None, 21600.0), (0.0, 60.0), (59.0, 60.0), (61.0, 61.0), (1e9, 86400.0)]
)
def test_a_ca_is_asked_again_after_a_minute_at_the_soonest_and_a_day_at_the_latest(
    retry_after: float | None, seconds: float
) -> None:
    assert read(info("2026-12-01T00:00:00Z", "2026-12-03T00:00:00Z"), retry_after).ask_again == seconds


@pytest.mark.parametrize(
    ("start", "end", "doubt"),
    [
        (START + 2 * DAY, START + DAY, "it ends before it begins"),
        (START + DAY, START + DAY, "it ends before it begins"),
        (END - DAY, END + timedelta(seconds=1), "it ends after the certificate"),
        (END + DAY, END + 2 * DAY, "it ends after the certificate"),
        (datetime(1970, 1, 1, tzinfo=UTC), START + DAY, "it begins before the certificate"),
        (END - DAY, END, ""),
        # A certificate that was revoked in its first hour: renew at once.
        (START - timedelta(hours=1), START - timedelta(minutes=30), ""),
    ],
)
def test_a_window_that_makes_no_sense_is_not_gone_by(start: datetime, end: datetime, doubt: str) -> None:
    advice = read(info(start.isoformat(), end.isoformat()))
    assert advice.doubt == doubt
    assert (advice.window is None) == bool(doubt)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"suggestedWindow": []}',
        b'{"suggestedWindow": {"start": "2026-12-01T00:00:00Z"}}',
        info(1, 2),
        info("soon", "later"),
        info("2026-12-01T00:00:00", "2026-12-02T00:00:00"),
        info("2026-13-01T00:00:00Z", "2026-12-02T00:00:00Z"),
    ],
)
def test_nonsense_is_an_error_of_the_ca(body: bytes) -> None:
    with pytest.raises(AcmeProtocolError):
        read(body)


@pytest.mark.parametrize("url", ["javascript:alert(1)", "http://a b", "https://a\n", "https://[", 7, None, ""])
def test_an_explanation_is_a_link_that_a_person_may_follow_or_none(url: object) -> None:
    assert read(info("2026-12-01T00:00:00Z", "2026-12-03T00:00:00Z", explanationURL=url)).explanation_url == ""


@pytest.mark.parametrize(("dice", "hours"), [(0.0, 0), (0.5, 24), (0.75, 36)])
def test_a_moment_is_picked_by_the_dice(dice: float, hours: int) -> None:
    window = Window(START, (START + 2 * DAY).astimezone(timezone(timedelta(hours=9))))
    assert ari.pick(window, dice) == START + timedelta(hours=hours)
