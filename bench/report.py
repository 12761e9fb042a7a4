"""The figures as a table, for a terminal and in Markdown, and the machine they come from."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from bench.figures import KINDS, Figure, Spread

PROXIES = {"nginx": "nginx", "haproxy": "HAProxy", "caddy": "Caddy", "trioproxy": "trioproxy"}
"""Names for people, in the order of the columns."""


def machine() -> dict[str, str]:
    """What the figures depend on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"Python {platform.python_version()}",
    }


def load_average() -> str:
    """How busy the machine is, all told: mean number of runnable processes over 1, 5 and 15 minutes."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def tables(figures: Sequence[Figure], *, as_markdown: bool) -> str:
    """The figures, a table for passthrough and one for sites."""
    said = []
    for title, kinds in KINDS.items():
        shown = [figure for figure in figures if figure.kind in kinds]
        if shown:
            columns = [name for name in PROXIES if any(name in f.values or name in f.missing for f in shown)]
            rows = _rows(shown, columns)
            said.append(f"### {title}\n\n{_markdown(rows)}" if as_markdown else f"{title}\n{_table(rows)}")
    return "\n\n".join(said)


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 2) + " --- |", *lines[1:]])


def _rows(figures: Sequence[Figure], columns: Sequence[str]) -> list[list[str]]:
    rows = [["", *(PROXIES[name] for name in columns), "÷ nginx", "to reach", ""]]
    for figure in figures:
        digits = figure.kind.digits
        cells = [
            _cell(figure.values[name], digits) if name in figure.values else figure.missing.get(name, "")
            for name in columns
        ]
        ratio = "" if figure.ratio is None else _cell(figure.ratio, 2)
        rows.append([figure.title, *cells, ratio, str(figure.kind.target or ""), figure.verdict])
    return rows


def number(value: float, digits: int) -> str:
    """With so many decimals, and thousands apart."""
    return f"{value:,.{digits}f}"


def _cell(spread: Spread, digits: int) -> str:
    median, least, greatest = (number(value, digits) for value in (spread.median, spread.least, spread.greatest))
    return median if least == greatest else f"{median} ({least}-{greatest})"
