"""The board where ACME hangs the answers to its challenges, and ports 80 and 443 read them.

`acme` and `proxy` do not know each other; they know this board.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

# RFC 8555 section 8.3: base64url, at least 128 bits. The upper bound is ours; CAs use 43 characters.
TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")

HTTP01_PREFIX = "/.well-known/acme-challenge/"


class ChallengeBoard:
    """Live answers, kept in memory: no file is opened for what a client asks."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], str] = {}
        self._in_tls: dict[str, bytes] = {}
        self._shown: dict[str | bytes, set[str]] = {}  # by answer: who has got it

    @contextmanager
    def present(self, name: str, token: str, key_authorization: str) -> Iterator[Set[str]]:
        """Answer `token` for the host `name` with `key_authorization`, as long as the block runs.

        It is given the addresses to which that is answered, a set that grows.
        """
        if not TOKEN.fullmatch(token):
            raise ValueError(f"not a token of RFC 8555: {token!r}")
        self._answers[name, token] = key_authorization
        try:
            with self._watched(key_authorization) as shown:
                yield shown
        finally:
            self._answers.pop((name, token), None)

    def answer(self, name: str, path: str) -> str | None:
        """What to answer a GET of `path` on the normalised host `name`; None when it is no live token of ours."""
        if not path.startswith(HTTP01_PREFIX):
            return None
        return self._answers.get((name, path[len(HTTP01_PREFIX) :]))

    @contextmanager
    def present_in_tls(self, name: str, pem: bytes) -> Iterator[Set[str]]:
        """Answer tls-alpn-01 for the host `name` with `pem`, a certificate and its key; otherwise as `present`."""
        self._in_tls[name] = pem
        try:
            with self._watched(pem) as shown:
                yield shown
        finally:
            if self._in_tls.get(name) is pem:
                del self._in_tls[name]

    def answer_in_tls(self, name: str) -> bytes | None:
        """What to show a client that offers nothing but `acme-tls/1` (RFC 8737), PEM; None when nothing is live."""
        return self._in_tls.get(name)

    def shown(self, answer: str | bytes, host: str) -> bool:
        """Note who has got an answer.

        Args:
            answer: Of `answer` or `answer_in_tls`.
            host: Its address.

        Returns:
            Whether whoever presents the answer is here, and tells of it; on a copy of the board nobody is.
        """
        if answer not in self._shown:
            return False
        self._shown[answer].add(host)
        return True

    @contextmanager
    def _watched(self, answer: str | bytes) -> Iterator[Set[str]]:
        shown: set[str] = set()
        self._shown[answer] = shown
        try:
            yield shown
        finally:
            self._shown.pop(answer, None)

    # ---- where several processes answer -------------------------------------------------------------

    async def seen(self) -> None:
        """Wait until all who answer know what hangs here: at once, unless those are other processes."""

    def contents(self) -> dict[str, Any]:
        """All that hangs here, as JSON can say it."""
        return {
            "answers": [[name, token, answer] for (name, token), answer in self._answers.items()],
            "in_tls": {name: pem.decode() for name, pem in self._in_tls.items()},
        }

    def copy(self, contents: dict[str, Any]) -> None:
        """Hang what `contents` says, and nothing else."""
        self._answers = {(name, token): answer for name, token, answer in contents["answers"]}
        self._in_tls = {name: pem.encode() for name, pem in contents["in_tls"].items()}
