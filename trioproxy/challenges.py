"""The board where ACME hangs the answers to its challenges and port 80 reads them.

`acme` and `proxy` do not know each other; they know this board.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# RFC 8555 section 8.3: base64url, at least 128 bits. The upper bound is ours; CAs use 43 characters.
TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")

HTTP01_PREFIX = "/.well-known/acme-challenge/"


class ChallengeBoard:
    """Live HTTP-01 answers, kept in memory: no file is opened for what a client asks."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], str] = {}

    @contextmanager
    def present(self, name: str, token: str, key_authorization: str) -> Iterator[None]:
        """Answer `token` for the host `name` with `key_authorization`, as long as the block runs."""
        if not TOKEN.fullmatch(token):
            raise ValueError(f"not a token of RFC 8555: {token!r}")
        self._answers[name, token] = key_authorization
        try:
            yield
        finally:
            self._answers.pop((name, token), None)

    def answer(self, name: str, path: str) -> str | None:
        """What to answer a GET of `path` on the normalised host `name`; None when it is no live token of ours."""
        if not path.startswith(HTTP01_PREFIX):
            return None
        return self._answers.get((name, path[len(HTTP01_PREFIX) :]))
