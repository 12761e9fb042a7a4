"""The figures as SVG, written by hand: panels of horizontal bars, once for light and once for dark pages.

Each panel shows one kind of figure: a group of bars for each case, a bar for each proxy, as long as the median, with a
thin line from the least to the greatest value of any round. A dashed mark shows what trioproxy has to reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import attrs

from bench.figures import OURS, REFERENCE, Figure, Spread, case_text
from bench.report import PROXIES, number

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

WIDTH = 1000
COLUMNS = 2
MARGIN = 20
PANEL = (WIDTH - MARGIN) // COLUMNS - MARGIN
LABELS = 84  # room for a proxy's name left of its bar
VALUES = 62  # room for the value right of the longest one
ROW = 22
BAR = 13
HEAD = 34  # a panel's title
CASE = 22  # a group's title
GAP = 10


@attrs.frozen
class Theme:
    """Colours."""

    paper: str
    edge: str
    text: str
    quiet: str
    bars: dict[str, str]
    target: str


THEMES = {
    "light": Theme(
        paper="#f6f8fa",
        edge="#d0d7de",
        text="#1f2328",
        quiet="#57606a",
        bars={"nginx": "#a5afba", "haproxy": "#c6ced6", "caddy": "#b4c7b8", "trioproxy": "#2f7fd0"},
        target="#b35a1f",
    ),
    "dark": Theme(
        paper="#161b22",
        edge="#3d4652",
        text="#e6edf3",
        quiet="#9aa7b4",
        bars={"nginx": "#6e7986", "haproxy": "#4d5763", "caddy": "#56705d", "trioproxy": "#5aa9f0"},
        target="#e0985a",
    ),
}


@attrs.frozen
class Panel:
    """One panel of a picture: the kind of figure, by its part and key, and a title."""

    part: str
    key: str
    title: str


@attrs.frozen
class Picture:
    """One picture: the name of its files, what it shows, and its panels, row by row."""

    name: str
    title: str
    panels: tuple[Panel, ...]


PICTURES = (
    Picture(
        "passthrough",
        "Passthrough: throughput, and what it costs",
        (
            Panel("connections", "per_s", "new connections per second"),
            Panel("connections", "cpu_us", "CPU of a new connection, µs"),
            Panel("bulk", "mb_s", "MB per second, 8 streams"),
            Panel("bulk", "cpu_s_gb", "CPU of a gigabyte, s"),
        ),
    ),
    Picture(
        "passthrough-latency",
        "Passthrough: latency",
        (
            Panel("latency", "added_p50_ms", "added latency at the same rate, p50, ms"),
            Panel("latency", "added_p99_ms", "added latency at the same rate, p99, ms"),
            Panel("beside", "alone_ms", "small connections by themselves, p99, ms"),
            Panel("beside", "beside_ms", "small connections beside a bulk stream, p99, ms"),
        ),
    ),
    Picture(
        "passthrough-growth",
        "Passthrough: growth",
        (
            Panel("idle", "kb", "memory of an idle connection, KiB"),
            Panel("hosts", "cpu_us", "CPU of a new connection, µs"),
        ),
    ),
    Picture(
        "sites",
        "Sites: what requests, connections and bodies cost",
        (
            Panel("requests", "cpu_us", "CPU of a request, HTTPS/1.1, µs"),
            Panel("http2", "cpu_us", "CPU of a request, HTTP/2, µs"),
            Panel("handshakes", "cpu_us", "CPU of a new connection, µs"),
            Panel("transfer", "cpu_s_gb", "CPU of a gigabyte, s"),
        ),
    ),
    Picture(
        "sites-latency",
        "Sites: latency and memory",
        (
            Panel("pace", "p99_ms", "latency at the same rate, p99, ms"),
            Panel("idle-tls", "kb", "memory of an idle connection, KiB"),
        ),
    ),
)

CASES = {
    "idle": "{} idle connections",
    "hosts": "{} names configured",
    "transfer": "one body {}",
    "idle-tls": "{} idle connections",
}


def draw(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Draw every picture all of whose panels have figures; the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in PICTURES:
        panels = [
            (panel, [f for f in figures if (f.kind.part, f.kind.key) == (panel.part, panel.key)])
            for panel in picture.panels
        ]
        if not all(shown for _, shown in panels):
            continue
        for name, theme in THEMES.items():
            file = folder / f"{picture.name}-{name}.svg"
            file.write_text(_svg(picture, panels, theme))
            written.append(file)
    return written


def _svg(picture: Picture, panels: list[tuple[Panel, list[Figure]]], theme: Theme) -> str:
    parts: list[str] = []
    top = MARGIN
    for at in range(0, len(panels), COLUMNS):
        row = panels[at : at + COLUMNS]
        height = max(_height(shown) for _, shown in row)
        for column, (panel, shown) in enumerate(row):
            parts += _panel(panel, shown, MARGIN + column * (PANEL + MARGIN), top, height)
        top += height + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}"',
        f'     role="img" aria-labelledby="title desc" font-family="{FONT}">',
        f'  <title id="title">{escape(picture.title)}</title>',
        f'  <desc id="desc">{escape(" ".join(_in_words(panel, shown) for panel, shown in panels))}</desc>',
        "  <style>",
        f"    .panel {{ fill: {theme.paper}; stroke: {theme.edge}; stroke-width: 1.5 }}",
        f"    .title {{ font-size: 14px; font-weight: 600; fill: {theme.text} }}",
        f"    .small {{ font-size: 12px; fill: {theme.quiet} }}",
        f"    .value {{ font-size: 12px; fill: {theme.text} }}",
        f"    .range {{ stroke: {theme.text}; stroke-width: 1; opacity: 0.75 }}",
        f"    .goal  {{ stroke: {theme.target}; stroke-width: 2; stroke-dasharray: 4 3 }}",
        f"    .reach {{ font-size: 12px; fill: {theme.target} }}",
        *(f"    .{name} {{ fill: {colour} }}" for name, colour in theme.bars.items()),
        "  </style>",
        *(f"  {part}" for part in parts),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _in_words(panel: Panel, shown: Iterable[Figure]) -> str:
    said = []
    for figure in shown:
        values = ", ".join(
            f"{PROXIES[name]} {number(figure.values[name].median, figure.kind.digits)}"
            for name in PROXIES
            if name in figure.values
        )
        said.append(f"{_case(figure)}: {values}" if figure.case else values)
    return f"{panel.title}: {'; '.join(said)}."


def _case(figure: Figure) -> str:
    return CASES[figure.kind.part].format(case_text(figure.case))


def _height(shown: list[Figure]) -> int:
    groups = sum((CASE if figure.case else 0) + ROW * len(_bars(figure)) + GAP for figure in shown)
    return HEAD + groups + GAP


def _bars(figure: Figure) -> list[tuple[str, Spread]]:
    return [(name, figure.values[name]) for name in PROXIES if name in figure.values]


def _goal(figure: Figure) -> float | None:
    """The value that trioproxy has to reach, with nginx's median in it where that belongs to it."""
    target = figure.kind.target
    if target is not None and target.of == "value":
        return target.bound
    if target is None or REFERENCE not in figure.values:
        return None
    theirs = figure.values[REFERENCE].median
    return target.bound * theirs if target.of == "ratio" else target.bound + theirs


def _panel(panel: Panel, shown: list[Figure], left: int, top: int, height: int) -> list[str]:
    goals = [_goal(figure) for figure in shown]
    longest = max(
        *(spread.greatest for figure in shown for _, spread in _bars(figure)), *(goal for goal in goals if goal), 1e-9
    )
    start = left + LABELS
    scale = (PANEL - LABELS - VALUES) / longest
    parts = [
        f'<rect class="panel" x="{left}" y="{top}" width="{PANEL}" height="{height}" rx="10"/>',
        f'<text class="title" x="{left + 14}" y="{top + 22}">{escape(panel.title)}</text>',
    ]
    y = top + HEAD
    for figure, goal in zip(shown, goals, strict=True):
        if figure.case:
            parts.append(f'<text class="small" x="{left + 14}" y="{y + 14}">{escape(_case(figure))}</text>')
            y += CASE
        for name, spread in _bars(figure):
            mark = goal * scale if name == OURS and goal is not None else None
            parts += _bar(figure, name, spread, start, y, scale, mark)
            if mark is not None:
                x = start + mark
                parts.append(f'<line class="goal" x1="{x:.1f}" y1="{y - 2}" x2="{x:.1f}" y2="{y + ROW - 1}"/>')
            y += ROW
        y += GAP
    if any(goal is not None for goal in goals):
        parts.append(
            f'<text class="reach" x="{left + PANEL - 14}" y="{top + 22}" text-anchor="end">'
            f"to reach: {escape(_reach(shown[0]))}</text>"
        )
    return parts


def _reach(figure: Figure) -> str:
    target = figure.kind.target
    if target is None:
        return ""
    return f"{target} nginx" if target.of == "ratio" else str(target)


def _bar(figure: Figure, name: str, spread: Spread, start: int, y: int, scale: float, mark: float | None) -> list[str]:
    middle = y + ROW / 2
    least, median, greatest = (max(0.0, value) * scale for value in (spread.least, spread.median, spread.greatest))
    end = max(median, greatest)
    if mark is not None and end - 8 < mark < end + VALUES:
        end = mark  # the value stands right of the mark, not under it
    text = number(spread.median, figure.kind.digits)
    box = f'x="{start}" y="{middle - BAR / 2:.1f}" width="{max(1.0, median):.1f}" height="{BAR}" rx="2"'
    return [
        f'<text class="small" x="{start - 8}" y="{middle + 4:.1f}" text-anchor="end">{PROXIES[name]}</text>',
        f'<rect class="{name}" {box}/>',
        f'<line class="range" x1="{start + least:.1f}" y1="{middle}" x2="{start + greatest:.1f}" y2="{middle}"/>',
        f'<text class="value" x="{start + end + 8:.1f}" y="{middle + 4:.1f}">{text}</text>',
    ]
