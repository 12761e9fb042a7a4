"""What each of several workers goes by."""

from __future__ import annotations

import attrs
import pytest

from tests.proxy.stage import make_config, site, stage
from trioproxy.config.model import Limits, Process
from trioproxy.life.worker import share

MIB = 1 << 20


async def test_a_worker_keeps_to_its_part_of_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    all_of_them = attrs.evolve(
        make_config(site("cloud.test", 1)), limits=Limits(memory=500 * MIB), process=Process(workers=2)
    )
    async with stage(share(all_of_them, 2)) as proxy:
        proxy.ctx.admission.memory.look(lambda: 260 * MIB)
    assert "260 MiB are in use with 0 connections, and limits.memory is 250: idle ones are closed" in caplog.text


def test_a_part_of_the_connections_is_rounded_up_and_no_limit_stays_none() -> None:
    shared = share(attrs.evolve(make_config(site("cloud.test", 1)), limits=Limits(connections=1001)), 2)
    assert shared.limits == Limits(connections=501, memory=None)
