"""The vectors of gunicorn's and llhttp's own tests as values: bytes, and what their authors read in them.

Both write bytes in a notation of their own and the outcome beside it: gunicorn in a Python file with a dictionary for
each request, which is read here and not run; llhttp in Markdown, with the log of its parser.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs

from tests.suites import GUNICORN, LLHTTP


@attrs.define
class Message:
    """A message that a suite's authors find in the bytes.

    Attributes:
        start: Method and target of a request; the status of a response.
        body: None where the suite does not tell it in a way that is read here.
    """

    start: tuple[str, ...] = ()
    body: bytes | None = b""


@attrs.frozen
class Vector:
    """One vector.

    Attributes:
        name: The suite's own name for it.
        data: The bytes.
        messages: The whole messages in it.
        ends: How it ends according to the suite: "whole", "error", or "cut" inside a message.
        lenient: It is about something that has to be switched on there.
    """

    name: str
    data: bytes
    messages: tuple[Message, ...]
    ends: str
    lenient: bool


# ---- gunicorn -----------------------------------------------------------------------------------------


def gunicorn() -> list[Vector]:
    """The vectors of gunicorn's `tests/requests`, where the suite is here."""
    sources, wanted = GUNICORN.files(".http"), GUNICORN.files(".py")
    return [_gunicorn(path, data, wanted[path.removesuffix("http") + "py"]) for path, data in sources.items()]


def _gunicorn(path: str, notation: bytes, sidecar: bytes) -> Vector:
    values: dict[str, Any] = {}
    for statement in ast.parse(sidecar).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values[statement.targets[0].id] = _value(statement.value, values)
    asked = values["request"]
    requests = asked if isinstance(asked, list) else [asked] if isinstance(asked, dict) else []
    messages = tuple(
        Message((r["method"], r["uri"]), r["body"] or (None if r["body"] is None else b"")) for r in requests
    )
    return Vector(
        path.removesuffix(".http"),
        _gunicorn_bytes(notation),
        messages,
        "error" if path.startswith("invalid/") else "whole",
        b"cfg.set" in sidecar,
    )


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of the few kinds of expression that those files hold; None for the others."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element, names) for element in node.elts]
    if isinstance(node, ast.Dict):
        return {_value(k, names): _value(v, names) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "uri":
        return _value(node.args[0], names)
    return None


def _gunicorn_bytes(notation: bytes) -> bytes:
    data = notation.replace(b"\n", b"").replace(b"\\r\\n", b"\r\n")
    data = data.replace(b"\\0", b"\0").replace(b"\\n", b"\n").replace(b"\\t", b"\t")
    return re.sub(rb"\\x([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), data)


# ---- llhttp -------------------------------------------------------------------------------------------

_VECTOR = re.compile(
    r"^#+ (?P<name>[^\n]+)\n"
    r"|^<!-- meta=(?P<meta>\{[^\n]*\}) -->\n+```http\n(?P<http>(?:(?!^```).)*)^```\n(?:_[^\n]*\n|\n)*"
    r"```log\n(?P<log>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
_SPAN = re.compile(r'span\[(method|url|status|body)\]="(.*)"$|status=(\d{3})')


def llhttp(kind: str) -> list[Vector]:
    """llhttp's vectors of `request` or `response`, where the suite is here."""
    return [
        vector
        for path, text in LLHTTP.files(".md").items()
        if path.startswith(f"{kind}/")
        for vector in _llhttp_file(path.removeprefix(f"{kind}/").removesuffix(".md"), text.decode())
    ]


def _llhttp_file(file: str, text: str) -> Iterator[Vector]:
    name, seen = "", Counter[str]()
    for found in _VECTOR.finditer(text):
        if found["name"]:
            name = found["name"].replace("`", "")
            continue
        seen[name] += 1
        number = f" ({seen[name]})" if seen[name] > 1 else ""
        messages, ends = _llhttp_log(found["log"])
        lenient = "lenient" in json.loads(found["meta"])["type"]
        yield Vector(f"{file}: {name}{number}", _llhttp_bytes(found["http"]), messages, ends, lenient)


def _llhttp_log(log: str) -> tuple[tuple[Message, ...], str]:
    messages: list[Message] = []
    ends = "whole"
    method = target = status = body = ""
    for line in log.splitlines():
        if line.endswith("message begin"):
            method = target = status = body = ""
            ends = "cut"
        elif "error code=" in line and "Pause on" not in line:  # a pause is how it hands over to another protocol
            return tuple(messages), "error"
        elif line.endswith(" message complete"):
            start = (status,) if status else (method, target)
            messages.append(Message(start, body.encode("latin-1")))
            ends = "whole"
        elif found := _SPAN.search(line):
            if found[1] == "method":
                method += found[2]
            elif found[1] == "url":
                target += found[2]
            elif found[1] == "body":
                body += found[2]
            elif found[3]:
                status = found[3]
        elif line.endswith(("span[body]=cr", "span[body]=lf")):
            body += "\r" if line.endswith("cr") else "\n"
    return tuple(messages), ends


def _llhttp_bytes(notation: str) -> bytes:
    text = notation.removesuffix("\n")
    text = re.sub(r"\\(\r\n|\r|\n)", "", text)
    text = re.sub(r"\r\n|\r|\n", "\r\n", text)
    for written, meant in ((r"\r", "\r"), (r"\n", "\n"), (r"\t", "\t"), (r"\f", "\f")):
        text = text.replace(written, meant)
    text = re.sub(r"\\x([0-9a-fA-F]+)", lambda found: chr(int(found[1], 16)), text)
    text = re.sub(r"\\([0-7]{1,3})", lambda found: chr(int(found[1], 8)), text)
    return text.encode("latin-1", "xmlcharrefreplace")
