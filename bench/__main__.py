"""Measure trioproxy beside nginx, HAProxy and Caddy, print the figures, and draw them.

    python -m bench [PART ...] [--quick] [--rounds N] [--seconds S] [--json FILE] [--pictures DIR]
    python -m bench --from FILE [--markdown] [--pictures DIR]

Without PART everything is measured, in some fifteen minutes, and the pictures of docs/pictures are drawn anew. The part
`start` is bench/start.py, which needs nothing but trioproxy.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import attrs

from bench import certificates, passthrough, plot, report, sites, start
from bench.figures import Figure, figures
from bench.load import Load
from bench.process import BenchError, raise_descriptor_limit
from bench.proxies import PASSING, installed
from bench.samples import QUICK, Sample, Settings
from bench.site_load import SiteLoad
from bench.site_proxies import NAME

PARTS = (*passthrough.PARTS, *sites.PARTS)
PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"


@attrs.frozen
class Results:
    """A run as it is kept in a file."""

    when: str
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, object]
    load_before: str
    load_after: str
    samples: list[Sample]

    def save(self, file: Path) -> None:
        """Write it to `file`."""
        file.write_text(json.dumps(attrs.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, file: Path) -> Results:
        """Read it from `file`."""
        said = json.loads(file.read_text())
        return cls(**{**said, "samples": [Sample(**sample) for sample in said["samples"]]})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="*", metavar="PART", help=f"one or more of: start, {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one round of a second each, and the smaller numbers")
    parser.add_argument("--rounds", type=int, help="turns of each proxy (default: 3)")
    parser.add_argument("--seconds", type=float, help="length of each measurement (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="results", help="measure nothing; take FILE's samples"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="draw what was measured into DIR; a run of everything draws into docs/pictures by itself",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.part) - {"start", *PARTS}
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return arguments


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = QUICK if arguments.quick else Settings()
    return attrs.evolve(
        settings, rounds=arguments.rounds or settings.rounds, seconds=arguments.seconds or settings.seconds
    )


def _measure(parts: list[str], settings: Settings) -> Results:
    versions = installed()
    load_before = report.load_average()
    samples: list[Sample] = []
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for sample in _samples(parts, settings, Path(name), tuple(versions)):
            values = "  ".join(f"{key} {value:,.2f}" for key, value in sample.values.items()) or sample.missing
            print(
                f"{sample.part} {sample.case:>5}  {sample.round + 1}. {sample.proxy:<9}  {values}",
                file=sys.stderr,
                flush=True,
            )
            samples.append(sample)
    return Results(
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        machine=report.machine(),
        versions=versions,
        settings=attrs.asdict(settings),
        load_before=load_before,
        load_after=report.load_average(),
        samples=samples,
    )


def _samples(parts: list[str], settings: Settings, folder: Path, proxies: tuple[str, ...]) -> Iterator[Sample]:
    of_passthrough = [part for part in passthrough.PARTS if part in parts]
    of_sites = [part for part in sites.PARTS if part in parts]
    if of_passthrough:
        passing = tuple(name for name in proxies if name in PASSING)
        bench = passthrough.Bench(Load(folder), folder, passing, settings)
        for part in of_passthrough:
            yield from passthrough.PARTS[part](bench)
    if of_sites:
        certificate = certificates.issue(NAME, folder)
        site_bench = sites.SiteBench(SiteLoad(folder), folder, certificate, proxies, settings)
        for part in of_sites:
            yield from sites.PARTS[part](site_bench)


def _show(results: Results, *, as_markdown: bool) -> list[Figure]:
    found = figures(results.samples)
    print("\n" + report.tables(found, as_markdown=as_markdown))
    versions = ", ".join(f"{report.PROXIES[name]} {version}" for name, version in results.versions.items())
    print(f"\n{results.when}: {'; '.join(results.machine.values())}; {versions}")
    print(f"load average before {results.load_before}, after {results.load_after}")
    return found


def _stop(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Do what the arguments say."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C does: what was started is stopped on the way out
    everything = not arguments.part and not arguments.quick
    pictures = arguments.pictures
    if arguments.results is not None:
        results = Results.load(arguments.results)
    else:
        parts = arguments.part or ["start", *PARTS]
        if "start" in parts:
            start.main()
        parts = [part for part in PARTS if part in parts]
        if not parts:
            return
        results = _measure(parts, _settings(arguments))
        if everything and pictures is None:
            pictures = PICTURES
    if arguments.json is not None:
        results.save(arguments.json)
    found = _show(results, as_markdown=arguments.markdown)
    if pictures is not None:
        for file in plot.draw(found, pictures):
            print(f"drawn: {file}")


if __name__ == "__main__":
    try:
        main()
    except BenchError as exc:
        sys.exit(f"bench: {exc}")
    except KeyboardInterrupt:
        sys.exit(130)
