"""Reading tables by a list of their keys, and noting every mistake on the way instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from trioproxy.config.lines import Lines, Place, dotted_key, header
from trioproxy.config.values import Reader, Wrong, near, quoted
from trioproxy.errors import Mistake


@attrs.frozen
class Key:
    """A key that a table may have.

    Attributes:
        read: Reads its value.
        many: The value is a list, and `read` reads one item.
        lone: One item may stand there without its list.
        empty: `""` means the same as leaving the key out.
        inner: The value is a table of these keys, or with `many` a list of such tables, and `read` is not asked.
    """

    read: Reader
    many: bool = False
    lone: bool = False
    empty: bool = False
    inner: Keys | None = None


Keys = Mapping[str, Key]
"""The keys of a table, by the name that both the file and the attribute of the model have."""


class Reading:
    """One file being read: its mistakes so far, and where its keys stand (found out at the first mistake).

    Args:
        text: The file's text.
        folder: Where it lies.
        belongs: The section of each key, for keys that are found in the wrong one.
    """

    def __init__(self, text: str, folder: Path, belongs: Mapping[str, str]) -> None:
        self.mistakes: list[Mistake] = []
        self._text = text
        self._folder = folder
        self._belongs = belongs

    @cached_property
    def lines(self) -> Lines:
        """The lines of the file's keys."""
        return Lines(self._text)

    def wrong(self, place: Place, problem: str, key: str | None = None) -> None:
        """Note a mistake at `place`, called `key` if that is not the place's own name."""
        self.mistakes.append(Mistake(self.lines.of(place), dotted_key(place) if key is None else key, problem))

    def value(self, place: Place, read: Reader, value: object) -> Any:
        """What `read` makes of a value, None if it is wrong. A relative path counts from the file's folder."""
        try:
            found = read(value)
        except Wrong as exc:
            self.wrong(place, str(exc))
            return None
        return self._folder / found if isinstance(found, Path) else found

    def values(self, place: Place, read: Reader, value: object) -> tuple[Any, ...] | None:
        """A list of values; None if it is no list or any item is wrong."""
        if not isinstance(value, list):
            self.wrong(place, f"write a list: [{quoted(value)}]" if isinstance(value, str) else "write a list in [ ]")
            return None
        found = tuple(self.value((*place, index), read, item) for index, item in enumerate(value))
        return None if None in found else found

    def table(self, place: Place, value: object, keys: Keys) -> dict[str, Any]:
        """The good values of a table by their keys; every other key is a mistake."""
        if not isinstance(value, dict):
            self.wrong(place, f"write a table: {header(place)}")
            return {}
        found: dict[str, Any] = {}
        for name, item in value.items():
            key = keys.get(name)
            if key is None:
                self.unknown((*place, name), keys)
            elif key.inner is not None:
                found[name] = (self.tables if key.many else self.table)((*place, name), item, key.inner)
            elif not (key.empty and item == ""):
                read = self.values if key.many else self.value
                alone = key.lone and not isinstance(item, list)
                found[name] = read((*place, name), key.read, [item] if alone else item)
        return {name: item for name, item in found.items() if item is not None}

    def tables(self, place: Place, value: object, keys: Keys) -> tuple[dict[str, Any], ...]:
        """The good values of each table of a list."""
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.wrong(place, f"write a list of tables: [{header(place)}] before each")
            return ()
        return tuple(self.table((*place, index), item, keys) for index, item in enumerate(value))

    def unknown(self, place: Place, known: Iterable[str], more: str = "") -> None:
        """Note a key that nothing is known of; `more` says what it might be."""
        known = list(known)
        key = str(place[-1])
        if not more and key in self._belongs:
            more = f"; it belongs under [{self._belongs[key]}]"
        self.wrong(place, f"unknown key{more or near(key, known) or '; known here: ' + ', '.join(known)}")
