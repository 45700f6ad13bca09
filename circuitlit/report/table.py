"""The result of a run as rows: for the page, and as the short table that closes a run in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Key in result.json, heading, better direction.
COLUMNS = (
    ("kl", "KL (nats)", "lower is better"),
    ("faithfulness", "faithfulness", "1 is the full model"),
    ("accuracy", "accuracy", "higher is better"),
    ("exact_match", "exact match", "higher is better"),
)
_METRICS = (
    ("prob_diff", "probability difference", "near the full model's is better"),
    ("logit_diff", "logit difference", "near the full model's is better"),
)
_LABELS = {
    "circuit": "this circuit",
    "attribution": "attribution, same size",
    "attribution_reachable": "attribution, same reachable",
    "shuffled": "shuffled",
    "random": "random",
    "corrupted": "corrupted run",
    "full": "full model",
}
# Columns of terminal from which on a metric is printed with its interval.
_INTERVAL_FROM = {"kl": 90, "faithfulness": 112, "accuracy": 150, "exact_match": 150}


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % interval; None where it was not measured or does not exist."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, raw: object) -> Metric:
        """From `{"value", "low", "high"}`; anything but finite numbers becomes None."""
        if not isinstance(raw, dict):
            return cls()
        return cls(*(_finite(raw.get(key)) for key in ("value", "low", "high")))

    def text(self, form: str = "z.3f") -> str:
        """The value alone, "-" without one."""
        return "-" if self.value is None else format(self.value, form)

    def interval(self, form: str = "z.3f") -> str:
        """`[low, high]`, empty without both."""
        if self.value is None or self.low is None or self.high is None:
            return ""
        return f"[{self.low:{form}}, {self.high:{form}}]"

    def __str__(self) -> str:
        return f"{self.text()} {self.interval()}".rstrip()


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: `circuit`, or the entry of result.json.
        label: what the reader sees.
        note: what result.json calls it beyond that, empty where it says nothing.
        edges: edges asked for, "-" where unknown.
        reachable: reachable ones of them, empty where unknown.
        metrics: one per entry of `columns(result)`.
    """

    key: str
    label: str
    note: str
    edges: str
    reachable: str
    metrics: tuple[Metric, ...]


def columns(result: dict) -> tuple[tuple[str, str, str], ...]:
    """`COLUMNS` and the task's own metric: the probability difference where it exists, else the logit difference."""
    own = next((c for c in _METRICS if Metric.of(result.get(c[0])).value is not None), _METRICS[-1])
    return (*COLUMNS, own)


def result_rows(result: dict) -> list[Row]:
    """The circuit, then what it is compared with, as far as result.json has it; a missing metric becomes "-"."""
    rows = []
    for key in _LABELS:
        entry = result if key == "circuit" else result.get(key)
        if not isinstance(entry, dict):
            continue
        edges = {"full": result.get("n_edges_total"), "corrupted": 0}.get(key, entry.get("n_edges"))
        metrics = tuple(Metric.of(entry.get(name)) for name, _, _ in columns(result))
        note = str(entry.get("label") or "") if key != "circuit" else str(result.get("method") or "")
        reachable = count(entry.get("n_edges_reachable"), "")
        rows.append(Row(key, _label(key, entry, result), note, count(edges), reachable, metrics))
    return rows


def print_table(result: dict, console: Console) -> None:
    """Print the short closing table; in a narrow terminal the less important columns lose their intervals."""
    title = f"{result.get('task')} on {result.get('model')}: {percent(result.get('sparsity'))} of "
    title += f"{count(result.get('n_edges_total'))} edges removed, {count(result.get('n_pairs'))} held-out pairs"
    table = Table(title=Text(title, "bold"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    with_interval = {name for name, _, _ in columns(result) if console.width >= _INTERVAL_FROM.get(name, 150)}
    table.add_column("circuit", overflow="fold")
    table.add_column("edges", justify="right", no_wrap=True)
    for name, heading, _ in columns(result):
        wide, short = name in with_interval, heading.replace("difference", "diff").replace(" ", "\n")
        table.add_column(heading if wide else short, justify="left" if wide else "right", no_wrap=True)
    for row in result_rows(result):
        cells = [
            str(metric) if name in with_interval else metric.text()
            for (name, _, _), metric in zip(columns(result), row.metrics, strict=True)
        ]
        style = "bold" if row.key == "circuit" else ""
        table.add_row(*(Text(cell) for cell in (row.label, row.edges, *cells)), style=style)
    console.print(table)
    failed = result.get("status") != "OK"
    reason = result.get("reason")
    closing = f"{result.get('status')}: {reason}" if reason else str(result.get("status"))
    console.print(Text(closing, "bold red" if failed else "green"))


def count(value: object, absent: str = "-") -> str:
    """A whole number with thousands separators."""
    return f"{value:,}" if isinstance(value, int) else absent


def percent(share: object) -> str:
    """A share as `95.0 %`, with as many digits as the sparsity needs not to read 100."""
    number = _finite(share)
    if number is None:
        return "-"
    digits = next((d for d in (1, 2, 3) if number == 1 or round(100 * number, d) < 100), 4)
    return f"{100 * number:.{digits}f} %"


def _label(key: str, entry: dict, result: dict) -> str:
    label = _LABELS[key]
    if isinstance(entry.get("n_circuits"), int):
        label += f", mean of {entry['n_circuits']}"
    if isinstance(entry.get("n_pairs"), int) and entry["n_pairs"] != result.get("n_pairs"):
        label += f" ({entry['n_pairs']} pairs)"
    return label


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
