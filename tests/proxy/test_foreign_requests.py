"""The request vectors of gunicorn's and llhttp's own tests, sent byte for byte to a site.

Behind it is a backend that records what it gets and reads it with h11, which is neither theirs nor ours. What must be
refused never reaches it as a whole request; what is valid reaches it as the request that the suite's authors read.
Where we judge otherwise than they do, a table says so and why; whoever changes our strictness finds it here.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from tests.http.foreign import Vector, gunicorn, llhttp
from tests.proxy.foreign_policy import GUNICORN_DIFFERS, LLHTTP_DIFFERS, Ours
from tests.proxy.recorded import Scene, recorded
from tests.suites import GUNICORN, LLHTTP


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with recorded() as scene:
        yield scene


_REQUEST_LINE = re.compile(rb"^([!-~]+ (?:https?://([^/?\s]*))?[^\r\n]* HTTP/1\.[01]\r\n)", re.MULTILINE)


def hosted(vector: Vector) -> bytes:
    """The bytes, with a Host where there is none: parsers do not ask for it, a server must (RFC 9112 section 3.2)."""
    if re.search(rb"^host:", vector.data, re.IGNORECASE | re.MULTILINE):
        return vector.data
    heads = len(vector.messages) + (vector.ends != "whole")
    return _REQUEST_LINE.sub(
        lambda found: found[1] + b"Host: " + (found[2] or b"a.example") + b"\r\n", vector.data, count=heads
    )


def origin_form(target: str) -> str:
    """How a target in absolute form is passed on."""
    path = re.sub(r"^https?://[^/?]*", "", target)
    return path if path.startswith("/") or path == "*" else "/" + path


def expected(vector: Vector, differs: dict[str, Ours]) -> Ours:
    """What becomes of a vector: the suite's verdict, unless we differ. We have no lenient mode."""
    if vector.name in differs:
        return differs[vector.name]
    if vector.lenient:
        return Ours(0, 400, "what is lenient there is refused here")
    return Ours(len(vector.messages), 400 if vector.ends == "error" else 0, "as they have it")


async def judged(scene: Scene, vector: Vector, ours: Ours) -> None:
    statuses = await scene.tell(hosted(vector), ours.requests + bool(ours.status))
    assert statuses == [200] * ours.requests + [ours.status] * bool(ours.status)
    seen = scene.asked.whole
    assert len(seen) == ours.requests
    for got, meant in zip(seen, vector.messages if ours.reads is None else ours.reads, strict=False):
        assert got.start == (meant.start[0], origin_form(meant.start[1]))
        assert meant.body is None or got.body == meant.body
    if ours.status and not ours.requests and not ours.begun:
        assert not scene.recording.connections  # not one byte


@pytest.mark.skipif(bool(GUNICORN.missing), reason=GUNICORN.missing)
@pytest.mark.parametrize("vector", gunicorn(), ids=lambda vector: vector.name)
async def test_gunicorn(scene: Scene, vector: Vector) -> None:
    await judged(scene, vector, expected(vector, GUNICORN_DIFFERS))


@pytest.mark.skipif(bool(LLHTTP.missing), reason=LLHTTP.missing)
@pytest.mark.parametrize("vector", llhttp("request"), ids=lambda vector: vector.name)
async def test_llhttp(scene: Scene, vector: Vector) -> None:
    await judged(scene, vector, expected(vector, LLHTTP_DIFFERS))


@pytest.mark.skipif(bool(GUNICORN.missing or LLHTTP.missing), reason=GUNICORN.missing or LLHTTP.missing)
def test_the_tables_name_vectors_that_there_are() -> None:
    assert not GUNICORN_DIFFERS.keys() - {vector.name for vector in gunicorn()}
    assert not LLHTTP_DIFFERS.keys() - {vector.name for vector in llhttp("request")}


async def test_a_request_without_host_is_refused(scene: Scene) -> None:
    """What `hosted` takes out of the vectors' way."""
    assert await scene.tell(b"GET / HTTP/1.1\r\n\r\n", 1) == [400]
    assert not scene.recording.connections
