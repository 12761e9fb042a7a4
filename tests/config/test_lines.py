"""Where keys stand."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.config.lines import Lines, Place, dotted_key

TEXT = '''\
# [not] = a table
top = 1            # = "comment"

[listen]
https = [          # a list
    "a",
    # between
    "b", "c",
]
text = """
[not]
key = "no"
"""
raw = \'\'\'
x = 'y'
\'\'\'
after = 1.5

[sites."cloud.myname.com"]
"/" = "http://b"
"a\\u0062\\"]" = { x = 1, "y.z" = { deep = [ { k = 2 } ] } }
'lit = [' = 1979-05-27 07:32:00

[a.b]
c.d . "e" = true
[[many]]
one = 1
[[many]]
two = 2
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("top",), 2),
        (("listen",), 4),
        (("listen", "https"), 5),
        (("listen", "https", 0), 6),
        (("listen", "https", 1), 8),
        (("listen", "https", 2), 8),
        (("listen", "text"), 10),
        (("listen", "raw"), 14),
        (("listen", "after"), 17),
        (("sites",), 19),
        (("sites", "cloud.myname.com"), 19),
        (("sites", "cloud.myname.com", "/"), 20),
        (("sites", "cloud.myname.com", 'ab"]'), 21),
        (("sites", "cloud.myname.com", 'ab"]', "y.z", "deep", 0, "k"), 21),
        (("sites", "cloud.myname.com", "lit = ["), 22),
        (("a",), 24),
        (("a", "b"), 24),
        (("a", "b", "c"), 25),
        (("a", "b", "c", "d", "e"), 25),
        (("many",), 26),
        (("many", 0, "one"), 27),
        (("many", 1), 28),
        (("many", 1, "two"), 29),
        # What is not there is where the nearest thing around it is.
        (("listen", "https", 7), 5),
        (("listen", "key"), 4),
        (("nowhere", "x"), 0),
        ((), 0),
    ],
)
def test_each_key_has_its_line(place: Place, line: int) -> None:
    assert Lines(TEXT).of(place) == line
    assert Lines(TEXT.replace("\n", "\r\n")).of(place) == line


def places(value: object, place: Place = ()) -> list[Place]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in [(*place, key), *places(item, (*place, key))]]
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        return [(*place, index) for index in range(len(value))]
    return []


def test_nothing_that_tomllib_finds_is_missed() -> None:
    text = TEXT.partition("[[many]]")[0]
    lines = Lines(text)
    for place in places(tomllib.loads(text)):
        assert lines.of((*place, "x")) == lines.of(place) > 0


@given(st.lists(st.text(alphabet="ab.\"'[]{}=,#\\ \n\r\t1é", max_size=30), max_size=4).map("\n".join))
def test_what_tomllib_accepts_is_followed_and_all_else_survived(text: str) -> None:
    lines = Lines(text)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    for key in document:
        assert 1 <= lines.of((key,)) <= text.count("\n") + 1
    assert lines.twice == []


def test_keys_that_are_there_twice_are_known() -> None:
    assert Lines('[a]\nx = 1\n"x" = 2\n[b]\nx = 1\n[a]\n').twice == [(("a", "x"), 3), (("a",), 6)]
    assert Lines("[[a]]\n[[a]]\n").twice == []


def test_whether_a_key_was_written_behind_a_dot() -> None:
    lines = Lines('[sites.cloud.myname]\ncom = 1\na.b = 1\n[sites]\n"x.y" = 1')
    assert lines.dotted(("sites", "cloud", "myname"))
    assert lines.dotted(("sites", "cloud", "myname", "a", "b"))
    assert not lines.dotted(("sites", "cloud", "myname", "com"))
    assert not lines.dotted(("sites", "x.y"))


def test_an_entry_is_found_by_its_normalised_name() -> None:
    lines = Lines('[sites]\n"Cloud.MyName.com." = 1\n"a b" = 1\n[passthrough]\n"cloud.myname.com" = 2')
    assert lines.written(("sites", "cloud.myname.com", "tls")) == ("sites", "Cloud.MyName.com.", "tls")
    assert lines.written(("sites", "other.myname.com", "tls")) == ("sites", "other.myname.com", "tls")
    assert lines.written(("acme", "ca_file")) == ("acme", "ca_file")


def test_keys_are_shown_as_they_are_written() -> None:
    assert dotted_key(("sites", "cloud.myname.com", "aliases", 2)) == 'sites."cloud.myname.com".aliases'
    assert dotted_key(("a-b_1", "x\ny", "ü")) == 'a-b_1."x\\ny"."ü"'
