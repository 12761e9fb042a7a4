"""What a CA says when it refuses, and what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from trioproxy.acme.problems import (
    MAX_SUBPROBLEMS,
    MAX_TEXT,
    NAMESPACE,
    AcmeProblem,
    AcmeProtocolError,
    AcmeUnreachable,
    Problem,
    http_date,
    passing,
    plain,
    retry_after,
)

# 2026-11-21T09:00:00Z
NOW = 1795251600.0


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize(
    "text",
    [
        "Sat, 21 Nov 2026 09:00:00 GMT",
        "Saturday, 21-Nov-26 09:00:00 GMT",
        "Sat Nov 21 09:00:00 2026",  # no zone is said, and none but UTC is meant
        "Sat, 21 Nov 2026 10:00:00 +0100",  # not HTTP's, but sent
    ],
)
def test_a_date_is_the_same_moment_in_every_zone(text: str) -> None:
    assert http_date(text) == NOW


@pytest.mark.parametrize("text", ["", "soon", "Sat, 99 Nov 2026 09:00:00 GMT", "Sat, 21 Nov 99999 09:00:00 GMT"])
def test_what_is_no_date_is_none(text: str) -> None:
    assert http_date(text) is None


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        (None, None, None),
        ("0", None, 0.0),
        ("120", None, 120.0),
        ("Sat, 21 Nov 2026 09:02:00 GMT", None, 120.0),
        ("Sat, 21 Nov 2026 08:00:00 GMT", None, 0.0),
        # A clock that is a day off, ours or the CA's, does not matter where the CA says what it thinks of now.
        ("Sun, 22 Nov 2026 09:02:00 GMT", "Sun, 22 Nov 2026 09:00:00 GMT", 120.0),
        ("Sat, 21 Nov 2026 09:02:00 GMT", "nonsense", 120.0),
        ("-1", None, None),
        ("1.5", None, None),
        ("1e3", None, None),
        ("\N{SUPERSCRIPT TWO}", None, None),
        ("9" * 400, None, None),
        ("later", None, None),
    ],
)
def test_retry_after(value: str | None, date: str | None, seconds: float | None) -> None:
    assert retry_after(value, date, NOW) == seconds


def test_a_problem_is_read() -> None:
    problem = Problem.parse(
        {
            "type": NAMESPACE + "compound",
            "detail": "several things are wrong",
            "status": 418,
            "subproblems": [
                {
                    "type": NAMESPACE + "caa",
                    "detail": "CAA forbids a.test",
                    "identifier": {"type": "dns", "value": "a.test"},
                },
                {"type": NAMESPACE + "dns", "detail": "b.test does not resolve"},
            ],
        },
        status=403,
        retry_after=5.0,
    )
    assert (problem.kind, problem.status, problem.retry_after) == ("compound", 403, 5.0)
    assert [part.kind for part in problem.subproblems] == ["caa", "dns"]
    assert problem.words() == "several things are wrong (CAA forbids a.test; b.test does not resolve)"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "HTTP status 503"),
        ([], "HTTP status 503"),
        ({}, "HTTP status 503"),
        ({"type": 7, "detail": ["x"], "subproblems": {"a": 1}}, "HTTP status 503"),
        ({"type": "about:blank"}, "about:blank"),
        ({"type": NAMESPACE + "serverInternal"}, "serverInternal"),
        ({"detail": "busy", "subproblems": [1, None, {"detail": 3}]}, "busy"),
    ],
)
def test_an_incomplete_problem_is_a_problem_all_the_same(value: object, words: str) -> None:
    assert Problem.parse(value, status=503).words() == words


def test_a_problem_inside_another_object_keeps_the_status_it_names() -> None:
    assert Problem.parse({"status": 403}).status == 403
    assert Problem.parse({"status": True}).status == 0
    assert Problem.parse({}).words() == "it gives no reason"


def test_texts_of_the_ca_are_one_clean_line_of_bounded_length() -> None:
    assert plain("a\r\nb\x1b[31mc\u202ed\ud800\N{SNOWMAN}") == "a  b [31mc d \N{SNOWMAN}"
    assert len(plain("x" * 10_000)) == MAX_TEXT
    assert plain("x" * MAX_TEXT) == "x" * MAX_TEXT
    problem = Problem.parse({"type": "a\nb", "detail": "c\nd", "subproblems": [{"detail": "e\nf"}] * 1000})
    assert "\n" not in problem.kind + problem.words()
    assert len(problem.subproblems) == MAX_SUBPROBLEMS


@pytest.mark.parametrize(
    ("status", "kind", "limited", "passes"),
    [
        (429, "rateLimited", True, True),
        (503, "rateLimited", True, True),
        (429, "", True, True),
        (503, "", False, True),
        (500, "serverInternal", False, True),
        (403, "unauthorized", False, False),
        (400, "malformed", False, False),
    ],
)
def test_what_a_refusal_means_for_the_next_attempt(status: int, kind: str, limited: bool, passes: bool) -> None:
    error = AcmeProblem("an order", Problem.parse({"type": NAMESPACE + kind}, status, 7.0))
    assert error.rate_limited is limited
    assert passing(error) is passes
    assert error.retry_after == 7.0
    assert not error.validation_failed
    assert str(error).startswith("the CA refused an order: ")


def test_the_network_passes_and_nonsense_does_not() -> None:
    assert passing(AcmeUnreachable("no route"))
    assert not passing(AcmeProtocolError("no JSON"))
