"""Where in a TOML text each key stands. `tomllib` does not tell, and a mistake without a line is hard to find.

This is no second TOML parser: it reads a text that `tomllib` has accepted, or the part of one before a syntax error,
and only follows its keys. So it takes values for granted, stops without a word where it understands nothing more, and
costs one pass over the text; it runs only when there is a mistake to report.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Iterator

import attrs

from trioproxy.config.values import Wrong, entry_name, quoted

Place = tuple[str | int, ...]
"""The keys that lead to a value, and the indices of the lists between."""

_TOKEN = re.compile(
    r'''
      (?P<space>   [ \t]+ | \#[^\n]* )
    | (?P<newline> \r?\n )
    | (?P<text>    """ (?: "{0,2} (?: [^"\\] | \\. ) )* "{3,5}
                 | \'\'\' (?: '{0,2} [^'] )* '{3,5}
                 | " (?: [^"\\\n] | \\. )* "
                 | ' [^'\n]* ' )
    | (?P<mark>    [\[\]{},=.] )
    | (?P<bare>    [^\s\[\]{},=.\#"']+ )
    ''',
    re.VERBOSE | re.DOTALL,
)


@attrs.frozen
class _Token:
    kind: str
    text: str
    line: int


_END = _Token("end", "", 0)


class _Lost(Exception):
    """The text makes no sense from here on."""


class Lines:
    """The lines of all keys and list items of one text."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Place, int] = {}
        self._written: dict[Place, int] = {}  # how many dots the key had that a value or table was last written by
        self._tokens = _tokens(text)
        self._token = _END
        self._tables: dict[Place, int] = {}  # how many tables there are so far of each `[[list.of.them]]`
        self.twice: list[tuple[Place, int]] = []
        """Keys that are written a second time, each with the line where that happens."""
        self._advance()
        with contextlib.suppress(_Lost):
            self._document()

    def of(self, place: Place) -> int:
        """The line where a place begins, or the nearest place around it; 0 for the text as a whole."""
        while place:
            if place in self._lines:
                return self._lines[place]
            place = place[:-1]
        return 0

    def has(self, place: Place) -> bool:
        """Whether the text has that very place."""
        return place in self._lines

    def written(self, place: Place) -> Place:
        """The place whose second key is the normalised name of an entry, with that key as the file has it."""
        for known in self._lines:
            if len(known) == 2 and known[0] == place[0] and _normalised(str(known[1])) == place[1]:
                return (*known, *place[2:])
        return place

    def dotted(self, place: Place) -> bool:
        """Whether the place's last key was written behind a dot, `a.b = …` or `[a.b]`."""
        return self._written.get(place, 0) > 0

    # ---- following the text -------------------------------------------------------------------------

    def _advance(self) -> _Token:
        """The current token; the next one becomes current."""
        token = self._token
        self._token = next(self._tokens, _END)
        return token

    def _at(self, mark: str) -> bool:
        return self._token.kind == "mark" and self._token.text == mark

    def _take(self, mark: str) -> bool:
        if self._at(mark):
            self._advance()
            return True
        return False

    def _need(self, mark: str) -> None:
        if not self._take(mark):
            raise _Lost

    def _skip_newlines(self) -> None:
        while self._token.kind == "newline":
            self._advance()

    def _document(self) -> None:
        table: Place = ()
        while True:
            self._skip_newlines()
            if self._token is _END:
                return
            if self._take("["):
                repeated, line = self._take("["), self._token.line
                table = self._key((), again=repeated)
                self._need("]")
                if repeated:
                    self._need("]")
                    index = self._tables[table] = self._tables.get(table, -1) + 1
                    table = (*table, index)
                    self._lines[table] = line
            else:
                place = self._key(table)
                self._need("=")
                self._value(place)

    def _key(self, table: Place, again: bool = False) -> Place:
        """Read a key and note it, below `table`; `again` says that it may be written several times."""
        line = self._token.line
        parts = [_part(self._advance())]
        while self._take("."):
            parts.append(_part(self._advance()))
        for end in range(1, len(parts)):
            self._lines.setdefault(self._below(table, parts[:end]), line)
        place = self._below(table, parts)
        if place in self._written and not again:
            self.twice.append((place, line))
        self._lines.setdefault(place, line)
        self._written.setdefault(place, len(parts) - 1)
        return place

    def _below(self, table: Place, parts: list[str]) -> Place:
        """The place `parts` below `table`; of a list of tables on the way, its last one is meant."""
        place = table
        for number, part in enumerate(parts):
            place = (*place, part)
            if place in self._tables and number < len(parts) - 1:
                place = (*place, self._tables[place])
        return place

    def _value(self, place: Place) -> None:
        if self._take("["):
            self._list(place)
        elif self._take("{"):
            self._table(place)
        else:
            self._advance()
            while self._at(".") or self._token.kind == "bare":  # 1.5, 1979-05-27 07:32:00
                self._advance()

    def _list(self, place: Place) -> None:
        index = 0
        self._skip_newlines()
        while not self._take("]"):
            if self._token is _END:
                raise _Lost
            self._lines[*place, index] = self._token.line
            self._value((*place, index))
            index += 1
            self._skip_newlines()
            self._take(",")
            self._skip_newlines()

    def _table(self, place: Place) -> None:
        self._skip_newlines()
        while not self._take("}"):
            inner = self._key(place)
            self._need("=")
            self._value(inner)
            self._skip_newlines()
            self._take(",")
            self._skip_newlines()


def _tokens(text: str) -> Iterator[_Token]:
    line, at = 1, 0
    while found := _TOKEN.match(text, at):
        kind = found.lastgroup or ""
        if kind != "space":
            yield _Token(kind, found[0], line)
        line += found[0].count("\n")
        at = found.end()


def _normalised(key: str) -> str:
    try:
        return entry_name(key)
    except Wrong:
        return key


def _part(token: _Token) -> str:
    if token.kind == "bare":
        return token.text
    if token.kind != "text" or token.text.startswith(('"""', "'''")):
        raise _Lost
    if token.text.startswith('"') and "\\" in token.text:
        try:
            return str(tomllib.loads(f"text = {token.text}")["text"])
        except tomllib.TOMLDecodeError:
            raise _Lost from None
    return token.text[1:-1]


# ---- saying where -------------------------------------------------------------------------------------

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dotted_key(place: Place) -> str:
    """A place as one writes it, `sites."cloud.myname.com".http`; indices of lists are left to the line."""
    keys = (part for part in place if isinstance(part, str))
    return ".".join(key if _BARE.fullmatch(key) else quoted(key) for key in keys)


def header(place: Place) -> str:
    """A place as the header of a table, `[sites."cloud.myname.com"]`."""
    return f"[{dotted_key(place)}]"
