"""Log lines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from trioproxy.logs import FREE, MINUTE, MOST, Folding, Folds, JsonLine, OneLine, configure, tell_what_was_folded
from trioproxy.net.listen import Peer


@pytest.mark.parametrize("hostile", ["a\r\nb", "a\x1b[2Jb", "a\u202eb", "a\x00b"])
def test_one_event_is_one_printable_line(hostile: str) -> None:
    record = logging.LogRecord("trioproxy", logging.INFO, __file__, 1, "name %s", (hostile,), None)
    line = OneLine().format(record)
    assert line.isprintable()
    assert line.endswith(hostile.encode("unicode_escape").decode())


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as exc:
        record = logging.LogRecord("trioproxy", logging.ERROR, __file__, 1, "a bug", (), (type(exc), exc, None))
    assert "\n" in OneLine().format(record)


# ---- for programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", ["a\r\nb", "a\x1b[2Jb", "a\u202eb", "a\x00b", "\udcff", '"}'])
def test_json_is_one_object_a_line_whatever_is_in_it(hostile: str) -> None:
    record = logging.LogRecord("trioproxy.http", logging.INFO, __file__, 1, "name %s", (hostile,), None)
    line = JsonLine().format(record)
    assert line.isascii()
    assert line.isprintable()
    told = json.loads(line)
    assert abs(datetime.fromisoformat(told.pop("time")).timestamp() - record.created) < 0.002
    assert told == {"level": "info", "logger": "trioproxy.http", "message": f"name {hostile}"}


def test_json_knows_the_connection_the_name_and_the_traceback() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as exc:
        fault = (type(exc), exc, None)
    record = logging.LogRecord(
        "trioproxy.http", logging.ERROR, __file__, 1, "%s, %s", ("x", Peer("192.0.2.7", 50000, 42)), fault
    )
    record.site = "cloud.test"
    told = json.loads(JsonLine().format(record))
    assert told["message"] == "x, 192.0.2.7:50000 #42"
    assert (told["connection"], told["client"], told["name"]) == (42, "192.0.2.7:50000", "cloud.test")
    assert "ZeroDivisionError" in told["traceback"]


# ---- what is said again ---------------------------------------------------------------------------------


def said(template: str, *arguments: object, level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("trioproxy.test", level, __file__, 1, template, arguments, None)
    record.__dict__.update(extra)
    return record


def hear(folds: Folds, record: logging.LogRecord, now: float) -> list[str]:
    return [told.getMessage() for told in folds.hear(record, now)]


def due(folds: Folds, now: float) -> list[str]:
    return [told.getMessage() for told in folds.due(now)]


def test_a_warning_is_said_once_and_its_count_each_minute_that_it_goes_on() -> None:
    folds = Folds()
    down = said("%s: cannot be reached: %s", "pbx.test", "refused")
    assert hear(folds, down, 0) == ["pbx.test: cannot be reached: refused"]
    assert [hear(folds, down, second) for second in (1, 30, 59)] == [[], [], []]
    assert due(folds, MINUTE - 1) == []
    assert due(folds, MINUTE) == ["pbx.test: cannot be reached: refused … 3 more times in the last minute"]
    assert hear(folds, said("%s: cannot be reached: %s", "pbx.test", "timed out"), 70) == []
    assert due(folds, 2 * MINUTE) == ["pbx.test: cannot be reached: timed out … once more in the last minute"]
    assert due(folds, 3 * MINUTE) == []
    assert hear(folds, down, 3 * MINUTE) == ["pbx.test: cannot be reached: refused"]


def test_what_is_about_something_else_is_something_else() -> None:
    folds = Folds()
    for record in [
        said("%s: down", "one"),
        said("%s: down", "two"),
        said("%s: up", "one"),
        said("%s: down", "one", level=logging.ERROR),
        said("%s: down", "one", about="more than its first argument says"),
        said("all is down"),
    ]:
        assert hear(folds, record, 0) == [record.getMessage()]
        assert hear(folds, record, 1) == []


def test_a_client_s_own_port_makes_no_difference_and_a_minute_between_does() -> None:
    folds = Folds()
    assert hear(folds, said("%s: a bug", Peer("192.0.2.7", 1, 1)), 0)
    assert not hear(folds, said("%s: a bug", Peer("192.0.2.7", 2, 2)), 1)
    assert hear(folds, said("%s: a bug", Peer("192.0.2.8", 2, 3)), 1)
    assert due(folds, 2 * MINUTE)
    assert due(folds, 4 * MINUTE) == []
    assert hear(folds, said("%s: a bug", Peer("192.0.2.7", 1, 4)), 4 * MINUTE)


def test_information_is_folded_only_where_a_client_floods_the_log_with_it() -> None:
    folds = Folds()
    for second in range(100):
        assert hear(folds, said("%s: renewed", "cloud.test", level=logging.INFO), second / 10)
        assert hear(folds, said("%s: detail", Peer("192.0.2.7", 1, second), level=logging.DEBUG), second / 10)
    told = [hear(folds, said("%s: refused", Peer("192.0.2.7", 1, n), level=logging.INFO), 0) for n in range(100)]
    assert [len(lines) for lines in told] == [1] * FREE + [0] * (100 - FREE)
    assert hear(folds, said("%s: refused", Peer("192.0.2.8", 1, 1), level=logging.INFO), 0)
    assert due(folds, MINUTE) == [f"192.0.2.7:1 #99: refused … {100 - FREE} more times in the last minute"]


def test_what_is_remembered_has_a_bound_and_nothing_is_forgotten_untold() -> None:
    folds = Folds()
    for _ in range(2):
        hear(folds, said("%s", 0), 0)
    for number in range(1, MOST):
        assert hear(folds, said("%s", number), 0) == [f"{number}"]
    assert hear(folds, said("%s", MOST), 1) == ["0 … once more in the last minute", f"{MOST}"]
    assert len(folds._said) == MOST


@pytest.fixture
def _log_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("trioproxy")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.mark.usefixtures("_log_as_it_was")
def test_at_the_end_nothing_is_left_unsaid(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("trioproxy").handlers = []
    configure("info")
    log = logging.getLogger("trioproxy.test")
    for _ in range(3):
        log.warning("%s: down", "pbx.test", extra={"site": "pbx.test"})
    tell_what_was_folded()  # whose minute is not over
    configure("warning", "json")
    log.info("%s: down", "pbx.test")
    (handler,) = logging.getLogger("trioproxy").handlers
    assert isinstance(handler, Folding)
    handler.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first.endswith("WARNING pbx.test: down")
    told = json.loads(last)
    assert (told["message"], told["name"]) == ("pbx.test: down … 2 more times in the last minute", "pbx.test")
