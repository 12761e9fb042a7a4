"""Applications that people host at home, used in Chromium through a real `trioproxy serve`.

    python -m tests.apps [jupyterlab] [radicale]      both when none is named; `make apps` runs it

They are installed from PyPI into `.work/apps/venv`, some 250 MB. Each is a backend of a site with a certificate of the
internal authority, and used as a person would: JupyterLab to log in, open a notebook and run its cell in a kernel,
which it speaks to over a WebSocket; Radicale to make a calendar with an event by CalDAV, and to look at it in its own
pages. Pictures of both stay in `.work/apps`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.autobahn import free_port
from tests.e2e.browser import Page, RefusedError, browsing
from tests.e2e.sites import Sites, loopback, routed, sites_beside
from tests.e2e.software import Software
from tests.proxy.stage import LOOPBACK

WORK = Path(__file__).resolve().parent.parent / ".work" / "apps"
VENV = WORK / "venv"
PACKAGES = ("jupyterlab>=4.4,<5", "radicale>=3.5,<4")
"""A later major version may look different; these versions know what is asked of them here."""

TOKEN = "a token for nobody but this test"
ENTER = 13
SHIFT = 8

NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "id": "sum",
            "metadata": {},
            "source": "print(6*7)",
            "outputs": [],
            "execution_count": None,
        }
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}

EVENT = """BEGIN:VCALENDAR\r
VERSION:2.0\r
PRODID:-//trioproxy//tests//EN\r
BEGIN:VEVENT\r
UID:tea\r
DTSTAMP:20260101T000000Z\r
DTSTART:20260101T160000Z\r
DTEND:20260101T163000Z\r
SUMMARY:Tea\r
END:VEVENT\r
END:VCALENDAR\r
"""
CALENDAR = """<?xml version="1.0"?>
<mkcol xmlns="DAV:" xmlns:C="urn:ietf:params:xml:ns:caldav"><set><prop>
<resourcetype><collection/><C:calendar/></resourcetype><displayname>Household</displayname>
</prop></set></mkcol>"""


def install() -> None:
    """Have the applications."""
    if not (VENV / "bin" / "jupyter").exists() or not (VENV / "bin" / "radicale").exists():
        venv.create(VENV, clear=True, with_pip=True)
        pip = [str(VENV / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *PACKAGES], check=True)


@asynccontextmanager
async def used(folder: Path, command: list[str], port: int, name: str, said: str) -> AsyncIterator[tuple[Sites, Page]]:
    """An application that has `said` that it listens on `port`, behind the site `name`.test, and a browser."""
    app = Software(loopback(), *command, env={"HOME": str(folder)})
    try:
        await trio.to_thread.run_sync(app.wait_for, said, 0, 60)
        tables = routed(**{name: f'"http://{LOOPBACK}:{port}"'})
        async with (
            sites_beside(folder / "proxy", tables) as sites,
            browsing(folder / "browser", sites.signer.read_bytes()) as page,
        ):
            try:
                yield sites, page
            finally:
                with trio.move_on_after(10, shield=True), contextlib.suppress(RefusedError):
                    await page.picture(WORK / f"{name}.png")
    except BaseException:
        print(app.said())
        raise
    finally:
        with trio.CancelScope(shield=True):  # as long as `Software.stop` has patience
            await trio.to_thread.run_sync(app.stop)


async def jupyterlab(folder: Path) -> str:
    """Run the cell of a notebook. Returns what was seen."""
    await trio.Path(folder / "sum.ipynb").write_text(json.dumps(NOTEBOOK))
    port = free_port()
    command = [str(VENV / "bin" / "jupyter"), "lab", "--no-browser", "--allow-root", f"--ip={LOOPBACK}"]
    options = [f"--port={port}", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}"]
    public = "--ServerApp.allow_remote_access=True"  # its own protection from names that it does not know
    async with used(folder, [*command, *options, public], port, "jupyterlab", "is running at") as (sites, page):
        await page.visit(sites.url("jupyterlab.test", "/lab/tree/sum.ipynb"))
        await page.run("document.querySelector('#password_input').focus()")
        await page.type(TOKEN)
        await page.press("Enter", ENTER)
        await page.wait_for("document.querySelector('.jp-Cell .cm-content')?.textContent.includes('6*7')")
        await page.wait_for("document.body.innerText.includes('| Idle')")  # what the status line says of the kernel
        await page.run("document.querySelector('.jp-Cell .cm-content').focus()")
        await page.press("Enter", ENTER, SHIFT)
        shown = await page.wait_for("document.querySelector('.jp-OutputArea-output')?.textContent.trim()")
        assert shown == "42", shown
        answers = [event["response"] for event in page.heard("Network.webSocketHandshakeResponseReceived")]
        kinds = [f"{answer['status']} {answer.get('statusText', '')}".strip() for answer in answers]
        loaded = [event["response"]["protocol"] for event in page.heard("Network.responseReceived")]
        h2 = sum(protocol == "h2" for protocol in loaded)
        return f"print(6*7) gave {shown}; {h2} of {len(loaded)} responses by h2; WebSockets: {', '.join(kinds)}"


async def radicale(folder: Path) -> str:
    """Make a calendar and look at it. Returns what was seen."""
    port = free_port()
    command = [str(VENV / "bin" / "radicale"), "--config", "", "--server-hosts", f"{LOOPBACK}:{port}"]
    options = ["--storage-filesystem-folder", str(folder / "collections"), "--auth-type", "none"]
    async with used(folder, [*command, *options], port, "radicale", "Listening on") as (sites, page):

        async def curl(path: str, *options: str) -> str:
            wanted = sites.curl("radicale.test", path, "--fail", "--user", "me:secret", *options)
            done = await trio.run_process(wanted, capture_stdout=True)
            return done.stdout.decode()

        await curl("/me/household/", "-X", "MKCOL", "--data-binary", CALENDAR)
        await curl("/me/household/tea.ics", "-X", "PUT", "-H", "Content-Type: text/calendar", "--data-binary", EVENT)
        listed = await curl("/me/household/", "-X", "PROPFIND", "-H", "Depth: 1")
        assert "/me/household/tea.ics" in listed, listed
        assert "SUMMARY:Tea" in await curl("/me/household/tea.ics")
        await page.visit(sites.url("radicale.test", "/.web/"))
        await page.wait_for("document.querySelector('input[type=password]')?.offsetParent != null")
        await page.run("document.querySelector('input[data-name=user], input[type=text]').focus()")
        await page.type("me")
        await page.run("document.querySelector('input[type=password]').focus()")
        await page.type("secret")
        await page.press("Enter", ENTER)
        await page.wait_for("document.body.innerText.includes('Household')")
        return "a calendar by MKCOL, an event by PUT, listed by PROPFIND and in its own pages"


APPS: dict[str, Callable[[Path], Awaitable[str]]] = {"jupyterlab": jupyterlab, "radicale": radicale}


async def run(names: list[str]) -> None:
    """Use the applications, one after the other."""
    for name in names:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, trio.fail_after(300):
            print(f"{name}: {await APPS[name](Path(folder))}; {WORK / name}.png")


if __name__ == "__main__":
    install()
    trio.run(run, sys.argv[1:] or list(APPS))
