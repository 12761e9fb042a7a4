"""gRPC by the library that its users have, from end to end: TLS and HTTP/2 on both sides, and h2c behind.

No protobuf: messages are bytes, which is all that gRPC itself knows of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import grpc  # type: ignore[import-untyped]  # it has no types
import pytest
import trustme

from tests.e2e.sites import Sites, sites
from tests.proxy.stage import LOOPBACK

NAME = "rpc.test"
SERVICE = "test.Echo"
PATIENCE = 20.0
LARGE = 3 * 1024 * 1024
"""Bytes of a message: many windows, and less than the 4 MiB that gRPC takes unless it is told otherwise."""


@attrs.define
class Seen:
    """What became of calls whose clients left; by the reason that the test gives as message."""

    left: dict[bytes, threading.Event] = attrs.field(factory=dict)
    begun: dict[bytes, threading.Event] = attrs.field(factory=dict)

    def expecting(self, why: bytes) -> bytes:
        self.left[why], self.begun[why] = threading.Event(), threading.Event()
        return why


class Echo:
    """The service."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def one(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Repeat a message; the client's metadata come back in front of it and behind it."""
        sent = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
        context.send_initial_metadata(sent)
        context.set_trailing_metadata([(f"{key}-again" if key[-4:] != "-bin" else key, value) for key, value in sent])
        return request

    def count(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """As many messages as the request says."""
        for number in range(int(request)):
            yield b"%d" % number

    def collect(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """How many messages and bytes came."""
        sizes = [len(request) for request in requests]
        return b"%d messages, %d bytes" % (len(sizes), sum(sizes))

    def talk(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer each message before the next is read."""
        for request in requests:
            yield b"re: " + request

    def refuse(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Fail before anything is said: gRPC sends trailers alone."""
        context.set_trailing_metadata([("x-why", "because")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nö, 100 %: not today")
        raise AssertionError

    def fail_midway(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Fail behind two messages."""
        yield b"1"
        yield b"2"
        context.abort(grpc.StatusCode.DATA_LOSS, "no third")

    def wait(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer never, and take note when the client has left."""
        gone = self._seen.left[request]
        context.add_callback(gone.set)
        self._seen.begun[request].set()
        gone.wait(PATIENCE)
        return b""


def handler(echo: Echo) -> grpc.GenericRpcHandler:
    make = {
        "One": grpc.unary_unary_rpc_method_handler(echo.one),
        "Count": grpc.unary_stream_rpc_method_handler(echo.count),
        "Collect": grpc.stream_unary_rpc_method_handler(echo.collect),
        "Talk": grpc.stream_stream_rpc_method_handler(echo.talk),
        "Refuse": grpc.unary_unary_rpc_method_handler(echo.refuse),
        "FailMidway": grpc.unary_stream_rpc_method_handler(echo.fail_midway),
        "Wait": grpc.unary_unary_rpc_method_handler(echo.wait),
    }
    return grpc.method_handlers_generic_handler(SERVICE, make)


@attrs.frozen
class Rpc:
    """A channel through the proxy, and what the service has seen."""

    channel: grpc.Channel
    seen: Seen
    sites: Sites


@pytest.fixture(scope="module", params=["h2c", "https"])
def rpc(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rpc]:
    """The service behind a site, by prior knowledge and by ALPN; a client that speaks to the site."""
    folder = tmp_path_factory.mktemp(f"grpc-{request.param}")
    seen = Seen()
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((handler(Echo(seen)),))
    if request.param == "https":
        issuer = trustme.CA()
        leaf = issuer.issue_cert(LOOPBACK)
        issuer.cert_pem.write_to_path(folder / "backend.pem")
        pair = (leaf.private_key_pem.bytes(), b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        port = server.add_secure_port(f"{LOOPBACK}:0", grpc.ssl_server_credentials([pair]))
        to = f'{{ to = "https://{LOOPBACK}:{port}", ca_file = "{folder / "backend.pem"}" }}'
    else:
        to = f'"h2c://{LOOPBACK}:{server.add_insecure_port(f"{LOOPBACK}:0")}"'
    server.start()
    tables = f'[sites."{NAME}"]\n"/" = {to}\ntls = "internal"\n[sites."{NAME}".timeouts]\nresponse = "1m"\n'
    with sites(folder / "proxy", tables) as running:
        credentials = grpc.ssl_channel_credentials(running.root.read_bytes())
        options = [("grpc.ssl_target_name_override", NAME), ("grpc.enable_http_proxy", 0)]
        with grpc.secure_channel(running.at, credentials, options) as channel:
            yield Rpc(channel, seen, running)
    server.stop(0).wait(PATIENCE)


def path(method: str) -> str:
    return f"/{SERVICE}/{method}"


def test_one_message_each_way_with_metadata(rpc: Rpc) -> None:
    call = rpc.channel.unary_unary(path("One"))
    sent = [("x-text", "some text"), ("x-bytes-bin", bytes(range(256)))]
    answer, done = call.with_call(b"hello", metadata=sent, timeout=PATIENCE)
    assert answer == b"hello"
    assert set(sent) <= set(done.initial_metadata())
    assert {("x-text-again", "some text"), sent[1]} <= set(done.trailing_metadata())
    assert done.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("size", [0, 1, LARGE])
def test_messages_of_any_size(rpc: Rpc, size: int) -> None:
    message = (bytes(range(251)) * (size // 251 + 1))[:size]
    assert rpc.channel.unary_unary(path("One"))(message, timeout=PATIENCE) == message


def test_many_calls_at_once_on_one_connection(rpc: Rpc) -> None:
    call = rpc.channel.unary_unary(path("One"))
    calls = [call.future(b"%d" % number, timeout=PATIENCE) for number in range(300)]
    assert [future.result() for future in calls] == [b"%d" % number for number in range(300)]


def test_a_stream_of_answers(rpc: Rpc) -> None:
    answers = rpc.channel.unary_stream(path("Count"))(b"2000", timeout=PATIENCE)
    assert list(answers) == [b"%d" % number for number in range(2000)]


def test_a_stream_of_questions(rpc: Rpc) -> None:
    questions = (bytes(10_000) for _ in range(500))
    answer = rpc.channel.stream_unary(path("Collect"))(questions, timeout=PATIENCE)
    assert answer == b"500 messages, 5000000 bytes"


def test_a_conversation_in_which_each_waits_for_the_other(rpc: Rpc) -> None:
    answered = threading.Semaphore(1)

    def questions() -> Iterator[bytes]:
        for number in range(100):
            assert answered.acquire(timeout=PATIENCE)
            yield b"%d" % number

    got = []
    for answer in rpc.channel.stream_stream(path("Talk"))(questions(), timeout=PATIENCE):
        got.append(answer)
        answered.release()
    assert got == [b"re: %d" % number for number in range(100)]


def test_trailers_alone_are_an_error_with_its_words(rpc: Rpc) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        rpc.channel.unary_unary(path("Refuse"))(b"", timeout=PATIENCE)
    error = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "nö, 100 %: not today")
    assert ("x-why", "because") in error.trailing_metadata()


def test_an_unknown_method_is_the_servers_own_answer(rpc: Rpc) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        rpc.channel.unary_unary(path("Nothing"))(b"", timeout=PATIENCE)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def test_a_stream_that_fails_gives_what_came_before(rpc: Rpc) -> None:
    answers = rpc.channel.unary_stream(path("FailMidway"))(b"", timeout=PATIENCE)
    assert [next(answers), next(answers)] == [b"1", b"2"]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "no third")


def test_a_deadline_ends_the_call_at_both_ends(rpc: Rpc) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        rpc.channel.unary_unary(path("Wait"))(rpc.seen.expecting(b"deadline"), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert rpc.seen.begun[b"deadline"].is_set()
    assert rpc.seen.left[b"deadline"].wait(PATIENCE)


def test_a_call_that_is_cancelled_is_cancelled_at_the_server(rpc: Rpc) -> None:
    call = rpc.channel.unary_unary(path("Wait")).future(rpc.seen.expecting(b"cancel"), timeout=600)
    assert rpc.seen.begun[b"cancel"].wait(PATIENCE)
    call.cancel()
    assert rpc.seen.left[b"cancel"].wait(PATIENCE)


def test_a_service_that_is_down_is_unavailable(tmp_path: Path) -> None:
    """What gRPC makes of 502: UNAVAILABLE, which clients try again."""
    with sites(tmp_path, f'[sites."{NAME}"]\n"/" = "h2c://{LOOPBACK}:1"\ntls = "internal"\n') as running:
        credentials = grpc.ssl_channel_credentials(running.root.read_bytes())
        options = [("grpc.ssl_target_name_override", NAME), ("grpc.enable_http_proxy", 0)]
        with (
            grpc.secure_channel(running.at, credentials, options) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            channel.unary_unary(path("One"))(b"", timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
