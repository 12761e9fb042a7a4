"""The networks that a machine is on, in a network namespace of its own, where they can be changed."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import needs
from trioproxy.net.lan import Lan, on_link_networks

NAMESPACE = ["unshare", "--map-root-user", "--net"]

FOLLOW = """
import subprocess, trio
from trioproxy.net.lan import Lan

def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)

async def told(lan, wanted):
    with trio.fail_after(10):
        while wanted != {str(network) for network in lan.networks}:
            await trio.sleep(0.01)
    print(*sorted(wanted))

async def main():
    ip("link", "set", "lo", "up")
    ip("addr", "add", "198.51.100.5/24", "dev", "lo")
    lan = Lan()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lan.run)
        own = {"127.0.0.0/8", "::1/128"}
        await told(lan, own | {"198.51.100.0/24"})
        ip("addr", "add", "2001:db8:7::5/64", "dev", "lo")
        await told(lan, own | {"198.51.100.0/24", "2001:db8:7::/64"})
        ip("addr", "del", "198.51.100.5/24", "dev", "lo")
        await told(lan, own | {"2001:db8:7::/64"})
        nursery.cancel_scope.cancel()

trio.run(main)
"""


def test_this_machine_is_on_its_own_loopback_network() -> None:
    assert ipaddress.ip_network("127.0.0.0/8") in on_link_networks()
    assert Lan().networks == on_link_networks()


@needs("unshare", "ip")
def test_addresses_that_come_and_go_are_followed_in_both_families() -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("this machine gives us no network namespace")
    root = str(Path(__file__).resolve().parent.parent.parent)
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", FOLLOW],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
