"""Which backend is tried first. No clock and no socket: the time is handed in."""

from __future__ import annotations

import logging
import math

import pytest

from trioproxy.config.model import HostPort
from trioproxy.net.failover import Failover

A, B, C = (HostPort(host, 443) for host in ("192.0.2.1", "192.0.2.2", "192.0.2.3"))
ALL = [A, B, C]


def test_the_order_of_the_configuration_counts() -> None:
    failover = Failover[HostPort]()
    assert failover.in_turn(ALL, 0) == ALL
    failover.answered(B)
    assert failover.in_turn(ALL, 0) == ALL


def test_one_that_failed_comes_last_for_ten_seconds() -> None:
    failover = Failover[HostPort]()
    failover.failed(A, "refused", began=0, now=0)
    assert failover.in_turn(ALL, 9.9) == [B, C, A]
    assert failover.in_turn(ALL, 10.1) == ALL


def test_each_further_failure_doubles_the_pause_up_to_a_minute() -> None:
    failover = Failover[HostPort]()
    now = 0.0
    for pause in (10, 20, 40, 60, 60):
        failover.failed(A, "refused", began=now, now=now)
        assert failover.in_turn([A, B], now + pause - 0.1) == [B, A]
        now += pause + 0.1
        assert failover.in_turn([A, B], now) == [A, B]


def test_one_that_answers_is_as_good_as_new() -> None:
    failover = Failover[HostPort]()
    failover.failed(A, "refused", began=0, now=0)
    failover.failed(A, "refused", began=11, now=11)
    failover.answered(A)
    assert failover.in_turn([A, B], 11) == [A, B]
    failover.failed(A, "refused", began=12, now=12)
    assert failover.in_turn([A, B], 22.1) == [A, B]


def test_all_are_tried_in_order_when_all_are_set_aside() -> None:
    failover = Failover[HostPort]()
    for address in (C, A, B):
        failover.failed(address, "refused", began=0, now=0)
    assert failover.in_turn(ALL, 1) == ALL


def test_attempts_that_ran_beside_each_other_count_as_one_failure() -> None:
    failover = Failover[HostPort]()
    for now in (5.0, 5.1, 5.2):
        failover.failed(A, "no answer", began=0, now=now)
    assert failover.in_turn([A, B], 15.1) == [A, B]


def test_after_a_pause_one_tries_and_the_others_do_not_wait_with_it() -> None:
    failover = Failover[HostPort]()
    failover.failed(A, "no answer", began=0, now=0)
    assert failover.in_turn([A, B], 11) == [A, B]
    failover.begin(A, 11, patience=5)
    assert failover.in_turn([A, B], 12) == [B, A]
    assert failover.in_turn([A, B], 16.1) == [A, B], "who tried may have been cancelled"


def test_one_who_tries_without_a_limit_does_not_keep_the_others_away_for_ever() -> None:
    failover = Failover[HostPort]()
    failover.failed(A, "no answer", began=0, now=0)
    failover.begin(A, 11, patience=math.inf)
    assert failover.in_turn([A, B], 71.1) == [A, B]


def test_beginning_with_a_healthy_one_sets_it_aside_for_nobody() -> None:
    failover = Failover[HostPort]()
    failover.begin(A, 0, patience=5)
    assert failover.in_turn([A, B], 1) == [A, B]


def test_the_log_tells_changes_and_only_those(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failover = Failover[HostPort]()
    for now in (0, 1, 2, 20, 40):
        failover.failed(A, "192.0.2.1:443: Connection refused", began=now, now=now)
    failover.answered(A)
    failover.answered(A)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "192.0.2.1:443: Connection refused: set aside, others are tried first for 10 s"),
        ("INFO", "192.0.2.1:443 answers again"),
    ]


def test_what_is_configured_no_more_is_forgotten() -> None:
    failover = Failover[HostPort]()
    failover.failed(A, "refused", began=0, now=0)
    failover.failed(B, "refused", began=601, now=601)
    assert set(failover._troubles) == {B}


def test_those_that_are_ready_and_when_the_next_one_is() -> None:
    failover = Failover[HostPort]()
    failover.failed(A, "refused", began=0, now=0)
    failover.failed(C, "refused", began=4, now=4)
    assert failover.ready(ALL, 5) == [B]
    assert failover.pause([A, C], 5) == 5
    assert failover.pause([A, C], 11) == 0
    assert failover.ready(ALL, 11) == [A, B]
