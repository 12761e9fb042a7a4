"""Chromium without a window, told what to do by its own protocol (CDP) over a WebSocket.

It runs in a folder of its own, resolves every name to this machine, and trusts what is signed by, or has, one of the
keys that it is given. No driver stands between: what is wanted of it here is little.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from tests.e2e.sites import loopback
from tests.e2e.software import Software
from tests.proxy.stage import LOOPBACK

PROGRAM = "chromium"

LARGEST = 64 * 1024 * 1024
"""Bytes of a message: a screenshot, mostly."""

Said = dict[str, Any]


class RefusedError(Exception):
    """Chromium would not do it, or the page's script failed."""


class Page:
    """A tab. What it reports is kept in `events`, in order."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.events: list[Said] = []
        self._connection = connection
        self._session = ""
        self._numbers = itertools.count(1)
        self._answers: dict[int, Said] = {}
        self._news = trio.Event()

    async def open(self) -> None:
        """Have a tab, and be told of its network."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            await self.call(f"{domain}.enable")

    async def listen(self) -> None:
        """Take in what Chromium says, until it ends."""
        try:
            while True:
                said = json.loads(await self._connection.get_message())
                if "id" in said:
                    self._answers[said["id"]] = said
                else:
                    self.events.append(said)
                self._news.set()
                self._news = trio.Event()
        except ConnectionClosed:
            return

    async def until(self, probe: Callable[[], Any]) -> Any:
        """What `probe` says as soon as that is true; asked again whenever something was reported."""
        with trio.fail_after(30):
            while not (found := probe()):
                await self._news.wait()
        return found

    async def call(self, method: str, **parameters: Any) -> Said:
        """Ask for something, and wait for the answer."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        await self._connection.send_message(
            json.dumps({"id": number, "method": method, "params": parameters, **session})
        )
        answer: Said = await self.until(lambda: self._answers.pop(number, None))
        if "error" in answer:
            raise RefusedError(f"{method}: {answer['error']}")
        result: Said = answer["result"]
        return result

    async def visit(self, url: str) -> None:
        """Load a page, to its `load` event."""
        mark = len(self.events)
        answer = await self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        await self.until(lambda: any(event["method"] == "Page.loadEventFired" for event in self.events[mark:]))

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise's is waited for."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RefusedError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def wait_for(self, condition: str) -> Any:
        """The value of an expression once it is true, in this page or one that it leads to."""
        end = trio.current_time() + 60
        while trio.current_time() < end:  # a cancel scope would break the connection
            with contextlib.suppress(RefusedError):  # between two pages there is none to ask
                if found := await self.run(condition):
                    return found
            await trio.sleep(0.1)
        raise RefusedError(f"never true: {condition}")

    async def type(self, text: str) -> None:
        """Write into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press a key and let it go; Shift is modifier 8."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": "\r"} if code == 13 else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def picture(self, file: Path) -> None:
        """Save what it looks like."""
        shot = await self.call("Page.captureScreenshot", format="png")
        await trio.Path(file).write_bytes(base64.b64decode(shot["data"]))

    def heard(self, method: str) -> list[Said]:
        """The parameters of all events of one kind."""
        return [event["params"] for event in self.events if event["method"] == method]


def pin(certificate: bytes) -> str:
    """What Chromium calls the key of a certificate."""
    key = x509.load_pem_x509_certificate(certificate).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return base64.b64encode(digest).decode()


@asynccontextmanager
async def browsing(folder: Path, *trusted: bytes) -> AsyncIterator[Page]:
    """A tab of a fresh Chromium, which takes what comes with a certificate of one of these authorities (PEM)."""
    command = [
        PROGRAM,
        "--headless=new",
        f"--user-data-dir={folder}",
        "--remote-debugging-port=0",
        f"--ignore-certificate-errors-spki-list={','.join(map(pin, trusted))}",
        f"--host-resolver-rules=MAP *.test {LOOPBACK}",
        "--window-size=1280,900",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    software = Software(loopback(), *command, env={"HOME": str(folder)})
    try:
        line = await trio.to_thread.run_sync(software.wait_for, "DevTools listening on ")
        found = re.search(r"ws://\S+", line)
        assert found
        async with open_websocket_url(found[0], max_message_size=LARGEST) as connection, trio.open_nursery() as nursery:
            page = Page(connection)
            nursery.start_soon(page.listen)
            await page.open()
            try:
                yield page
            finally:
                nursery.cancel_scope.cancel()
    finally:
        print(software.said())  # pytest shows it with a test that failed
        with trio.CancelScope(shield=True):  # as long as `Software.stop` has patience
            await trio.to_thread.run_sync(software.stop)
