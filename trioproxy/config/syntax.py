"""What to say about a text that is no TOML.

`tomllib` stops at the first error and speaks of grammar. Most such errors are one of a few, told by the look of their
line, and then there is something better to say.
"""

from __future__ import annotations

import re

from trioproxy.config.lines import Lines, dotted_key
from trioproxy.errors import Mistake

_WHERE = re.compile(r" \((?:at line ([0-9]+), column [0-9]+|at end of document)\)$")

_KEY = r"""\s*(?:[\w.-]|"[^"]*"|'[^']*')+\s*"""

HINTS = (
    (re.compile(r".*[“”„‘’«»]"), 'the quotes must be straight ones: "'),
    (
        re.compile(rf"""{_KEY}=\s*\{{[^}}]*$"""),
        "a table in braces ends on the line it begins on: write a [section]",
    ),
    (re.compile(r"""\s*\[[^\]"']*[^\w\s.\]"'\[-]"""), 'put the name in quotes: [sites."*.myname.com"]'),
    (re.compile(r"""\s*[^\s\w"'\[#=-][^\s"'=]*\s*="""), 'put what stands before the = in quotes: "/api/" = …'),
    (re.compile(rf"""{_KEY}=\s*[^\s"'\[{{#]"""), 'put a text in quotes: to = "10.1.2.3"'),
    (re.compile(r"""[^=]*$"""), 'a line is a [section] or key = "value"; # begins a comment'),
)
"""What a line looks like, and what is probably wrong with it."""


def explain(text: str, error: ValueError | RecursionError) -> Mistake:
    """The mistake that `tomllib` found in `text` and reported by `error`."""
    if isinstance(error, RecursionError):
        return Mistake(0, "", "lists or tables stand too deep in one another")
    said = str(error)
    found = _WHERE.search(said)
    said = said[: found.start()] if found else said
    line = int(found[1]) if found and found[1] else text.rstrip().count("\n") + 1
    lines = Lines(text)
    for place, where in lines.twice:
        if where == line:
            return Mistake(line, dotted_key(place), f"is there twice, first in line {lines.of(place)}: keep one")
    look = (text.splitlines() or [""])[line - 1]
    hint = next((f"; {hint}" for pattern, hint in HINTS if pattern.match(look)), "")
    return Mistake(line, "", f"no valid TOML: {said[:1].lower()}{said[1:]}{hint}")
