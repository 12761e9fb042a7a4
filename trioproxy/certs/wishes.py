"""What the commands of `certs` ask of the manager, as the control socket carries it: JSON in and out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from trioproxy.acme.order import Report
from trioproxy.certs.manager import Manager

Handler = Callable[[dict[str, Any], Report], Awaitable[dict[str, Any]]]


def handlers(manager: Manager) -> dict[str, Handler]:
    """What the control socket carries out for the commands of `certs`."""

    async def list_all(_: dict[str, Any], __: Report) -> dict[str, Any]:
        await manager.look()
        await manager.aftercare.check_again()
        return {"certificates": [attrs.asdict(status) for status in manager.listing()]}

    async def renew(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
        outcomes = await manager.renew([str(name) for name in arguments["names"]], bool(arguments["force"]), report)
        return {"outcomes": [attrs.asdict(outcome) for outcome in outcomes]}

    async def rehearse(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
        outcomes = await manager.rehearse([str(name) for name in arguments["names"]], report)
        return {"outcomes": [attrs.asdict(outcome) for outcome in outcomes]}

    async def revoke(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
        outcome = await manager.revoke(str(arguments["name"]), str(arguments["reason"]), report)
        return {"outcomes": [attrs.asdict(outcome)]}

    async def roll_over(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
        return {"done": await manager.roll_over(str(arguments["directory"]), report)}

    return {
        "certs.list": list_all,
        "certs.renew": renew,
        "certs.rehearse": rehearse,
        "certs.revoke": revoke,
        "certs.rollover": roll_over,
    }
