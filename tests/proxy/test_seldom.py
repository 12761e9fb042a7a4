"""What is due once in a while."""

from __future__ import annotations

from trioproxy.proxy.seldom import MOST, Seldom


def test_each_has_its_turn_once_in_a_while() -> None:
    seldom = Seldom(10)
    assert seldom.due("a", 0)
    assert not seldom.due("a", 9.9)
    assert seldom.due("b", 9.9)
    assert seldom.due("a", 10)
    assert not seldom.due("a", 19)


def test_it_remembers_a_thousand() -> None:
    seldom = Seldom(10)
    for number in range(MOST + 1):
        assert seldom.due(number, 0)
    assert seldom.due(0, 1)
    assert not seldom.due(MOST, 1)
