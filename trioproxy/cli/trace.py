"""`trioproxy trace`: follow what happens to a name."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import click
import trio

from trioproxy.cli.common import json_option, load_config
from trioproxy.control import ask
from trioproxy.logs import one_line


@click.command("trace")
@click.argument("name")
@json_option
@click.pass_context
def command(context: click.Context, name: str, as_json: bool) -> None:
    """Follow live what happens to NAME, or with '*' to all names, until Ctrl-C.

    Each line is an event: when, the connection's number, what happened. With --json it is an object.
    """
    config = load_config(context)

    def show(event: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps(event))
        elif event["phase"] == "following":
            click.echo(f"Following {event['name'] or 'every name'}; Ctrl-C ends it.", err=True)
        else:
            click.echo(one_line(line(event)))

    async def follow() -> None:
        await ask(config.control_socket, "trace", {"name": name}, show)

    try:
        trio.run(follow)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
    except KeyboardInterrupt:
        pass


def line(event: dict[str, Any]) -> str:
    """An event for a person."""
    if event["phase"] == "dropped":
        return f"({event['events']} events are missing here: they came faster than they could be told)"
    moment = time.strftime("%H:%M:%S", time.localtime(event["time"])) + f"{event['time'] % 1:.3f}"[1:]
    with contextlib.suppress(KeyError):  # of a newer server
        return f"{moment} #{event['connection']:<5} {event['phase']:<9} {PHASES[event['phase']](event)}".rstrip()
    return f"{moment} #{event['connection']:<5} {event['phase']}"


def _hello(event: dict[str, Any]) -> str:
    name = event["server_name"] or "no name"
    led = "" if event["name"] == event["server_name"] else f", which leads to {event['name']}"
    hidden = ", and an encrypted inner hello" if event["encrypted_client_hello"] else ""
    return (
        f"{event['client']} asks for {name}{led}; {event['size']} bytes, "
        f"offers {' '.join((*event['versions'], *event['alpn']))}{hidden}"
    )


def _handshake(event: dict[str, Any]) -> str:
    if event["outcome"] != "done":
        return f"{event['outcome']}, after {_time(event['seconds'])}"
    return f"in {_time(event['seconds'])}, speaks {event['protocol'] or 'HTTP/1.1 without having said so'}"


def _routed(event: dict[str, Any]) -> str:
    leads = f" by {event['route']} to {' or '.join(event['to'])}"
    return f"{event['client']} {event['method']} {event['scheme']}://{event['host']}{event['target']}{leads}"


def _asking(event: dict[str, Any]) -> str:
    return f"{event['backend']}, {_time(event['seconds'])} after the request's head"


def _answered(event: dict[str, Any]) -> str:
    return f"{event['status'] or ''} by {event['backend']} after {_time(event['seconds'])}".lstrip()


def _request(event: dict[str, Any]) -> str:
    asked = "what was no request" if event["method"] is None else f"{event['method']} {event['target']}"
    parts = [f"{event['status'] or 'no status'} for {asked}", f"{event['received']} B in", f"{event['sent']} B out"]
    if event["seconds_to_backend"] is not None:
        parts.append(f"{_time(event['seconds_to_backend'])} until {event['backend']} was asked")
    if event["seconds_to_answer"] is not None:
        parts.append(f"{_time(event['seconds_to_answer'])} until it answered")
    return f"{', '.join(parts)}, {_time(event['seconds'])} in all{_ended(event)}"


def _passed(event: dict[str, Any]) -> str:
    return (
        f"{event['up']} B up, {event['down']} B down, {event['backend'] or 'to no backend'}, "
        f"{_time(event['seconds'])} in all{_ended(event)}"
    )


PHASES: dict[str, Callable[[dict[str, Any]], str]] = {
    "hello": _hello,
    "refused": lambda event: f"{event['client']}: {event['reason']}",
    "handshake": _handshake,
    "routed": _routed,
    "asking": _asking,
    "answered": _answered,
    "upgraded": _answered,
    "request": _request,
    "passing": lambda event: f"{event['client']} to {event['backend']}",
    "passed": _passed,
    "closed": lambda _: "",
}
"""What is said of each phase."""


def _ended(event: dict[str, Any]) -> str:
    if event["outcome"] == "done":
        return ""
    return f": {event['outcome']}" + (f" ({event['reason']})" if event["reason"] else "")


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
