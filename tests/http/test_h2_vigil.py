"""What frames cost, and where they stop: followed by nothing but their heads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.h2_support import POST, PREFACE, Frames
from trioproxy.http.h2_vigil import BUDGET, EACH_SECOND, Vigil
from trioproxy.http.h2_vigil import PREFACE as PREFACE_SIZE

FRAMES = Frames()

PRICED = [
    (FRAMES.headers(1), 0),
    (FRAMES.headers(1, POST, end=False), 0),
    (FRAMES.headers(1, done=False), 0),
    (FRAMES.continuation(1, b"abc"), 5),
    (FRAMES.continuation(1, done=True), 5),
    (FRAMES.data(1, b"abc"), 0),
    (FRAMES.data(1, bytes(0x1_00_00)), 0),  # whose length is in the first of its three bytes
    (FRAMES.data(1, end=True), 0),
    (FRAMES.data(1), 2),
    (FRAMES.padding(1), 2),
    (FRAMES.priority(1), 2),
    (FRAMES.reset(1), 5),
    (FRAMES.settings(), 20),
    (b"\0\0\4\5\4\0\0\0\1\0\0\0\2", 20),  # PUSH_PROMISE
    (FRAMES.ping(), 5),
    (FRAMES.goaway(), 20),
    (FRAMES.window(0, 1), 1),
    (b"\0\0\1\x0b\0\0\0\0\0x", 2),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "price"), PRICED, ids=repr)
def test_each_frame_has_its_price(frame: bytes, price: int) -> None:
    vigil = Vigil()
    vigil.look(frame)
    assert vigil.left == BUDGET - price


@given(chosen=st.lists(st.sampled_from(PRICED), max_size=8), size=st.sampled_from([1, 7, 100]))
def test_it_does_not_matter_how_frames_are_cut(chosen: list[tuple[bytes, int]], size: int) -> None:
    data = PREFACE + b"".join(frame for frame, _ in chosen)
    whole, cut = Vigil(PREFACE_SIZE), Vigil(PREFACE_SIZE)
    whole.look(data)
    for start in range(0, len(data), size):
        cut.look(data[start : start + size])
    assert whole.left == cut.left == BUDGET - sum(price for _, price in chosen)
    assert whole.unfinished == cut.unfinished


def test_what_is_earned_beyond_the_budget_is_forfeit() -> None:
    vigil = Vigil()
    vigil.left += 10 * BUDGET
    for _ in range(100):
        vigil.second()
    for _ in range(BUDGET // 5):
        vigil.look(FRAMES.ping())
    assert vigil.left == 0
    vigil.second()
    assert vigil.left == EACH_SECOND


def test_what_is_missing_has_a_name_that_changes_with_each_frame_but_within_a_block() -> None:
    vigil = Vigil(PREFACE_SIZE)
    names = [vigil.unfinished]
    for data in (PREFACE[:5], PREFACE[5:], FRAMES.ping()[:3], FRAMES.ping()[3:12], FRAMES.ping()[12:]):
        vigil.look(data)
        names.append(vigil.unfinished)
    preface, again, none, head, payload, whole = names
    assert preface == again != 0
    assert none == whole == 0
    assert 0 not in (head, payload)
    assert len({preface, payload}) == 2

    vigil.look(FRAMES.headers(1, done=False))
    block = vigil.unfinished
    assert block not in (0, payload)
    vigil.look(FRAMES.continuation(1, b"abc") + FRAMES.continuation(1, b"abc")[:4])
    assert vigil.unfinished == block
    vigil.look(FRAMES.continuation(1, b"abc")[4:])
    assert vigil.unfinished == block
    vigil.look(FRAMES.continuation(1, done=True))
    assert vigil.unfinished == 0
    vigil.look(FRAMES.data(3, b"abc")[:10])
    assert vigil.unfinished == 0  # inside of a body, which has other limits
