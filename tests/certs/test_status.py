"""Whom a certificate needs: nobody, while what went wrong may pass by itself in good time."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.certs.making import DAY, NOW, bundle
from trioproxy.acme.journal import Origin
from trioproxy.certs.bundle import Leaf
from trioproxy.certs.known import Known
from trioproxy.certs.policy import Paced, Setback, Trouble
from trioproxy.certs.records import Provenance
from trioproxy.certs.status import CertificateStatus, status_of
from trioproxy.config.model import AccountId
from trioproxy.errors import AcmeFailure

NAME = "cloud.example.com"
MINUTE = timedelta(minutes=1)


def leaf(left: timedelta) -> Leaf:
    """Of 90 days, of which so much is left."""
    return bundle(NAME, not_before=NOW + left - 90 * DAY, not_after=NOW + left).leaf


def trouble(*failures: AcmeFailure, times: int = 1, again: timedelta = MINUTE) -> Trouble:
    """One at each of so many CAs."""
    at = tuple(
        Setback(AccountId(f"https://{number}.test/dir"), times, NOW, NOW + again, failure)
        for number, failure in enumerate(failures)
    )
    return Trouble(times, NOW, NOW + again, "the CA is busy", at=at)


def status(known: Known, *, busy: bool = False) -> CertificateStatus:
    return status_of(
        NAME, "acme", NOW, known.leaf, renewal=known.renewal if known.leaf else None, trouble=known.trouble,
        busy=busy, where=known.where, paced=known.waits(NOW),
    )  # fmt: skip


def needy(known: Known, *, busy: bool = False) -> bool:
    return status(known, busy=busy).needs_a_person


@pytest.mark.parametrize("failure", ["unreachable", "limit", "unfinished"])
def test_what_passes_by_itself_needs_nobody_while_there_is_time(failure: AcmeFailure) -> None:
    found = status(Known(leaf(29 * DAY), trouble(failure)))
    assert (found.state, found.error, found.needs_a_person) == ("failing", "the CA is busy", False)
    assert not needy(Known(leaf(16 * DAY), trouble(failure, times=40)))
    assert needy(Known(leaf(14 * DAY), trouble(failure, times=40)))
    assert needy(Known(leaf(20 * DAY), trouble(failure, again=6 * DAY))), "the next attempt would come late"
    assert needy(Known(leaf(-DAY), trouble(failure)))


@pytest.mark.parametrize("failure", ["validation", "dns", "caa", "account", "refused", "nonsense"])
def test_what_does_not_needs_somebody_at_once(failure: AcmeFailure) -> None:
    assert needy(Known(leaf(29 * DAY), trouble(failure)))
    assert needy(Known(None, trouble(failure)))
    assert needy(Known(leaf(29 * DAY), trouble(failure, "unreachable"))), "at one of two"
    assert needy(Known(leaf(29 * DAY), trouble("unreachable", failure)))


def test_trouble_of_our_own_needs_somebody() -> None:
    assert needy(Known(leaf(29 * DAY), trouble())), "the disk is full, perhaps"


def test_a_first_certificate_is_waited_for_two_hours() -> None:
    assert not needy(Known())
    assert not needy(Known(None, trouble("unreachable", times=4)))
    assert needy(Known(None, trouble("unreachable", times=5)))


def test_short_certificates_have_less_time() -> None:
    made = bundle(NAME, not_before=NOW - 3 * DAY, not_after=NOW + 3 * DAY).leaf
    assert not needy(Known(made, trouble("unreachable")))
    made = bundle(NAME, not_before=NOW - 5 * DAY, not_after=NOW + DAY).leaf
    assert needy(Known(made, trouble("unreachable")))


def test_a_limit_that_is_waited_for_too_long_needs_somebody() -> None:
    until = {7 * DAY: False, 12 * DAY: True}
    for wait, expected in until.items():
        assert needy(Known(leaf(25 * DAY), paced=Paced(NOW, NOW + wait, "the CA's limit is reached"))) is expected
    assert not needy(Known(paced=Paced(NOW, NOW + 12 * DAY, "the CA's limit is reached")))


def test_what_nobody_renews_needs_somebody_and_what_is_being_renewed_does_not() -> None:
    assert status(Known(leaf(14 * DAY))).state == "due"
    assert not needy(Known(leaf(29 * DAY)))
    assert needy(Known(leaf(14 * DAY))), "no server runs, perhaps"
    assert not needy(Known(leaf(14 * DAY)), busy=True)
    assert not needy(Known(leaf(60 * DAY)))


def test_a_revoked_certificate_that_is_not_replaced_needs_somebody() -> None:
    made = leaf(80 * DAY)
    where = Provenance(made.serial, Origin(AccountId("https://0.test/dir"), "", ""), revoked="superseded")
    assert needy(Known(made, trouble("unreachable"), where=where))
    assert not needy(Known(made, where=where), busy=True)
