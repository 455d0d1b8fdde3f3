"""Bars, what was measured against them, and how both are shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.arithmetic import Spread


@dataclass(frozen=True)
class Bar:
    """What a figure must reach. ``decimals`` and ``unit`` are for showing it; a share is shown in percent."""

    limit: float
    at_least: bool
    unit: str = ""
    decimals: int = 2

    def is_met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def show(self, value: float, *, unit: bool = True) -> str:
        if self.unit == "%":
            return f"{value * 100:.{self.decimals}f}" + (" %" if unit else "")
        return f"{value:.{self.decimals}f}" + (f" {self.unit}" if unit and self.unit else "")

    def __str__(self) -> str:
        shown = self.show(self.limit)
        if "." in shown.split(" ")[0]:
            number, *rest = shown.split(" ")
            shown = " ".join([number.rstrip("0").rstrip("."), *rest])
        return ("≥ " if self.at_least else "≤ ") + shown


def at_least(limit: float, unit: str = "", decimals: int = 2) -> Bar:
    return Bar(limit=limit, at_least=True, unit=unit, decimals=decimals)


def at_most(limit: float, unit: str = "", decimals: int = 2) -> Bar:
    return Bar(limit=limit, at_least=False, unit=unit, decimals=decimals)


@dataclass(frozen=True)
class Row:
    """One figure against its bar; one value for each repetition."""

    measurement: str
    figure: str
    bar: Bar
    values: Sequence[float]
    # The bar holds for every repetition, not for the one in the middle.
    worst: bool = False
    note: str = ""
    # What the figure was computed from, and the absolute numbers of this machine.
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> float:
        spread = Spread.of(self.values)
        if not self.worst:
            return spread.median
        return spread.low if self.bar.at_least else spread.high

    @property
    def is_met(self) -> bool:
        return self.bar.is_met_by(self.judged)

    def shown(self) -> tuple[str, str]:
        """The figure that is judged, and its spread."""
        spread = Spread.of(self.values)
        between = f"{self.bar.show(spread.low, unit=False)} … {self.bar.show(spread.high, unit=False)}"
        return self.bar.show(self.judged), between if len(self.values) > 1 else ""

    def as_json(self) -> dict[str, Any]:
        spread = Spread.of(self.values)
        measured, between = self.shown()
        return {
            "measurement": self.measurement,
            "figure": self.figure,
            "bar": str(self.bar),
            "met": self.is_met,
            "measured": measured,
            "spread": between,
            "judged_by": "worst" if self.worst else "median",
            "median": spread.median,
            "low": spread.low,
            "high": spread.high,
            "unit": self.bar.unit,
            "values": list(self.values),
            "note": self.note,
            "details": self.details,
        }


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title="Measured against the bars", title_justify="left", pad_edge=False)
    for name in ("figure", "bar", "measured", "spread", "", "beside it"):
        right = name in {"bar", "measured", "spread"}
        shown.add_column(name, justify="right" if right else "left", no_wrap=name in {"bar", "measured", "spread", ""})
    for row in rows:
        verdict = Text("met", style="green") if row.is_met else Text("NOT MET", style="bold red")
        shown.add_row(row.figure, str(row.bar), *row.shown(), verdict, row.note)
    return shown


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| figure | bar | measured | spread | | beside it |", "| --- | ---: | ---: | ---: | --- | --- |"]
    for row in rows:
        verdict = "met" if row["met"] else "**not met**"
        cells = [row["figure"], row["bar"], row["measured"], row["spread"], verdict, row["note"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(results: Mapping[str, Any]) -> str:
    """What docs/benchmarks.md shows of the results, which may be of several runs."""
    runs = results["runs"]
    lines = [
        *("\n".join([_ran(run, results["rows"], says_what=len(runs) > 1), ""]) for run in runs),
        markdown(results["rows"]),
        "",
        "The machine meanwhile (steal and busy: shares of all processors' time; the loop is always the same work):",
        "",
        "| measurement | steal | worst | busy | fixed loop, ms | its spread |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *("| " + " | ".join(row) + " |" for row in noise_rows(results["noise"])),
        "",
        "All of it, with every repetition: [benchmarks.json](benchmarks.json).",
    ]
    return "\n".join(lines)


def _ran(run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, says_what: bool) -> str:
    versions = {**run["packages"], **run["compared_with"]}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    turns = sorted({len(row["values"]) for row in rows if row["measurement"] in run["measurements"]})
    often = " or ".join(map(str, turns))
    what = f" of {', '.join(f'`{name}`' for name in run['measurements'])}" if says_what else ""
    return (
        f"Run{what} on {run['when']}, commit {run['commit']}: {run['processors']} × {run['processor']},"
        f" {run['memory_gb']} GB, Python {run['python']}, PostgreSQL {run['postgresql']}, {packages};"
        f" each figure {often} times, {run['minutes']} minutes."
    )


def noise_table(noise: Sequence[dict[str, Any]]) -> Table:
    """What the machine did beside us, for each measurement: medians, and the worst."""
    shown = Table(title="The machine meanwhile", title_justify="left", pad_edge=False)
    for name in ("measurement", "steal", "worst", "busy", "fixed loop, ms", "its spread"):
        shown.add_column(name, justify="left" if name == "measurement" else "right")
    for row in noise_rows(noise):
        shown.add_row(*row)
    return shown


def noise_rows(noise: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(each["measurement"] for each in noise):
        of = [each for each in noise if each["measurement"] == name]
        steal = Spread.of([each["steal"] for each in of])
        busy = Spread.of([each["busy"] for each in of])
        loop = Spread.of([each["loop_ms"] for each in of])
        rows.append(
            (
                name,
                f"{steal.median:.1%}",
                f"{steal.high:.1%}",
                f"{busy.median:.0%}",
                f"{loop.median:.1f}",
                f"{loop.low:.1f} … {loop.high:.1f}",
            )
        )
    return rows


def show(console: Console, rows: Sequence[Row], noise: Sequence[dict[str, Any]]) -> None:
    console.print()
    console.print(table(rows))
    console.print()
    console.print(noise_table(noise))


def results(*, machine: Mapping[str, Any], rows: Sequence[Row], noise: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one run."""
    measurements = list(dict.fromkeys(row.measurement for row in rows))
    return {
        "runs": [{**machine, "measurements": measurements}],
        "rows": [row.as_json() for row in rows],
        "noise": list(noise),
    }


def merged(older: Mapping[str, Any], newer: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """The newer results in place of the older ones of the same measurements; of the others the older ones stay."""
    again = {row["measurement"] for row in newer["rows"]}
    kept = [
        {**run, "measurements": left}
        for run in older["runs"]
        if (left := [name for name in run["measurements"] if name not in again])
    ]

    def both(part: str) -> list[Any]:
        found = [each for each in older[part] if each["measurement"] not in again] + newer[part]
        return sorted(found, key=lambda each: order.index(each["measurement"]))

    return {"runs": [*kept, *newer["runs"]], "rows": both("rows"), "noise": both("noise")}


def write(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
