"""What every command shares: which configuration it goes by, and how it says that there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from trioproxy.config.load import load
from trioproxy.config.model import Config
from trioproxy.errors import ConfigError

DEFAULTS = (Path("config.toml"), Path("/etc/trioproxy/config.toml"))
"""Where a configuration is looked for when none is named."""

CONFIG_WRONG = 2
"""The exit code for wrong usage or configuration; 1 is for what did not work."""

SEVEN_LINES = """\
[acme]
email = "me@myname.com"
[passthrough]                     # TLS goes through untouched; the backend owns its certificate
"pbx.myname.com" = "10.1.2.3"
[sites]                           # TLS ends here; trioproxy obtains and renews the certificates
"cloud.myname.com" = "http://10.2.3.4"
"home.myname.com"  = { "/" = "http://10.2.3.5:8123", "/someservice/" = "http://10.2.3.6/" }
"""

_NAMED = "trioproxy.config"


def _note(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.meta[_NAMED] = value


def config_option() -> click.Option:
    """The option `--config FILE`, before or after the command; where it is given twice, the later one counts."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        expose_value=False,
        callback=_note,
        help="The configuration; by default ./config.toml, then /etc/trioproxy/config.toml.",
    )


def accept_config(command: click.Command) -> None:
    """Let a command, and those below it, take `--config` too."""
    if not any(parameter.name == "config" for parameter in command.params):
        command.params.append(config_option())
    for below in getattr(command, "commands", {}).values():
        accept_config(below)


Function = TypeVar("Function", bound=Callable[..., object])


def json_option(function: Function) -> Function:
    """The option `--json`, for every command that prints a table; its function gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")(function)


def config_path(context: click.Context) -> Path:
    """The configuration file to go by; where there is none, say so, show a first one, and exit."""
    named: Path | None = context.meta.get(_NAMED)
    path = named or next(filter(Path.exists, DEFAULTS), None)
    if path is None or not path.exists():
        missing = f"{named} is not there" if named else f"neither {DEFAULTS[0]} nor {DEFAULTS[1]} is there"
        place = str(named or f"{DEFAULTS[0]} in this folder, or {DEFAULTS[1]}")
        click.echo(f"There is no configuration: {missing}.", err=True)
        click.echo(f"Put your own names and addresses into these seven lines, and save them as {place}:", err=True)
        click.echo(f"\n{SEVEN_LINES}", err=True)
        raise click.exceptions.Exit(CONFIG_WRONG)
    return path


def read_config(context: click.Context) -> Config:
    """The configuration that the command is to go by; standard error says which file it is, unless with `--json`.

    Raises:
        ConfigError: there are mistakes in it.
    """
    path = config_path(context)
    if not context.params.get("as_json", False):
        click.echo(f"configuration: {path}", err=True)
    return load(path)


def load_config(context: click.Context) -> Config:
    """As `read_config`, for commands that have nothing to add to mistakes: they are printed, and the command ends."""
    try:
        return read_config(context)
    except ConfigError as exc:
        print_mistakes(exc)
        raise click.exceptions.Exit(CONFIG_WRONG) from exc


def print_mistakes(error: ConfigError) -> None:
    """Print what is wrong with a configuration on standard error, a line for each mistake."""
    for line in error.lines():
        click.echo(line, err=True)
