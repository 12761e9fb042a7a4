"""Log lines."""

from __future__ import annotations

import logging

import pytest

from trioproxy.logs import OneLine


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
