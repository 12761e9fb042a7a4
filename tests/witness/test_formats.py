"""Lines of the access log: what they hold, what they never hold, and that one event is one of them."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import needs
from tests.proxy.stage import HELLO, LOOPBACK, Recording, backend, make_config, read_until, rest, site, stage
from tests.witness.hearing import Ear
from trioproxy.config.model import HostPort
from trioproxy.http.messages import RequestHead
from trioproxy.witness.formats import Combined, Console, Format, Json
from trioproxy.witness.records import CLIENT_LEFT, DONE, Exchange, Passage

SITE = "cloud.test"
NOW = 1795270025.678

FORMATS = [Console, Json, Combined]


@pytest.fixture(autouse=True)
def _somewhere_west(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a zone whose hours are not those of UTC, by a half one too."""
    monkeypatch.setenv("TZ", "NST3:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def head(**changes: object) -> RequestHead:
    headers = [(b"user-agent", b"curl/8"), (b"referer", b"https://other.test/"), (b"cookie", b"session=SECRET")]
    return attrs.evolve(RequestHead(b"GET", b"/x?y=1", b"cloud.test", headers), **changes)  # type: ignore[arg-type]


def exchange(**changes: object) -> Exchange:
    told = Exchange(42, "203.0.113.9", "https", 10.0, head())
    said = {
        "name": SITE, "backend": "http://10.2.3.4", "asked": 10.001, "answered": 10.01, "ended": 10.0123,
        "status": 200, "received": 3, "sent": 1234,
    }  # fmt: skip
    vars(told).update(said | changes)
    return told


def passage(**changes: object) -> Passage:
    told = Passage(7, "2001:db8::9", "pbx.test", HostPort("10.1.2.3", 443), 10.0, 70.5, up=517, down=4096)
    return attrs.evolve(told, **changes)  # type: ignore[arg-type]


# ---- what they hold -------------------------------------------------------------------------------------


def test_people_read_who_asked_for_what_and_how_it_went() -> None:
    lines = Console()
    assert lines.exchange(exchange(), NOW) == (
        "2026-11-21 10:37:05 #42 203.0.113.9 cloud.test GET /x?y=1 200 1234 B 12.3 ms http://10.2.3.4\n"
    )
    left = exchange(status=499, sent=0, backend=None, outcome=CLIENT_LEFT, reason="reading failed")
    assert lines.exchange(left, NOW).endswith(" GET /x?y=1 499 0 B 12.3 ms - (client left: reading failed)\n")
    assert lines.exchange(exchange(request=None, name="", status=400), NOW).startswith(
        "2026-11-21 10:37:05 #42 203.0.113.9 - - - 400 "
    )
    assert lines.passage(passage(), NOW) == (
        "2026-11-21 10:37:05 #7 2001:db8::9 pbx.test passed through 517 B up 4096 B down 60.5 s 10.1.2.3:443\n"
    )


def test_programs_read_an_object_with_every_key() -> None:
    line = Json().exchange(exchange(), NOW)
    assert line.endswith("}\n")
    told = json.loads(line)
    assert datetime.fromisoformat(told.pop("time")).timestamp() == pytest.approx(NOW, abs=0.001)
    assert told == {
        "type": "request", "connection": 42, "client": "203.0.113.9", "name": SITE, "scheme": "https",
        "method": "GET", "host": "cloud.test", "target": "/x?y=1", "version": "1.1", "user": None,
        "referer": "https://other.test/", "agent": "curl/8", "status": 200, "received": 3, "sent": 1234,
        "seconds": 0.0123, "backend": "http://10.2.3.4", "backend_seconds": 0.009, "outcome": DONE, "reason": "",
    }  # fmt: skip
    nothing = json.loads(Json().exchange(exchange(request=None, asked=0.0, answered=0.0, backend=None), NOW))
    assert nothing.keys() == told.keys() | {"time"}
    assert {key for key, value in nothing.items() if value is None} == {
        "method", "host", "target", "version", "user", "referer", "agent", "backend", "backend_seconds"
    }  # fmt: skip
    tunnel = json.loads(Json().passage(passage(), NOW))
    assert datetime.fromisoformat(tunnel.pop("time")).utcoffset() is not None
    assert tunnel == {
        "type": "passthrough", "connection": 7, "client": "2001:db8::9", "name": "pbx.test", "received": 517,
        "sent": 4096, "seconds": 60.5, "backend": "10.1.2.3:443", "outcome": DONE, "reason": "",
    }  # fmt: skip


def test_combined_is_nginx_s_and_has_nothing_of_what_is_passed_through() -> None:
    lines = Combined()
    assert lines.exchange(exchange(), NOW) == (
        '203.0.113.9 - - [21/Nov/2026:10:37:05 -0330] "GET /x?y=1 HTTP/1.1" 200 1234 "https://other.test/" "curl/8"\n'
    )
    assert lines.exchange(exchange(request=head(http_version=(2, 0), headers=[]), status=0), NOW) == (
        '203.0.113.9 - - [21/Nov/2026:10:37:05 -0330] "GET /x?y=1 HTTP/2.0" 000 1234 "-" "-"\n'
    )
    assert lines.passage(passage(), NOW) == ""


@pytest.mark.parametrize("kind", FORMATS)
def test_each_line_has_its_own_second(kind: type[Format]) -> None:
    lines = kind()
    seconds = [lines.exchange(exchange(), NOW + later) for later in (0.0, 0.3, 1.0, 0.2)]
    first, same, next_one, back = (re.search(r"10:37:0\d", line)[0] for line in seconds)  # type: ignore[index]
    assert (first, same, next_one, back) == ("10:37:05", "10:37:05", "10:37:06", "10:37:05")


# ---- what clients put into them -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@given(raw=st.binary(max_size=40))
def test_whatever_comes_is_one_printable_line(kind: type[Format], raw: bytes) -> None:
    request = head(method=raw, target=raw, authority=raw, headers=[(b"user-agent", raw), (b"referer", raw)])
    reason = raw.decode("latin-1")
    for line in (kind().exchange(exchange(request=request, reason=reason, outcome=CLIENT_LEFT), NOW),
                 kind().passage(passage(reason=reason, outcome=CLIENT_LEFT), NOW)):  # fmt: skip
        assert line[:-1].isprintable()
        assert line == "" or line.endswith("\n")
        if kind is Json and line:
            json.loads(line)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_secret_is_in_a_line(kind: type[Format]) -> None:
    credentials = base64.b64encode(b"alice:SECRET")
    headers = [(b"authorization", b"Basic " + credentials), (b"cookie", b"SECRET"), (b"x-api-key", b"SECRET")]
    line = kind().exchange(exchange(request=head(headers=headers)), NOW)
    assert "SECRET" not in line
    assert credentials.decode() not in line
    assert kind is Console or "alice" in line
    bearer = kind().exchange(exchange(request=head(headers=[(b"authorization", b"Bearer SECRET")])), NOW)
    assert "SECRET" not in bearer


def test_json_keeps_what_is_utf_8_and_shows_what_is_not() -> None:
    told = json.loads(Json().exchange(exchange(request=head(target="/ü\u202e".encode(), method=b"\xff\x1b")), NOW))
    assert told["target"] == "/ü\u202e"
    assert told["method"] == "\\xff\x1b"


# ---- beside nginx ---------------------------------------------------------------------------------------


def basic(raw: bytes) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(raw) + b"\r\n"


HOSTILE = {
    "plain": b"GET /x?y=%0a HTTP/1.1\r\nHost: cloud.test\r\nUser-Agent: Mozilla/5.0 (X11)\r\nReferer: https://a.test/\r\n",
    "nothing said": b"GET / HTTP/1.1\r\nHost: cloud.test\r\n",
    "said, and empty": b"GET / HTTP/1.1\r\nHost: cloud.test\r\nReferer:\r\nUser-Agent: \r\n",
    "quotes": b'GET / HTTP/1.1\r\nHost: cloud.test\r\nUser-Agent: a"b\\c" 200 "\r\nReferer: "\\x22"\r\n',
    "beyond ASCII": "GET / HTTP/1.1\r\nHost: cloud.test\r\nUser-Agent: ü\u202e\tx\r\nReferer: \u2028\r\n".encode(),
    "quotes in the target": b'GET /"a?\\b HTTP/1.1\r\nHost: cloud.test\r\n',
    "HTTP/1.0": b"GET /old HTTP/1.0\r\nHost: cloud.test\r\n",
    "HEAD": b"HEAD /head HTTP/1.1\r\nHost: cloud.test\r\n",
    "a user": b"GET / HTTP/1.1\r\nHost: cloud.test\r\n" + basic(b"alice:secret"),
    "a user without password": b"GET / HTTP/1.1\r\nHost: cloud.test\r\n" + basic(b"alice:"),
    "a user without colon": b"GET / HTTP/1.1\r\nHost: cloud.test\r\n" + basic(b"alice"),
    "no user": b"GET / HTTP/1.1\r\nHost: cloud.test\r\n" + basic(b":secret"),
    "a hostile user": b"GET / HTTP/1.1\r\nHost: cloud.test\r\n" + basic(b'ev\x1bil"\r\n\\:x'),
    "lower case": b"GET / HTTP/1.1\r\nHost: cloud.test\r\nAuthorization: basic " + base64.b64encode(b"bob:x") + b"\r\n",
    "no base64": b"GET / HTTP/1.1\r\nHost: cloud.test\r\nAuthorization: Basic !!!\r\n",
    "another scheme": b"GET / HTTP/1.1\r\nHost: cloud.test\r\nAuthorization: Bearer c2VjcmV0OnRva2Vu\r\n",
}


def without_moment(line: str) -> str:
    return re.sub(r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]", "[then]", line)


def nginx_lines(folder: Path, requests: list[bytes]) -> list[str]:
    """What nginx writes of `requests`, each on a connection of its own, when it answers each with `hello`."""
    log = folder / "access.log"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder / 'pid'}; error_log {folder / 'error.log'};\nevents {{}}\nhttp {{\n{temporary}"
        f"access_log {log} combined;\nserver {{ listen unix:{folder / 'socket'}; return 200 hello; }}\n}}\n"
    )
    with subprocess.Popen(["nginx", "-c", folder / "nginx.conf"]) as process:
        try:
            deadline = time.monotonic() + 10
            for request in requests:
                ask(folder / "socket", request, deadline)
        finally:
            process.terminate()
    return [line.replace("unix:", LOOPBACK, 1) for line in log.read_text().splitlines(keepends=True)]


def ask(where: Path, request: bytes, deadline: float) -> None:
    """Send a request and wait for the end, as soon as somebody listens."""
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            if sock.connect_ex(str(where)):
                assert time.monotonic() < deadline, "nginx does not listen"
                time.sleep(0.01)
                continue
            sock.sendall(request)
            while sock.recv(65536):
                pass
            return


async def our_lines(requests: list[bytes]) -> list[str]:
    """What is written here of the same, answered by a backend."""

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        while head := await read_until(stream, recording, b"\r\n\r\n"):
            await stream.send_all(HELLO.removesuffix(b"hello") if head.startswith(b"HEAD") else HELLO)

    ear, lines = Ear(), Combined()
    async with backend(script) as (port, _), stage(make_config(site(SITE, port, http="serve"))) as proxy:
        proxy.ctx.witness.add(ear)
        written = []
        for request in requests:
            stream = await proxy.plain()
            await stream.send_all(request)
            assert await rest(stream)
            written.append(lines.exchange(await ear.next_exchange(), NOW))
    return written


@needs("nginx")
async def test_combined_is_what_nginx_writes_of_the_same_requests(tmp_path: Path) -> None:
    requests = [request + b"Connection: close\r\n\r\n" for request in HOSTILE.values()]
    theirs = await trio.to_thread.run_sync(nginx_lines, tmp_path, requests)
    ours = await our_lines(requests)
    assert dict(zip(HOSTILE, map(without_moment, ours), strict=True)) == dict(
        zip(HOSTILE, map(without_moment, theirs), strict=True)
    )
    assert without_moment(ours[0]).startswith(f"{LOOPBACK} - - [then] ")


FAIL2BAN = {
    "nginx-bad-request": r'^<HOST> - \S+ \[\] "[^"]*" 400',
    "nginx-botsearch": r"^<HOST> \- \S+ \[\] \"(GET|POST|HEAD) \/<block> \S+\" 404 .+$",
}
"""The filters for nginx's access log that fail2ban comes with. It takes out the date, and reads what is left."""


def fail2ban_finds(name: str, line: str) -> str | None:
    """The address that fail2ban would count, by its own expression."""
    pattern = FAIL2BAN[name].replace("<HOST>", r"(?P<host>[\da-f.:]+)").replace("<block>", r"(wp-login\.php)[^,]*")
    match = re.search(pattern, without_moment(line).replace("[then]", "[]").rstrip("\n"))
    return match["host"] if match else None


def test_fail2ban_finds_whom_it_looks_for_and_nobody_whom_a_client_made_up() -> None:
    lines = Combined()
    broken = lines.exchange(exchange(request=None, status=400), NOW)
    assert fail2ban_finds("nginx-bad-request", broken) == "203.0.113.9"
    searching = lines.exchange(exchange(request=head(target=b"/wp-login.php"), status=404), NOW)
    assert fail2ban_finds("nginx-botsearch", searching) == "203.0.113.9"
    forged = (
        b'x" 200 1 "-" "-"\n198.51.100.1 - - [21/Nov/2026:10:37:05 -0330] "GET /wp-login.php HTTP/1.1" 404 1 "-" "-'
    )
    for line in lines.exchange(exchange(request=head(headers=[(b"user-agent", forged)])), NOW).splitlines():
        assert fail2ban_finds("nginx-botsearch", line) is None


@pytest.mark.skipif(shutil.which("fail2ban-regex") is None, reason="not installed: fail2ban")
@pytest.mark.parametrize("name", FAIL2BAN)
def test_fail2ban_itself_reads_it(name: str, tmp_path: Path) -> None:
    lines, log = Combined(), tmp_path / "access.log"
    now = time.time()
    log.write_text(
        lines.exchange(exchange(request=None, status=400), now)
        + lines.exchange(exchange(request=head(target=b"/wp-login.php"), status=404), now)
        + lines.exchange(exchange(), now)
    )
    done = subprocess.run(["fail2ban-regex", str(log), name], capture_output=True, text=True, timeout=60)
    assert "3 lines, 0 ignored, 1 matched, 2 missed" in done.stdout
