"""How a request or a tunnel is one line of the access log: for people, as JSON, as nginx writes it.

What comes from clients is escaped by the rules of each format, so that one event is one line, whatever is in it. Of the
fields of a request only Referer and User-Agent are written, and of Authorization the user's name where that is Basic.
"""

from __future__ import annotations

import base64
import functools
import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quoted
from typing import Literal, Protocol

from trioproxy.http.messages import Headers
from trioproxy.logs import one_line
from trioproxy.witness.records import DONE, Exchange, Passage

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Format(Protocol):
    """Makes lines, each with its end; `now` is the wall clock's time. "" is for what this format has no line for."""

    def exchange(self, exchange: Exchange, now: float) -> str:
        """The line for a request."""

    def passage(self, passage: Passage, now: float) -> str:
        """The line for a connection that was passed through."""


def format_of(name: Literal["console", "json", "combined"]) -> Format:
    """The one that `log.access_format` names."""
    formats: dict[str, type[Format]] = {"console": Console, "json": Json, "combined": Combined}
    return formats[name]()


class _Second:
    """A moment as text. Most are of the same second as the one before."""

    def __init__(self, write: Callable[[time.struct_time], str]) -> None:
        self._write = write
        self._second = -1
        self._text = ""

    def of(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            self._text = self._write(time.localtime(second))
        return self._text


class Console:
    """For people."""

    def __init__(self) -> None:
        self._time = _Second(lambda at: time.strftime("%Y-%m-%d %H:%M:%S", at))

    def exchange(self, exchange: Exchange, now: float) -> str:
        """See `Format`."""
        e, request = exchange, exchange.request
        asked = f"{_text(request.method)} {_text(request.target)}" if request is not None else "- -"
        line = (
            f"{self._time.of(now)} #{e.connection} {e.client} {e.name or '-'} {asked} {e.status} {e.sent} B "
            f"{(e.ended - e.began) * 1000:.1f} ms {_words(e.backend)}"
        )
        if e.outcome != DONE:
            line += _why(e)
        return one_line(line) + "\n"

    def passage(self, passage: Passage, now: float) -> str:
        """See `Format`."""
        p = passage
        line = (
            f"{self._time.of(now)} #{p.connection} {p.client} {p.name} passed through {p.up} B up {p.down} B down "
            f"{p.ended - p.began:.1f} s {_words(p.backend)}"
        )
        if p.outcome != DONE:
            line += _why(p)
        return one_line(line) + "\n"


def _why(record: Exchange | Passage) -> str:
    return f" ({record.outcome}: {record.reason})" if record.reason else f" ({record.outcome})"


class Json:
    """An object a line: all keys always, in one order, and null for what is not known."""

    def __init__(self) -> None:
        self._time = _Second(lambda at: time.strftime("%Y-%m-%dT%H:%M:%S", at))
        self._zone = _Second(lambda at: _zone(at, ":"))

    def exchange(self, exchange: Exchange, now: float) -> str:
        """See `Format`."""
        e, request = exchange, exchange.request
        if request is not None:
            referer, agent, user = _said(request.headers)
            major, minor = request.http_version
            asked = (
                f'"method":{_or_null(request.method)},"host":{_or_null(request.authority)},'
                f'"target":{_or_null(request.target)},"version":"{major}.{minor}","user":{_or_null(user)},'
                f'"referer":{_or_null(referer)},"agent":{_or_null(agent)}'
            )
        else:
            asked = '"method":null,"host":null,"target":null,"version":null,"user":null,"referer":null,"agent":null'
        waited = f"{e.answered - e.asked:.6f}" if e.answered and e.asked else "null"
        return (
            f'{{"time":"{self._moment(now)}","type":"request","connection":{e.connection},"client":"{e.client}",'
            f'"name":{quoted(e.name)},"scheme":"{e.scheme}",{asked},"status":{e.status},"received":{e.received},'
            f'"sent":{e.sent},"seconds":{e.ended - e.began:.6f},"backend":{_words_or_null(e.backend)},'
            f'"backend_seconds":{waited},"outcome":"{e.outcome}","reason":{quoted(e.reason)}}}\n'
        )

    def passage(self, passage: Passage, now: float) -> str:
        """See `Format`."""
        p = passage
        return (
            f'{{"time":"{self._moment(now)}","type":"passthrough","connection":{p.connection},"client":"{p.client}",'
            f'"name":{quoted(p.name)},"received":{p.up},"sent":{p.down},"seconds":{p.ended - p.began:.6f},'
            f'"backend":{_words_or_null(p.backend)},"outcome":"{p.outcome}","reason":{quoted(p.reason)}}}\n'
        )

    def _moment(self, now: float) -> str:
        return f"{self._time.of(now)}.{int(now % 1 * 1000):03d}{self._zone.of(now)}"


class Combined:
    """As nginx writes its format `combined`, byte for byte, so that what reads nginx's logs reads these.

    Connections that are passed through hold requests that nobody here can read: they have no line.
    """

    def __init__(self) -> None:
        self._time = _Second(
            lambda at: (
                f"{at.tm_mday:02d}/{MONTHS[at.tm_mon - 1]}/{at.tm_year}:"
                f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} {_zone(at)}"
            )
        )

    def exchange(self, exchange: Exchange, now: float) -> str:
        """See `Format`."""
        e, request = exchange, exchange.request
        asked = referer = agent = user = "-"
        if request is not None:
            said = _said(request.headers)
            major, minor = request.http_version
            asked = f"{_escaped(request.method)} {_escaped(request.target)} HTTP/{major}.{minor}"
            referer, agent, user = ("-" if value is None else _escaped(value) for value in said)
        return f'{e.client} - {user} [{self._time.of(now)}] "{asked}" {e.status:03d} {e.sent} "{referer}" "{agent}"\n'

    def passage(self, passage: Passage, now: float) -> str:  # noqa: ARG002 - there is no such line
        """See `Format`."""
        return ""


# ---- what comes from clients ----------------------------------------------------------------------------


def _said(headers: Headers) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Referer, User-Agent, and the user's name."""
    referer = agent = user = None
    for name, value in headers:
        if name == b"user-agent":
            agent = value if agent is None else agent
        elif name == b"referer":
            referer = value if referer is None else referer
        elif name == b"authorization":
            user = _user(value)
    return referer, agent, user


def _user(authorization: bytes) -> bytes | None:
    """The name in Basic credentials; None where there is none to be found, as nginx has it for $remote_user."""
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, _ = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except ValueError:
        return None
    return name if name and colon else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _or_null(value: bytes | None) -> str:
    return "null" if value is None else quoted(value.decode("utf-8", "backslashreplace"))


@functools.lru_cache(maxsize=1024)  # there are few, and their names are put together anew each time
def _words(backend: object | None) -> str:
    return "-" if backend is None else str(backend)


@functools.lru_cache(maxsize=1024)
def _words_or_null(backend: object | None) -> str:
    return "null" if backend is None else quoted(str(backend))


_NOT_AS_IT_IS = re.compile(r"[^ !#-\[\]-~]")


def _escaped(value: bytes) -> str:
    """As nginx's `escape=default` writes it (ngx_http_log_escape)."""
    text = value.decode("latin-1")
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return _NOT_AS_IT_IS.sub(lambda match: f"\\x{ord(match[0]):02X}", text)


def _zone(at: time.struct_time, colon: str = "") -> str:
    sign = "-" if at.tm_gmtoff < 0 else "+"
    hours, minutes = divmod(abs(at.tm_gmtoff) // 60, 60)
    return f"{sign}{hours:02d}{colon}{minutes:02d}"
