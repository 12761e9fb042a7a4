"""The command line: which configuration, which exit code, and what is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import trioproxy
from trioproxy.cli import common, main
from trioproxy.cli.common import SEVEN_LINES, json_option, load_config
from trioproxy.config.load import load
from trioproxy.errors import ConfigError, Mistake, StoreError

Run = Callable[..., Result]

GOOD = '[passthrough]\n"a.b" = "10.1.2.3"\n'


@click.command("show")
@json_option
@click.pass_context
def show(context: click.Context, as_json: bool) -> None:
    click.echo(load_config(context).path)


@click.group("many")
def many() -> None:
    """A group, as `certs` is one."""


many.add_command(show)


@click.command("fail")
@click.argument("how")
def fail(how: str) -> None:
    raise StoreError("the disk is full") if how == "store" else ConfigError(Path("x"), (Mistake(3, "a.b", "no"),))


class Commands(main.Commands):
    """The commands of these tests, in place of the real ones."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command: click.Command = {"show": show, "many": many, "fail": fail}[cmd_name]
        common.accept_config(command)
        return command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command of these tests in an empty folder, `here`; beside it is `etc`."""
    monkeypatch.setattr(common, "DEFAULTS", (Path("config.toml"), tmp_path / "etc" / "config.toml"))
    for folder in ("here", "etc"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    group = Commands(params=[common.config_option()])
    return lambda *arguments: CliRunner().invoke(group, arguments)


def test_the_file_in_this_folder_is_taken_before_the_one_in_etc(run: Run, tmp_path: Path) -> None:
    etc = tmp_path / "etc" / "config.toml"
    etc.write_text(GOOD)
    done = run("show")
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{etc}\n", f"configuration: {etc}\n")
    Path("config.toml").write_text(GOOD)
    done = run("show")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "config.toml\n", "configuration: config.toml\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "mine.toml", "show"),
        ("show", "--config", "mine.toml"),
        ("--config", "other.toml", "show", "--config", "mine.toml"),
        ("--config", "mine.toml", "many", "show"),
        ("many", "--config", "mine.toml", "show"),
        ("many", "show", "--config=mine.toml"),
    ],
)
def test_a_file_is_named_before_or_after_the_command(run: Run, arguments: tuple[str, ...]) -> None:
    Path("config.toml").write_text(GOOD)
    Path("mine.toml").write_text(GOOD)
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (0, "mine.toml\n")


def test_with_json_nothing_else_is_said(run: Run) -> None:
    Path("config.toml").write_text(GOOD)
    assert run("show", "--json").stderr == ""


def test_mistakes_are_told_and_the_command_does_not_run(run: Run) -> None:
    Path("config.toml").write_text('[sites]\na.b = "http://b"\n[lgo]')
    done = run("show")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "configuration: config.toml",
        'config.toml:2: sites.a: quote the host name: "a.b" = …',
        'config.toml:3: lgo: unknown key; did you mean "log"?',
    ]


def test_without_a_file_the_first_one_is_shown(run: Run, tmp_path: Path) -> None:
    done = run("show")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"There is no configuration: neither config.toml nor {tmp_path}/etc/config.toml is there.",
        "Put your own names and addresses into these seven lines, and save them as config.toml in this folder, or "
        f"{tmp_path}/etc/config.toml:",
        "",
        *SEVEN_LINES.splitlines(),
        "",
    ]
    done = run("show", "--config", "mine.toml")
    assert done.exit_code == 2
    assert done.stderr.startswith("There is no configuration: mine.toml is not there.\n")
    assert "save them as mine.toml:" in done.stderr


def test_the_seven_lines_are_seven_and_good(tmp_path: Path) -> None:
    assert len(SEVEN_LINES.splitlines()) == 7
    file = tmp_path / "config.toml"
    file.write_text(SEVEN_LINES)
    assert len(load(file).sites) == 2


def test_what_did_not_work_is_a_line_and_no_traceback(run: Run) -> None:
    done = run("fail", "store")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "trioproxy: the disk is full\n")
    done = run("fail", "config")
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", "x:3: a.b: no\n")


def test_wrong_usage() -> None:
    for arguments in (["chek"], ["--confg", "x", "check"], ["check", "--nothing"], ["check", "too", "much"]):
        assert CliRunner().invoke(main.command, arguments).exit_code == 2


def test_help_names_every_command_and_imports_none() -> None:
    program = (
        "import sys; from trioproxy.cli.main import command\n"
        "try: command(['--help'])\n"
        "finally: print(*[name for name in sys.modules if name.startswith('trioproxy.cli.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for name, about in main.COMMANDS.items():
        assert f"{name} " in done.stdout
        assert " ".join(about.split()) in " ".join(done.stdout.split())
    assert set(done.stderr.split()) == {"trioproxy.cli.main", "trioproxy.cli.common"}


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_is_there_and_takes_a_configuration(name: str) -> None:
    done = CliRunner().invoke(main.command, [name, "--help"])
    assert done.exit_code == 0
    assert "--config FILE" in done.stdout


def test_the_version() -> None:
    done = CliRunner().invoke(main.command, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"trioproxy {trioproxy.__version__}\n")
