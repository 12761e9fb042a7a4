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


def test_who_presents_an_answer_is_told_who_has_got_it() -> None:
    board = ChallengeBoard()
    with board.present("a.test", "token", "token.key") as shown, board.present_in_tls("a.test", b"proof") as in_tls:
        assert [board.shown("token.key", host) for host in ("192.0.2.1", "192.0.2.2", "192.0.2.1")] == [True] * 3
        assert board.shown(b"proof", "192.0.2.3")
        assert (shown, in_tls) == ({"192.0.2.1", "192.0.2.2"}, {"192.0.2.3"})
    assert not board.shown("token.key", "192.0.2.1")


def test_a_copy_of_the_board_has_nobody_to_tell() -> None:
    board, copy = ChallengeBoard(), ChallengeBoard()
    with board.present("a.test", "token", "token.key") as shown:
        copy.copy(board.contents())
        assert copy.answer("a.test", HTTP01_PREFIX + "token") == "token.key"
        assert not copy.shown("token.key", "192.0.2.1")
        assert not shown
