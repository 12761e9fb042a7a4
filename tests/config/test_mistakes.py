"""Every mistake, word for word: these lines are what users have to go by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.config.load import load, parse
from trioproxy.errors import ConfigError, Mistake

GOOD = '[passthrough]\n"good.myname.com" = "10.9.9.9"\n'
"""An entry without a mistake, so that a file has a name."""


def lines(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, Path("config.toml"), {}, 0)
    return [line.removeprefix("config.toml:") for line in caught.value.lines()]


def test_the_contract_s_first_example() -> None:
    text = "\n" * 8 + '[sites.cloud.myname.com]\n"/" = "http://b"'
    with pytest.raises(ConfigError) as caught:
        parse(text, Path("config.toml"), {}, 0)
    assert str(caught.value) == 'config.toml:9: sites.cloud: quote the host name: [sites."cloud.myname.com"]'


def test_the_contract_s_second_example() -> None:
    text = "\n" * 10 + '[sites."home.myname.com"]\n"/" = "http://b"\n"git.myname.com" = "http://c"'
    with pytest.raises(ConfigError) as caught:
        parse(text, Path("config.toml"), {}, 0)
    assert str(caught.value) == (
        'config.toml:13: "git.myname.com" is inside [sites."home.myname.com"], where keys are options or begin with '
        '"/". If it is a site, move it up under [sites]'
    )


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = (
        '[sites]\n"a.b" = "b"\n[timeouts]\nidle = 75\nheader = "0s"\n[acme]\nkeytype = "rsa"\n'
        '[passthrough]\n"A.b" = "10.1.2.3:0"\n[listen]\nhttp = [":80", "x:80"]'
    )
    assert [line.partition(": ")[0] for line in lines(text)] == ["2", "2", "4", "5", "7", "9", "11", "11"]


# ---- host names in the wrong place --------------------------------------------------------------------


def test_every_unquoted_name_of_a_family_is_told() -> None:
    assert lines('[sites]\na.myname.com = "http://b"\na.other.com = "http://b"') == [
        '2: sites.a: quote the host name: "a.myname.com" = …',
        '3: sites.a: quote the host name: "a.other.com" = …',
    ]


def test_a_site_of_one_label_may_have_an_unquoted_relative() -> None:
    assert lines('[sites.home]\n"/" = "http://b"\n[sites.home.myname]\n"/" = "http://b"') == [
        '3: sites.home: quote the host name: [sites."home.myname"]'
    ]


# ---- names that are taken -----------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["Cloud.MyName.COM", "cloud.myname.com.", "CLOUD.myname.com."])
def test_a_name_in_two_spellings(again: str) -> None:
    assert lines(f'[sites]\n"cloud.myname.com" = "http://b"\n"{again}" = "http://c"') == [
        f'3: sites."{again}": is the same name as sites."cloud.myname.com" in line 2: keep one of them'
    ]


def test_a_name_as_it_is_written_and_as_it_is_sent() -> None:
    assert lines('[sites]\n"bücher.example" = "http://b"\n"xn--bcher-kva.example" = "http://c"') == [
        '3: sites."xn--bcher-kva.example": is the same name as sites."bücher.example" in line 2: keep one of them'
    ]


def test_a_name_that_is_both_a_site_and_passed_through() -> None:
    said = "a name is either a site or passed through, keep one of them"
    for first, second in (("", ""), ("*.", "*.")):
        text = (
            f'[sites."{first}pbx.myname.com"]\ntls = "internal"\n"/" = "http://b"\n'
            f'[passthrough]\n"{second}PBX.myname.com" = "10.1.2.3"'
        )
        assert lines(text) == [
            f'1: sites."{first}pbx.myname.com": is also passthrough."{second}PBX.myname.com" in line 5: {said}'
        ]


def test_an_alias_that_is_taken() -> None:
    text = (
        '[sites."a.myname.com"]\n"/" = "http://b"\naliases = [\n"x.myname.com",\n"B.myname.com",\n"p.myname.com",\n'
        '"a.myname.com"]\n[sites]\n"b.myname.com" = { "/" = "http://b", aliases = ["X.myname.com"] }\n'
        '[passthrough]\n"p.myname.com" = "10.1.2.3"'
    )
    said = "a name leads to one place"
    assert lines(text) == [
        f'5: sites."a.myname.com".aliases: "b.myname.com" is taken by sites."b.myname.com" in line 9: {said}',
        f'6: sites."a.myname.com".aliases: "p.myname.com" is taken by passthrough."p.myname.com" in line 11: {said}',
        f'7: sites."a.myname.com".aliases: "a.myname.com" is taken by sites."a.myname.com" in line 1: {said}',
        f'9: sites."b.myname.com".aliases: "x.myname.com" is taken by sites."a.myname.com".aliases in line 4: {said}',
    ]


def test_a_wildcard_that_would_need_dns_01() -> None:
    said = (
        "wildcards need DNS-01, and trioproxy gets its certificates by HTTP-01: "
        'write each name, or set tls = "internal" or tls = { certificate = "x.pem", key = "x.key" }'
    )
    assert lines('[sites]\n"*.apps.myname.com" = "http://b"') == [f'2: sites."*.apps.myname.com": {said}']
    assert lines('[sites]\n"*" = { "/" = "http://b", tls = "acme" }') == [f'2: sites."*": {said}']
    assert lines('[sites."a.b"]\n"/" = "http://b"\naliases = ["*.a.b"]') == [f'3: sites."a.b".aliases: "*.a.b": {said}']


# ---- one mistake a file -------------------------------------------------------------------------------


def transcripts() -> list[tuple[str, list[str]]]:
    """The cases of mistakes.txt."""
    cases = []
    for block in Path(__file__).with_name("mistakes.txt").read_text().split("\n\n"):
        written = [line for line in block.splitlines() if not line.startswith(("=> ", "# "))]
        said = [line.removeprefix("=> ") for line in block.splitlines() if line.startswith("=> ")]
        if said:
            cases.append(("\n".join(written), said))
    return cases


@pytest.mark.parametrize(("text", "said"), transcripts())
def test_what_is_said(text: str, said: list[str]) -> None:
    good = '[passthrough."good.myname.com"]\nto = "10.9.9.9"\n'
    if text.startswith("passthrough ="):
        good = '[sites."good.myname.com"]\n"/" = "http://good"\n'
    assert lines(f"{text}\n{good}") == said


def test_a_wrong_entry_is_no_reason_to_say_that_no_sni_names_nothing() -> None:
    assert len(lines('[listen]\nno_sni = "a.b"\n[sites]\n"a.b" = "b"')) == 1


def test_a_file_without_a_name() -> None:
    for text in ("", "# nothing\n", "[sites]\n[passthrough]\n", '[acme]\nemail = "me@b.c"'):
        assert lines(text) == [" no name is configured: write one under [passthrough] or [sites]"]


def test_no_folder_for_keys() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD, Path("config.toml"), {"XDG_DATA_HOME": "relative"}, 1000)
    assert caught.value.lines() == [
        "config.toml: storage.path: write a folder for keys and certificates: there is no $HOME to keep them in"
    ]


# ---- what is no TOML, or no file ----------------------------------------------------------------------

TEXT = '; put a text in quotes: to = "10.1.2.3"'
QUOTE = '; put what stands before the = in quotes: "/api/" = …'
HEADER = '; put the name in quotes: [sites."*.myname.com"]'
TWICE = "is there twice, first in"
LINE = '; a line is a [section] or key = "value"; # begins a comment'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nto = 10.1.2.3\n", f"2: no valid TOML: expected newline or end of document after a statement{TEXT}"),
        ('[passthrough]\n"a.b" = a.b', f"2: no valid TOML: invalid value{TEXT}"),
        ("[sites]\n/api/ = 1", f"2: no valid TOML: invalid statement{QUOTE}"),
        ("[sites]\n*.a.b = 1", f"2: no valid TOML: invalid statement{QUOTE}"),
        ("[sites.*.a]", f"1: no valid TOML: invalid initial character for a key part{HEADER}"),
        ("a = “b”", '1: no valid TOML: invalid value; the quotes must be straight ones: "'),
        ("reverse proxy", f"1: no valid TOML: expected '=' after a key in a key/value pair{LINE}"),
        ('a = "b\n', "1: no valid TOML: illegal character '\\n'"),
        ('[sites]\n"a.b" = "http://b"\n"a.b" = "http://c"\n', f'3: sites."a.b": {TWICE} line 2: keep one'),
        ('[sites]\n"a.b" = "http://b"\n"a.b" = "http://c"', f'3: sites."a.b": {TWICE} line 2: keep one'),
        ("[log]\n[sites]\n[log]\n", f"3: log: {TWICE} line 1: keep one"),
        ("a = " + "[" * 2000, " lists or tables stand too deep in one another"),
    ],
)
def test_what_is_no_toml(text: str, said: str) -> None:
    assert lines(text) == [said]


def test_a_table_in_braces_over_several_lines() -> None:
    """An error in TOML 1.0; a later Python may read it."""
    text = '[sites]\n"a.b" = {\n  "/" = "http://b"\n}'
    try:
        assert parse(text, Path("config.toml"), {}, 0)
    except ConfigError as exc:
        [line] = exc.lines()
        assert line.startswith("config.toml:2: no valid TOML: ")
        assert line.endswith("; a table in braces ends on the line it begins on: write a [section]")


def survives(text: str) -> None:
    """Whatever `text` is, it is a configuration, or mistakes that lie within it."""
    mistakes: tuple[Mistake, ...] = ()
    try:
        parse(text, Path("config.toml"), {}, 0)
    except ConfigError as exc:
        mistakes = exc.mistakes
    for mistake in mistakes:
        assert 0 <= mistake.line <= text.count("\n") + 1
        assert mistake.problem.isprintable()


PIECES = (
    *("[sites]", "[passthrough]", "[listen]", "[acme]", "[sites.a.b]", "[[sites]]", "https", "to", "tls", "aliases"),
    *("a.b", "=", "=", "=", "[", "]", "{", "}", ",", "1", '"a.b"', '"/"', '"*"', '"http://b"', "'''", '"', "#", "é"),
)


@given(st.lists(st.sampled_from([*PIECES, "\n", "\n", "\n"]), max_size=25).map(" ".join))
def test_no_text_is_too_strange(text: str) -> None:
    survives(text)


SECTIONS = ("listen", "acme", "passthrough", "sites", "timeouts", "limits", "storage", "control", "log", "else")
KEYS = ("https", "email", "hello", "header_size", "path", "socket", "level", "to", "http", "http_to", "aliases", "tls")
NAMES = ("/", "/api/", "a.b", "A.b.", "c", "*.d", "*", "certificate", "key", "no_sni", "key_type", "bücher.example", "")
TEXTS = ("http://b", "10.1.2.3", "[::1]:443", "acme", "internal", "off", "5s", "1KiB", "x.pem", "a.b", "", "\r\n", "é")

scalars = st.sampled_from(TEXTS) | st.booleans() | st.integers(-1, 70000) | st.floats(allow_nan=False)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS + NAMES), inner, max_size=4),
    max_leaves=12,
)


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{as_toml(key)} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


@given(st.dictionaries(st.sampled_from(SECTIONS), anything, max_size=6))
def test_no_value_is_too_strange(document: dict[str, object]) -> None:
    survives("".join(f"{section} = {as_toml(value)}\n" for section, value in document.items()))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path)
        return str(caught.value).removeprefix(str(path))

    assert said(tmp_path / "none.toml") == ": there is no such file"
    assert said(tmp_path) == ": cannot be read: Is a directory"
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'[acme]\n# f\xfcr mich\nemail = ""\n')
    assert said(latin) == ":2: no UTF-8: save the file in that encoding"
