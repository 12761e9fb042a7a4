"""`trioproxy reload`: have the running server go by the configuration as it is now."""

from __future__ import annotations

import json

import click

from trioproxy.cli.asking import asked
from trioproxy.cli.common import CONFIG_WRONG, json_option, print_mistakes, read_config
from trioproxy.errors import ConfigError


@click.command("reload")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@json_option
@click.pass_context
def command(context: click.Context, dry_run: bool, as_json: bool) -> None:
    """Have the running server read its configuration again, and show what that changes.

    Names that stay keep their connections. A file with mistakes changes nothing, and the exit code is 2.
    """
    try:
        config = read_config(context)
    except ConfigError as exc:
        if as_json:
            mistakes = [{"line": m.line, "key": m.key, "problem": m.problem} for m in exc.mistakes]
            click.echo(json.dumps({"mistakes": mistakes, "lines": exc.lines()}, indent=2))
        else:
            print_mistakes(exc)
            click.echo("Nothing was changed.", err=True)
        raise click.exceptions.Exit(CONFIG_WRONG) from exc
    outcome = asked(config, "reload", dry_run=dry_run)
    wrong = "mistakes" in outcome
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
    else:
        for line in outcome["lines"]:
            click.echo(line, err=wrong)
        if wrong:
            click.echo("Nothing was changed.", err=True)
        elif dry_run:
            click.echo("Nothing was changed: without --dry-run, this will be.", err=True)
    context.exit(CONFIG_WRONG if wrong else 0)
