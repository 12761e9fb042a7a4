"""What `check` says of limits of the machine that are too small."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from trioproxy.cli.capacity import MIB, SYS, Machine, look, shortcomings
from trioproxy.config.load import parse
from trioproxy.config.model import Config

AMPLE = Machine(
    descriptors=65_536,
    nr_open=1_048_576,
    file_max=100_000,
    somaxconn=4096,
    local_ports=28_232,
    pipe_pages=16_384,
    tracked=65_536,
    first_free_port=1024,
    unprivileged=True,
    memory=8192 * MIB,
)
"""As machines are today, with room for the defaults."""

PASSED = '[passthrough]\n"pbx.myname.com" = "10.1.2.3"\n'
SITE = '[sites]\n"nas.myname.com" = { "/" = "http://10.2.3.9", tls = "internal" }\n'


def configured(text: str) -> Config:
    return parse(text, Path("/etc/trioproxy/config.toml"), {}, 0)


def said(text: str, **limits: Any) -> list[str]:
    return shortcomings(configured(text), attrs.evolve(AMPLE, **limits))


def one(text: str, **limits: Any) -> str:
    [sentence] = said(text, **limits)
    return sentence


@pytest.mark.parametrize("text", [PASSED, SITE, PASSED + SITE + '[limits]\nmemory = "512MiB"\n'])
def test_of_an_ordinary_machine_there_is_nothing_to_say(text: str) -> None:
    assert said(text) == []
    assert shortcomings(configured(text), Machine()) == []


def test_descriptors_of_the_process() -> None:
    sentence = one(PASSED, descriptors=4096)
    assert "limits.connections = 10000 takes up to 21024 descriptors" in sentence
    assert "may have 4096, enough for 1536 connections" in sentence
    assert "LimitNOFILE=" in sentence
    assert "`ulimit -Hn 21024`" in sentence
    assert said(PASSED, descriptors=21_024) == []


def test_descriptors_of_workers_who_share_the_connections() -> None:
    workers = SITE + "[process]\nworkers = 2\n"
    assert said(workers, descriptors=11_024) == []
    assert "takes up to 11024 descriptors in each worker" in one(workers, descriptors=11_023)
    assert "fs.file-max=44096" in one(workers, file_max=20_000)


def test_descriptors_that_no_process_may_have() -> None:
    sentence = one(PASSED + "[limits]\nconnections = 600000\n", file_max=None, local_ports=None, tracked=None)
    assert "no process may have more than 1048576: `sudo sysctl -w fs.nr_open=1201024`" in sentence
    assert "`fs.nr_open = 1201024` into /etc/sysctl.d/" in sentence


def test_descriptors_of_all_programs() -> None:
    assert "all programs together may have 20000: `sudo sysctl -w fs.file-max=42048`" in one(SITE, file_max=20_000)


def test_connections_that_wait_to_be_accepted() -> None:
    sentence = one(SITE, somaxconn=128)
    assert sentence.startswith("only 128 connections may wait to be accepted, where trioproxy would let 4096")
    assert "`sudo sysctl -w net.core.somaxconn=4096`" in sentence


def test_half_open_connections_without_cookies() -> None:
    assert "`sudo sysctl -w net.ipv4.tcp_syncookies=1`" in one(SITE, syn_backlog=512)


def test_ports_towards_one_backend() -> None:
    many = "[limits]\nconnections = 30000\n"
    sentence = one(PASSED + many)
    assert "this machine has 28232 ports for connections to one backend" in sentence
    assert "`sudo sysctl -w 'net.ipv4.ip_local_port_range=10240 65535'`" in sentence
    assert said(PASSED + many, local_ports=30_000) == []
    transparent = '[passthrough]\n"pbx.myname.com" = { to = "10.1.2.3", client_ip = "transparent" }\n'
    assert said(transparent + many) == []  # its ports are the clients'


@pytest.mark.parametrize(("pages", "streams"), [(16_384, 64), (8192, 32)])
def test_pipes_of_an_unprivileged_user(pages: int, streams: int) -> None:
    workers = "[process]\nworkers = 2\n"
    sentence = one(PASSED + workers, pipe_pages=pages)
    assert f"enough for {streams} of the 128 passthrough connections" in sentence
    assert "`sudo sysctl -w fs.pipe-user-pages-soft=32768`" in sentence
    assert said(SITE + workers, pipe_pages=pages) == []  # nothing is passed through
    assert said(PASSED + workers, pipe_pages=pages, unprivileged=False) == []
    assert said(PASSED + workers + 'user = "www-data"\n', pipe_pages=pages, unprivileged=False) == [sentence]


def test_connections_that_the_firewall_remembers() -> None:
    sentence = one(SITE, tracked=16_384)
    assert "remembers 16384 connections, and limits.connections = 10000 can be 20000" in sentence
    assert "`sudo sysctl -w net.netfilter.nf_conntrack_max=40000`" in sentence


def test_ports_that_not_everybody_may_have() -> None:
    sentence = one(SITE, may_bind=False)
    assert sentence.startswith("this user may not listen on 80 and 443: the service may")
    assert "`sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80`" in sentence
    assert said(SITE, may_bind=False, first_free_port=80) == []
    high = '[listen]\nhttps = ["127.0.0.1:8443"]\nhttp = ["127.0.0.1:8080"]\n'
    assert said(high + SITE, may_bind=False) == []


@pytest.mark.parametrize(
    ("entries", "room", "enough"), [(SITE, "1442 idle connections to sites, 22", 295), (PASSED, "7936 idle", 99)]
)
def test_memory_that_does_not_hold_the_connections(entries: str, room: str, enough: int) -> None:
    sentence = one(entries + '[limits]\nmemory = "90MiB"\n')
    assert f"limits.memory = 90 MiB has room for some {room}" in sentence
    assert f"limits.connections = 10000 cannot be reached: raise it to {enough}MiB" in sentence
    assert said(entries + f'[limits]\nmemory = "{enough}MiB"\n') == []


def test_memory_of_several_workers_and_of_none_at_all() -> None:
    text = f"{SITE}[process]\nworkers = 2\n[limits]\nconnections = 2000\nmemory = "
    assert said(f'{text}"200MiB"\n') == []
    assert "has room for some 0 idle" in one(f'{text}"100MiB"\n')


def test_more_memory_than_there_is() -> None:
    assert "limits.memory = 16384 MiB, and this machine has 8192" in one(SITE + '[limits]\nmemory = "16GiB"\n')


def test_this_machine_is_read() -> None:
    machine = look()
    assert machine.nr_open == int((SYS / "fs/nr_open").read_text())
    assert machine.somaxconn == int((SYS / "net/core/somaxconn").read_text())
    first, last = map(int, (SYS / "net/ipv4/ip_local_port_range").read_text().split())
    assert machine.local_ports == last - first + 1
    assert machine.unprivileged == (os.geteuid() != 0)
    assert machine.memory is not None
    assert machine.memory > 64 * MIB


def test_check_says_it_of_the_machine_that_it_runs_on(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(SITE + '[storage]\npath = "store"\n')
    done = subprocess.run(
        [sys.executable, "-c", "from trioproxy.cli.main import main; main()", "check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500)),
    )
    assert "warning: limits.connections = 10000 takes up to 21024 descriptors" in done.stdout
    assert "may have 500, enough for 187 connections" in done.stdout


def test_more_workers_than_processors() -> None:
    workers = SITE + "[process]\nworkers = 3\n"
    assert "process.workers = 3, and there are 2 processors" in one(workers, processors=2)
    assert said(workers, processors=3) == []
    assert said(workers, processors=None) == []
