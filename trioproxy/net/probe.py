"""Trying a backend with a ClientHello, behind each form of PROXY header and behind none."""

from __future__ import annotations

import contextlib
import ssl
from typing import Literal

import attrs
import trio

from trioproxy.config.model import HostPort
from trioproxy.errors import ConnectionLost, UpstreamError
from trioproxy.net.dial import Dialler
from trioproxy.net.sock import Reaper, Stream
from trioproxy.wire.proxy_protocol import Endpoint, encode_v1, encode_v2
from trioproxy.wire.server_answer import ServerAnswer, read_answer

Form = Literal["none", "proxy-v1", "proxy-v2"]

FORMS: tuple[Form, ...] = ("none", "proxy-v1", "proxy-v2")

PATIENCE = 5.0
"""Seconds for the answer to a ClientHello."""

SHOWN = 60
"""Characters of what a server says in plain text that are worth showing."""


@attrs.frozen
class Trial:
    """What came of one form.

    Attributes:
        form: What came before the ClientHello.
        accepted: Whether the backend went on to TLS.
        answer: What it did, in words that follow its name.
        reached: Whether there was a connection at all.
        hello: Whether it went so far as to send a ServerHello.
    """

    form: Form
    accepted: bool
    answer: str
    reached: bool = True
    hello: bool = False


async def probe(address: HostPort, server_name: str, connect: float) -> list[Trial]:
    """Try each of `FORMS`, one after the other, each with a connection of its own.

    Args:
        address: Where the backend is.
        server_name: What the ClientHello asks for; "" for nothing.
        connect: Seconds for each connection to stand.
    """
    dialler = Dialler(Reaper())
    return judged([await _trial(dialler, address, server_name, form, connect) for form in FORMS])


def judged(trials: list[Trial]) -> list[Trial]:
    """The trials as they look beside each other.

    To the same ClientHello a backend says the same, whatever header it takes. If it has a ServerHello for it without a
    header and an alert with one, then it is the header that it does not like, whatever the alert is.
    """
    if not any(trial.form == "none" and trial.hello for trial in trials):
        return trials
    return [attrs.evolve(t, accepted=t.accepted and t.hello) for t in trials]


async def _trial(dialler: Dialler, address: HostPort, server_name: str, form: Form, connect: float) -> Trial:
    try:
        with trio.fail_after(connect):
            stream = await dialler.dial(address)
    except UpstreamError as exc:
        return Trial(form, accepted=False, answer=f"cannot be reached: {exc}", reached=False)
    except trio.TooSlowError:
        return Trial(form, accepted=False, answer=f"cannot be reached within {connect:g} s", reached=False)
    try:
        with trio.fail_after(PATIENCE):
            answer = await _first_answer(stream, _header(stream, server_name, form) + _client_hello(server_name))
    except ConnectionLost:
        return Trial(form, accepted=False, answer="resets the connection")
    except trio.TooSlowError:
        return Trial(form, accepted=False, answer=f"says nothing within {PATIENCE:g} s")
    finally:
        stream.close()
    is_hello = answer.understood and answer.alert is None
    return Trial(form, answer.understood, _in_words(answer), hello=is_hello)


async def _first_answer(stream: Stream, message: bytes) -> ServerAnswer:
    await stream.send_all(message)
    data = b""
    while (answer := read_answer(data)) is None:
        more = await stream.receive_some()
        data += more
        if not more:
            return read_answer(data, ended=True) or ServerAnswer(understood=False)
    return answer


def _header(stream: Stream, server_name: str, form: Form) -> bytes:
    """A header as passthrough connections get it, but that it names ourselves as the client."""
    source = Endpoint(*stream.sock.getsockname()[:2])
    destination = Endpoint(*stream.sock.getpeername()[:2])
    if form == "proxy-v1":
        return encode_v1(source, destination)
    if form == "proxy-v2":
        return encode_v2(source, destination, authority=server_name.encode(), unique_id=b"trioproxy-probe")
    return b""


def _client_hello(server_name: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the handshake ends before there is anything to believe
    outgoing = ssl.MemoryBIO()
    handshake = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name or None)
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


def _in_words(answer: ServerAnswer) -> str:
    if answer.alert is not None:
        try:
            name = ssl.AlertDescription(answer.alert).name.removeprefix("ALERT_DESCRIPTION_").lower()
        except ValueError:
            name = str(answer.alert)
        return f"answers with the TLS alert {name}"
    if answer.understood:
        return "begins a TLS handshake"
    if not answer.text:
        return "closes the connection"
    line = answer.text.decode("latin-1").splitlines()[0][:SHOWN]
    return f"says something that is no TLS: {line!a}"
