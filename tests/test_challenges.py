"""The board of live challenge answers."""

from __future__ import annotations

import pytest

from trioproxy.challenges import HTTP01_PREFIX, ChallengeBoard


def test_an_answer_is_there_as_long_as_it_is_presented() -> None:
    board = ChallengeBoard()
    with board.present("a.test", "token", "token.key"):
        assert board.answer("a.test", HTTP01_PREFIX + "token") == "token.key"
        assert board.answer("b.test", HTTP01_PREFIX + "token") is None
        assert board.answer("a.test", HTTP01_PREFIX + "other") is None
        assert board.answer("a.test", "/token") is None
    assert board.answer("a.test", HTTP01_PREFIX + "token") is None


def test_an_answer_goes_also_when_the_order_fails() -> None:
    board = ChallengeBoard()
    with pytest.raises(ZeroDivisionError), board.present("a.test", "token", "token.key"):
        raise ZeroDivisionError
    assert board.answer("a.test", HTTP01_PREFIX + "token") is None


@pytest.mark.parametrize("token", ["", "../x", "a/b", "a b", "ä", "x" * 129])
def test_what_is_no_token_is_refused(token: str) -> None:
    board = ChallengeBoard()
    with pytest.raises(ValueError, match="not a token"), board.present("a.test", token, "answer"):
        pass
