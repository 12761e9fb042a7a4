"""What a running server tells of itself over the control socket: `status` and `connections`."""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Any

import trio

import trioproxy
from trioproxy.certs.manager import Manager
from trioproxy.config.difference import KINDS, Entry
from trioproxy.control import Handler, Report
from trioproxy.errors import ControlError
from trioproxy.life.listeners import Listeners
from trioproxy.net.sock import Stream
from trioproxy.proxy.context import Guest, ProxyContext
from trioproxy.proxy.guests import show_out

log = logging.getLogger("trioproxy.server")


def reports(ctx: ProxyContext, listeners: Listeners, manager: Manager) -> dict[str, Handler]:
    """What the control socket carries out for `trioproxy status` and `trioproxy connections`."""
    begun = trio.current_time()

    async def status(_: dict[str, Any], __: Report) -> dict[str, Any]:
        await manager.look()
        config = ctx.cell.current.config
        certificates = {certificate.name: certificate for certificate in manager.listing()}
        present = Counter((KINDS[type(guest.entry)], guest.entry.name) for guest in ctx.guests.values())
        every: tuple[Entry, ...] = (*config.passthrough.values(), *config.sites.values())
        names = [
            {
                "name": entry.name,
                "kind": KINDS[type(entry)],
                "connections": present[KINDS[type(entry)], entry.name],
                "days_left": certificates[entry.name].days_left if entry.name in certificates else None,
                "certificate": certificates[entry.name].state if entry.name in certificates else "its backend's",
            }
            for entry in every
        ]
        return {
            "version": trioproxy.__version__,
            "pid": os.getpid(),
            "configuration": str(config.path),
            "uptime": trio.current_time() - begun,
            "https": [str(address) for address in listeners.bound("https")],
            "http": [str(address) for address in listeners.bound("http")],
            "connections": ctx.admission.open,
            "hidden_clients": ctx.admission.suspect,
            "names": names,
        }

    async def connections(arguments: dict[str, Any], _: Report) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        name = str(arguments.get("name", ""))
        now = trio.current_time()
        relayed = {relay.forth.source for relay in ctx.pump.relays()}
        return {
            "connections": [
                {
                    "id": guest.number,
                    "client": str(guest.peer),
                    "name": guest.entry.name,
                    "kind": _kind(ctx, stream, guest, relayed=stream.sock in relayed),
                    "seconds": now - guest.since,
                }
                for stream, guest in ctx.guests.items()
                if name in ("", guest.entry.name)
            ]
        }

    async def close(arguments: dict[str, Any], _: Report) -> dict[str, Any]:
        number = int(arguments["id"])
        found = [stream for stream, guest in ctx.guests.items() if guest.number == number]
        if not found:
            raise ControlError(f"there is no connection {number}; it may have ended")
        log.info("connection %d is ended by command", number)
        await show_out(ctx, found, "ended by command")
        return {"closed": number}

    return {"status": status, "connections": connections, "connections.close": close}


def _kind(ctx: ProxyContext, stream: Stream, guest: Guest, *, relayed: bool) -> str:
    """What a connection is at, in a word."""
    if relayed or KINDS[type(guest.entry)] == "passthrough":
        return "passthrough"
    if stream in ctx.tunnels:
        return "tunnel"
    if stream in ctx.drain.idle or stream in ctx.drain.fresh:
        return "idle"
    return "http/2" if stream.alpn() == "h2" else "request"
