from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from trioproxy.certs.policy import LADDER, SPREAD, Trouble, dice_of, renew_at, retry_at

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MIDDLE = 0.5  # neither a tenth less nor a tenth more

# ---- when to renew ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "left"),
    [
        pytest.param(90 * DAY, 30 * DAY, id="classic"),
        pytest.param(64 * DAY, 64 * DAY / 3, id="classic from 2027 on"),
        pytest.param(45 * DAY, 15 * DAY, id="tlsserver"),
        pytest.param(10 * DAY, 10 * DAY / 3, id="the shortest of which a third is left"),
        pytest.param(10 * DAY - MINUTE, (10 * DAY - MINUTE) / 2, id="the longest of which half is left"),
        pytest.param(160 * HOUR, 80 * HOUR, id="shortlived"),
        pytest.param(2 * MINUTE, MINUTE, id="a test authority's"),
    ],
)
def test_a_third_is_left_or_half_of_a_short_one(lifetime: timedelta, left: timedelta) -> None:
    assert renew_at(NOW, NOW + lifetime, 0.0) == NOW + lifetime - left


def test_the_spread_only_moves_a_renewal_forward_and_not_far() -> None:
    latest = renew_at(NOW, NOW + 90 * DAY, 0.0)
    moments = [renew_at(NOW, NOW + 90 * DAY, step / 100) for step in range(100)]
    assert moments == sorted(moments, reverse=True)
    assert len(set(moments)) == 100
    assert all(timedelta() <= latest - moment < 90 * DAY * SPREAD for moment in moments)


def test_a_certificate_has_one_dice() -> None:
    serials = [2**64 + 7919 * n for n in range(1000)]
    rolls = [dice_of(serial) for serial in serials]
    assert rolls == [dice_of(serial) for serial in serials]
    assert all(0 <= roll < 1 for roll in rolls)
    assert min(rolls) < 0.05
    assert max(rolls) > 0.95


# ---- when to try again --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "minutes"), [(1, 1), (2, 10), (3, 30), (4, 60), (5, 180), (6, 360), (7, 360), (1000, 360)]
)
def test_the_ladder(failures: int, minutes: int) -> None:
    assert retry_at(failures, NOW, 60 * DAY, MIDDLE) == NOW + minutes * MINUTE


@pytest.mark.parametrize("failures", range(1, 8))
@pytest.mark.parametrize(("pick", "factor"), [(0.0, 0.9), (0.25, 0.95), (0.75, 1.05), (1.0, 1.1)])
def test_a_tenth_less_or_more(failures: int, pick: float, factor: float) -> None:
    step = LADDER[min(failures, 6) - 1] * factor
    expected = max(step, 10 * MINUTE) if failures > 1 else step
    assert abs(retry_at(failures, NOW, 60 * DAY, pick) - NOW - expected) < timedelta(seconds=1)


@pytest.mark.parametrize(
    ("failures", "remaining", "pause"),
    [
        pytest.param(6, 48 * HOUR, 6 * HOUR, id="an eighth is just the step"),
        pytest.param(6, 24 * HOUR, 3 * HOUR, id="an eighth is less"),
        pytest.param(4, 4 * HOUR, 30 * MINUTE, id="an eighth of a few hours"),
        pytest.param(6, 80 * MINUTE, 10 * MINUTE, id="an eighth is just the least"),
        pytest.param(6, 40 * MINUTE, 10 * MINUTE, id="never under ten minutes"),
        pytest.param(2, 1 * MINUTE, 10 * MINUTE, id="not even at the very end"),
        pytest.param(1, 4 * MINUTE, MINUTE / 2, id="but after the first failure"),
        pytest.param(1, 60 * DAY, MINUTE, id="the first, with time"),
        pytest.param(6, timedelta(), 6 * HOUR, id="nothing left: the ordinary ladder"),
        pytest.param(5, -3 * DAY, 3 * HOUR, id="expired: the ordinary ladder"),
    ],
)
def test_no_longer_than_an_eighth_of_what_is_left(failures: int, remaining: timedelta, pause: timedelta) -> None:
    assert retry_at(failures, NOW, remaining, MIDDLE) == NOW + pause


@pytest.mark.parametrize(
    ("failures", "remaining", "wish", "pause"),
    [
        pytest.param(1, 60 * DAY, 7200.0, 2 * HOUR, id="longer than the step"),
        pytest.param(6, 60 * DAY, 60.0, 6 * HOUR, id="shorter than the step"),
        pytest.param(3, 2 * HOUR, 3 * 3600.0, 3 * HOUR, id="longer than all that is left"),
        pytest.param(1, 60 * DAY, 7 * 86400.0, 7 * DAY, id="a week's limit"),
        pytest.param(1, 60 * DAY, 1e12, 8 * DAY, id="a mistake"),
        pytest.param(1, 60 * DAY, float("inf"), 8 * DAY, id="never"),
        pytest.param(1, 60 * DAY, 0.0, MINUTE, id="at once"),
    ],
)
def test_the_ca_is_heeded(failures: int, remaining: timedelta, wish: float, pause: timedelta) -> None:
    assert retry_at(failures, NOW, remaining, MIDDLE, wish) == NOW + pause


@pytest.mark.parametrize("remaining", [60 * DAY, 2 * DAY, timedelta()])
def test_a_name_that_never_works_stays_below_five_failed_validations_an_hour(remaining: timedelta) -> None:
    """Let's Encrypt's limit, with dice that always say: sooner."""
    at, attempts = NOW, [NOW]
    for failures in range(1, 20):
        at = retry_at(failures, at, remaining, 0.0)
        attempts.append(at)
    assert all(fifth - first > HOUR for first, fifth in zip(attempts, attempts[4:], strict=False))


# ---- an earlier failure -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "holds"),
    [
        (NOW - timedelta(seconds=1), False),  # the clock was ahead when it failed
        (NOW, True),
        (NOW + 9 * MINUTE, True),
        (NOW + 10 * MINUTE, False),
        (NOW + DAY, False),
    ],
)
def test_a_failure_holds_until_the_next_attempt(now: datetime, holds: bool) -> None:
    assert Trouble(2, NOW, NOW + 10 * MINUTE, "x").holds(now) is holds
