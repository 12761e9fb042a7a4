from __future__ import annotations

import pytest

from trioproxy.http.fields import FieldError, framing, options, parse_fields


@pytest.mark.parametrize(
    ("lengths", "codings", "version", "means"),
    [
        ([], [], (1, 1), None),
        ([b"0"], [], (1, 1), 0),
        ([b"5"], [], (1, 0), 5),
        ([b"0000000000000000005"], [], (1, 1), 5),
        ([b"9223372036854775807"], [], (1, 1), 9223372036854775807),
        ([], [b"chunked"], (1, 1), "chunked"),
        ([], [b"CHUNKED"], (1, 1), "chunked"),
    ],
)
def test_framing(lengths: list[bytes], codings: list[bytes], version: tuple[int, int], means: int | str | None) -> None:
    assert framing(lengths, codings, version) == means


@pytest.mark.parametrize(
    ("lengths", "codings", "version"),
    [
        ([b"5"], [b"chunked"], (1, 1)),
        ([], [b"chunked"], (1, 0)),
        ([], [b"chunked", b"chunked"], (1, 1)),
        ([], [b"gzip, chunked"], (1, 1)),
        ([], [b"gzip"], (1, 1)),
        ([], [b""], (1, 1)),
        ([b"5", b"5"], [], (1, 1)),
        ([b"5,5"], [], (1, 1)),
        ([b"+5"], [], (1, 1)),
        ([b"-5"], [], (1, 1)),
        ([b"0x5"], [], (1, 1)),
        ([b"1_0"], [], (1, 1)),
        ([b" 5"], [], (1, 1)),
        ([b""], [], (1, 1)),
        ([b"\xb2"], [], (1, 1)),
        ([b"9223372036854775808"], [], (1, 1)),
        ([b"00000000000000000005"], [], (1, 1)),
        ([b"5" * 5000], [], (1, 1)),
    ],
)
def test_framing_is_judged_without_llhttp(lengths: list[bytes], codings: list[bytes], version: tuple[int, int]) -> None:
    with pytest.raises(FieldError):
        framing(lengths, codings, version)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n",
    ],
)
def test_what_fields_mean_does_not_stop_their_reading(lines: bytes) -> None:
    for _ in range(2):
        assert len(parse_fields(lines + b"A: b\r\n\r\n")) == lines.count(b"\n") + 1


def test_options() -> None:
    assert options([b"Close, ,\tX-Foo ", b"", b"Upgrade"]) == [b"close", b"x-foo", b"upgrade"]
