"""What a running server tells of itself over the control socket: `status` and `connections`."""

from __future__ import annotations

import logging
import os
from typing import Any

import trio

import trioproxy
from trioproxy.certs.manager import Manager
from trioproxy.config.difference import KINDS, Entry
from trioproxy.control import Handler, Report
from trioproxy.errors import ControlError
from trioproxy.life.hands import Hands
from trioproxy.life.sockets import Sockets
from trioproxy.snapshot import Cell

log = logging.getLogger("trioproxy.server")


def reports(cell: Cell, hands: Hands, sockets: Sockets, manager: Manager) -> dict[str, Handler]:
    """What the control socket carries out for `trioproxy status` and `trioproxy connections`."""
    begun = trio.current_time()

    async def status(_: dict[str, Any], __: Report) -> dict[str, Any]:
        await manager.look()
        census = await hands.census()
        config = cell.current.config
        certificates = {certificate.name: certificate for certificate in manager.listing()}
        every: tuple[Entry, ...] = (*config.passthrough.values(), *config.sites.values())
        names = [
            {
                "name": entry.name,
                "kind": KINDS[type(entry)],
                "connections": census.guests[KINDS[type(entry)], entry.name],
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
            "https": [str(address) for address in sockets.bound("https")],
            "http": [str(address) for address in sockets.bound("http")],
            "connections": census.open,
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "hidden_clients": census.suspect,
            "workers": list(census.workers),
            "names": names,
        }

    async def connections(arguments: dict[str, Any], _: Report) -> dict[str, Any]:
        return {"connections": await hands.connections(str(arguments.get("name", "")))}

    async def close(arguments: dict[str, Any], _: Report) -> dict[str, Any]:
        number = int(arguments["id"])
        if not await hands.close(number):
            raise ControlError(f"there is no connection {number}; it may have ended")
        log.info("connection %d was ended by command", number)
        return {"closed": number}

    return {"status": status, "connections": connections, "connections.close": close}
