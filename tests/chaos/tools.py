"""Slow clients that others wrote: slowhttptest, and a script for varnishtest."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import trio

from tests.chaos.faults import alive
from tests.chaos.rows import Row, Scale
from tests.chaos.slow import SLOW, answer, impatient
from tests.life.served import Served, served
from tests.proxy.stage import LOOPBACK, backend

SCRIPT = Path(__file__).with_name("slow.vtc")

MODES = {
    "headers": ["-H", "-i", "1"],
    "body": ["-B", "-s", "100000", "-i", "20"],
    "read": ["-X", "-w", "10", "-y", "20", "-n", "2", "-z", "5"],
}
"""Of slowhttptest, with the options that each takes."""

PATIENCE = 3.0
"""Seconds of the site's limits."""

LONGEST = 60
"""Seconds after which a tool gives up, and the test has failed."""

OTHERS = 20
"""Connections at most that are not slow: probes of the tools whether the site answers, and clients of the script."""


async def tools(folder: Path, scale: Scale) -> Row:
    """All of slowhttptest's connections are ended while the site answers its probes; the script passes."""
    row = Row()
    hello, general = 'hello = "', f'header = "{PATIENCE:g}s"\nidle = "{PATIENCE:g}s"\n'
    async with backend(answer) as (port, _):
        text = impatient(folder, port, PATIENCE).replace("[listen]\n", f'[listen]\nno_sni = "{SLOW}"\n')
        text = text.replace(hello, general + hello, 1)  # on port 80 there is no site before there is a request
        async with served(folder, text + 'http = "serve"\n') as service, trio.open_nursery() as nursery:
            nursery.start_soon(varnishtest, row, service.http)
            running = [await slowhttptest(mode, service.https, scale.tool) for mode in MODES]
            for mode, process in zip(MODES, running, strict=True):
                nursery.start_soon(judge, row, mode, process)
            most, since = 0, 0.0
            with trio.move_on_after(LONGEST):
                while (now := await present(service)) > OTHERS or most < scale.tool:
                    if now > most:
                        most, since = now, trio.current_time()
                    await trio.sleep(0.05)
            row.figures["slowhttptest"] = f"{scale.tool * len(MODES)} connections"
            row.figures["gone s after most were there"] = trio.current_time() - since
            row.expect(now <= OTHERS, f"{now} connections are still there")
            for process in running:  # some kinds of it would notice only when they have read what is in their buffers
                process.terminate()
            await alive(row, service, service.process.pid)
    return row


async def slowhttptest(mode: str, port: int, count: int) -> trio.Process:
    """Start it in one of its modes; it is to be terminated, for after `LONGEST` it has failed."""
    command = [
        "slowhttptest", *MODES[mode], "-c", str(count), "-r", str(count), "-l", str(LONGEST), "-p", "5",
        "-u", f"https://{LOOPBACK}:{port}/large",
    ]  # fmt: skip
    return await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


async def judge(row: Row, mode: str, process: trio.Process) -> None:
    """Expect that its probes were answered, and that it did not come to its own end."""
    assert process.stdout is not None
    said = b"".join([data async for data in process.stdout]).decode(errors="replace")
    await process.wait()
    told = re.sub(r"\x1b\[[\d;]*m", "", said)
    row.expect("Hit test time limit" not in told, f"slowhttptest {mode} was still there: {told[-600:]}")
    row.expect(not re.search(r"service available:\s+NO", told), f"slowhttptest {mode}: the site did not answer")


async def present(service: Served) -> int:
    """How many connections the server has."""
    count: int = (await service.ask("status"))["connections"]
    return count


async def varnishtest(row: Row, port: int) -> None:
    """Run the script."""
    command = ["varnishtest", "-t", str(LONGEST), "-D", f"port={port}", str(SCRIPT)]
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    row.figures["varnishtest"] = "passed" if done.returncode == 0 else "failed"
    row.expect(done.returncode == 0, done.stdout.decode(errors="replace")[-2000:])
