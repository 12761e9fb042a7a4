"""What is worth a warning before a first order."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from tests.certs.making import acme_site, config
from tests.net.sockets import until
from trioproxy.certs import first_order
from trioproxy.certs.first_order import FirstOrder, records
from trioproxy.certs.served import Listening
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Config, HostPort, Listen
from trioproxy.errors import AcmeError
from trioproxy.net.lan import Interface
from trioproxy.net.resolve import Address, NoAddress, Resolver

NAME = "cloud.example.com"

OURS = (ipaddress.ip_interface("2a01:4f8:1:2::5/64"), ipaddress.ip_interface("93.184.216.34/24"))
BEHIND_NAT: tuple[Interface, ...] = ()


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return config(tmp_path, acme_site(NAME))


def dns(*addresses: str) -> Resolver:
    def answer(_: str) -> Sequence[Address]:
        if not addresses:
            raise NoAddress("Name or service not known")
        return [Address(address) for address in addresses]

    return Resolver(answer)


async def said(own: tuple[Interface, ...], *addresses: str) -> str:
    return "\n".join(await records(NAME, dns(*addresses), own))


async def test_records_that_lead_here_are_no_news() -> None:
    assert await said(OURS, "2a01:4f8:1:2::5", "93.184.216.34") == ""


async def test_a_neighbours_ipv6_address_is_told_as_such() -> None:
    told = await said(OURS, "2a01:4f8:1:2::1")
    assert "2a01:4f8:1:2::1, which is another machine in this network, perhaps the router" in told
    assert "remove it" in told


async def test_another_networks_ipv6_address() -> None:
    assert "which is another machine:" in await said(OURS, "2a01:4f8:9:9::1")
    assert "this machine has no public IPv6 address" in await said(BEHIND_NAT, "2a01:4f8:9:9::1")


async def test_an_a_record_is_judged_only_from_a_public_address() -> None:
    assert await said(BEHIND_NAT, "93.184.216.35") == ""
    assert "its A record leads to 93.184.216.35" in await said(OURS, "93.184.216.35")


async def test_inner_addresses_are_an_inner_affair() -> None:
    assert await said(OURS, "10.0.0.5", "fd00::5") == ""


async def test_a_name_without_address() -> None:
    assert "Name or service not known" in await said(OURS)


# ---- port 80 ------------------------------------------------------------------------------------------


@asynccontextmanager
async def port80(answer: Callable[[str], bytes | None]) -> AsyncIterator[HostPort]:
    """Answers a request with what `answer` makes of its head; silent at None."""

    async def serve(stream: trio.SocketStream) -> None:
        head = (await stream.receive_some()).decode()
        reply = answer(head)
        if reply is None:
            await trio.sleep_forever()
        else:
            await stream.send_all(reply)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield HostPort("127.0.0.1", listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def looking(*http: HostPort, board: ChallengeBoard | None = None) -> FirstOrder:
    listening = Listening(https=list, http=lambda: http)
    return FirstOrder(board or ChallengeBoard(), listening, dns("93.184.216.34"), lambda: OURS)


def answered(board: ChallengeBoard, head: str) -> bytes:
    path, host = head.split()[1], head.lower().partition("host: ")[2].split()[0]
    body = board.answer(host, path)
    if body is None:
        return b"HTTP/1.1 308 Permanent Redirect\r\nlocation: https://x/\r\ncontent-length: 0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body.encode())


async def test_our_own_port_80_is_asked_for_a_token_of_the_name(settings: Config) -> None:
    board = ChallengeBoard()
    async with port80(partial(answered, board)) as address:
        assert await looking(address, board=board).warnings(settings, NAME) == []


async def test_a_storage_that_cannot_be_written(settings: Config, tmp_path: Path) -> None:
    board = ChallengeBoard()
    (tmp_path / "file").write_text("")
    async with port80(partial(answered, board)) as address:
        wrong = attrs.evolve(settings, storage=tmp_path / "file")
        [warning] = await looking(address, board=board).warnings(wrong, NAME)
    assert "is a file, where a folder should be" in warning


async def test_a_port_80_that_redirects_tokens_is_told(settings: Config) -> None:
    async with port80(partial(answered, ChallengeBoard())) as address:
        [warning] = await looking(address).warnings(settings, NAME)
    assert f"our own listener at {address} does not answer" in warning
    assert "status 308" in warning


async def test_no_port_80_at_all(settings: Config) -> None:
    assert "nothing listens for plain HTTP here" in "".join(await looking().warnings(settings, NAME))
    async with port80(lambda _: b"") as address:
        pass
    assert "Connection refused" in "".join(await looking(address).warnings(settings, NAME))


async def test_where_a_proxy_must_announce_its_client_port_80_is_not_tried(settings: Config) -> None:
    behind = attrs.evolve(settings, listen=Listen(proxy_protocol_from=(ipaddress.ip_network("127.0.0.1"),)))
    assert await looking(HostPort("127.0.0.1", 1)).warnings(behind, NAME) == []


# ---- beside an order ----------------------------------------------------------------------------------


async def test_what_takes_too_long_is_left_out(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_order, "PATIENCE", 0.1)
    answer_now = threading.Event()

    def slow(_: str) -> Sequence[Address]:
        answer_now.wait(60)
        return []

    async with port80(lambda _: None) as address:
        listening = Listening(https=list, http=lambda: [address])
        with trio.fail_after(30):
            assert await FirstOrder(ChallengeBoard(), listening, Resolver(slow)).warnings(settings, NAME) == []
    answer_now.set()


async def test_an_order_waits_for_nothing_and_fails_as_itself(
    settings: Config, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    async def order() -> str:
        with trio.fail_after(30):
            await until(lambda: told)
        return "done"

    async def failing() -> str:
        await trio.lowlevel.checkpoint()
        raise AcmeError("no")

    assert await looking().beside(settings, NAME, told.append, order) == "done"
    assert "nothing listens" in told[0]
    assert caplog.messages == told
    async with port80(lambda _: None) as address:
        with trio.fail_after(3), pytest.raises(AcmeError, match=r"^no$"):
            await looking(address).beside(settings, NAME, told.append, failing)
