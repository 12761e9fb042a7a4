"""When a CA would like a certificate to be renewed: ACME Renewal Information (RFC 9773). Pure.

A CA tells a window, and whoever renews picks a moment in it by chance, so that not everybody comes at once. It is also
how a CA says that it has revoked, or is about to: the window then lies in the past. What to do with it is the caller's:

- ask (`AcmeClient.renewal_info`), keep the `Advice`, and ask again after `Advice.ask_again` seconds;
- `pick` a moment once, with dice of its own, and keep it as long as the same window comes back: who throws the dice
  again at every look renews early in every window;
- go by a moment of its own where there is no window, or one that `doubt` says is not to be gone by.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from urllib.parse import urlsplit

import attrs
from cryptography import x509

from trioproxy.acme.problems import AcmeProtocolError, plain
from trioproxy.acme.protocol import Fields
from trioproxy.acme.signing import base64url

OFTEN = 60.0
SELDOM = 86_400.0
"""Seconds between which a CA may choose when it is asked again (RFC 9773 section 4.3.2 wants such limits)."""

USUAL = 21_600.0
"""Seconds until it is asked again where it does not say."""

BACKDATED = timedelta(days=1)
"""How long before a certificate's validity a window may begin: CAs date certificates back, and windows to hurry us."""


@attrs.frozen
class Window:
    """From when until when the CA suggests to renew; UTC."""

    start: datetime
    end: datetime


@attrs.frozen
class Advice:
    """What a CA says about the renewal of one certificate.

    Attributes:
        window: When; None where it is not to be gone by.
        ask_again: Seconds until the CA should be asked again, from a minute to a day.
        explanation_url: Where a person can read why, "" for nowhere.
        doubt: Why there is no window, "" if there is one.
    """

    window: Window | None
    ask_again: float
    explanation_url: str = ""
    doubt: str = ""


def certificate_id(leaf: x509.Certificate) -> str:
    """How a certificate is called (section 4.1): its issuer's key identifier and its serial number.

    Returns:
        "" for one that has no such identifier; a CA with renewal information puts it into all of its.
    """
    try:
        authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    if authority is None:
        return ""
    # As DER has it: a positive number whose first bit is set gets a zero before it.
    serial = leaf.serial_number.to_bytes(leaf.serial_number.bit_length() // 8 + 1, "big")
    return f"{base64url(authority)}.{base64url(serial)}"


def read(body: bytes, retry_after: float | None, not_before: datetime, not_after: datetime) -> Advice:
    """Read a RenewalInfo object (section 4.2).

    Args:
        body: What the CA sent.
        retry_after: Seconds of its Retry-After.
        not_before: The certificate's validity; UTC.
        not_after: The certificate's validity; UTC.

    Raises:
        AcmeProtocolError: it is none.
    """
    fields = Fields.of(body, "renewal information")
    inner = Fields("renewal information", fields.object("suggestedWindow"))
    window = Window(_moment(inner, "start"), _moment(inner, "end"))
    doubt = _doubt(window, not_before, not_after)
    ask_again = min(max(OFTEN, USUAL if retry_after is None else retry_after), SELDOM)
    return Advice(None if doubt else window, ask_again, _web_page(fields.fields.get("explanationURL")), doubt)


def pick(window: Window, dice: float) -> datetime:
    """A moment in a window.

    Args:
        window: As the CA suggests it.
        dice: From 0 up to 1.
    """
    return window.start + (window.end - window.start) * dice


def _doubt(window: Window, not_before: datetime, not_after: datetime) -> str:
    """What is wrong with a window, "" for one to go by. One in the past is good: it says to renew at once."""
    if window.end <= window.start:
        return "it ends before it begins"
    if window.end > not_after:
        return "it ends after the certificate"
    if window.start < not_before - BACKDATED:
        return "it begins before the certificate"
    return ""


def _moment(fields: Fields, key: str) -> datetime:
    try:
        moment = datetime.fromisoformat(fields.text(key))
    except ValueError as exc:
        raise AcmeProtocolError(f"the CA's renewal information has no valid {key!r}") from exc
    if moment.tzinfo is None:
        raise AcmeProtocolError(f"the CA's renewal information has no valid {key!r}")
    return moment


def _web_page(value: object) -> str:
    """A link that a person may follow."""
    if not isinstance(value, str) or plain(value) != value or " " in value:
        return ""
    try:
        return value if urlsplit(value).scheme in ("https", "http") else ""
    except ValueError:
        return ""
