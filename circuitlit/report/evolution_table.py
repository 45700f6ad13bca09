"""The evolution of circuits as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitlit.report.table import Metric, count


def print_evolution(result: dict[str, Any], console: Console) -> None:
    """Print a table a series and task, then stages, what emerged when, the causal check, and errors."""
    for series in result["series"]:
        for task, entry in series["tasks"].items():
            if entry["rows"]:
                console.print(_table(series, task, entry, result["faithfulness"], console.width))
                console.print(Text(f"  {stages_text(entry['stages'])}"), soft_wrap=True)
        if series["heads"]["rows"]:
            console.print(_heads_table(series))
        for text in causal_lines(series):
            console.print(Text(f"  {text}"), soft_wrap=True)
    console.print(emergence_table(result))
    for row in result["errors"]:
        text = f"ERROR {row['series']}, {row['task']}, step {row['step']}: {row['reason']}"
        console.print(Text(text, "bold red"), soft_wrap=True)


def _table(series: dict[str, Any], task: str, entry: dict[str, Any], target: float, width: int) -> Table:
    """In a narrow terminal the accuracy stands without its interval."""
    total = entry["rows"][0]["n_edges_total"]
    table = _empty(f"{series['name']}, {task}: {count(total)} edges")
    wide, faithful = width >= 100, f"edges for\n{target:.0%}"
    headings = ("step", "tokens", "accuracy", faithful, "raw", "nodes", "J* to\nbefore", "J* to\nlast", "node\nEWMA")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in entry["rows"]:
        alike = row["likeness"]
        smallest = row["smallest"] if row["status"] == "OK" else None
        before, accuracy = alike["previous"], Metric.of(row["behaviour"]["accuracy"])
        table.add_row(
            count(row["step"]),
            tokens_text(row["tokens"]),
            str(accuracy) if wide else accuracy.text(),
            count(smallest["n_edges"]) if smallest else "FAILED" if row["status"] == "FAILED" else "-",
            _size(row["smallest_raw"]),
            count(smallest["n_nodes"]) if smallest else "-",
            _number(before and before["corrected_jaccard"]),
            _number(alike["last"]["corrected_jaccard"]),
            _number(alike["node_ewma"]),
        )
    return table


def _heads_table(series: dict[str, Any]) -> Table:
    rows = series["heads"]["rows"]
    roles = list(rows[0]["best"])
    table = _empty(f"{series['name']}: best head score of each role, and repeated random tokens")
    for heading in ("step", "tokens", *(role.replace("_", "\n") for role in roles), "loss", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        scores = [_number(row["best"][role]) for role in roles]
        table.add_row(
            count(row["step"]), tokens_text(row["tokens"]), *scores, _number(row["loss"]), _number(row["accuracy"])
        )
    return table


def emergence_table(result: dict[str, Any]) -> Table:
    """When each task and head role reached half of its gain for good, by series."""
    table = _empty("tokens (or steps) from which on half of the gain is kept")
    tasks = result["tasks"]
    roles = list(dict.fromkeys(role for s in result["series"] for role in s["heads"]["emerged"]))
    for heading in ("series", "parameters", *tasks, *(role.replace("_", "\n") for role in roles)):
        table.add_column(heading, justify="right")
    for series in result["series"]:
        cells = [series["tasks"][task]["emerged"] for task in tasks]
        cells += [series["heads"]["emerged"].get(role) for role in roles]
        table.add_row(series["name"], count(series["n_parameters"]), *(when_text(cell) for cell in cells))
    return table


def causal_lines(series: dict[str, Any]) -> list[str]:
    """Sentences on what ablating the induction heads removes."""
    causal = series["causal"]
    if causal is None:
        return []
    if causal["status"] != "OK":
        return [f"no causal check: {causal['reason']}"]
    lines = []
    for name in ("loss", "accuracy"):
        check = causal[name]
        share, random = (100 * (check[key] or 0.0) for key in ("share", "random_share"))
        lines.append(
            f"{', '.join(causal['heads'])}: ablated, {share:.0f} % of the gain in {name} on repeated tokens is gone; "
            f"{check['draws']} random sets of as many heads: {random:.0f} % "
            f"(difference {Metric.of(check['difference'])}, intact {Metric.of(check['intact'])})"
        )
    return lines


def stages_text(stages: dict[str, Any]) -> str:
    """Stages with their steps in one line."""
    seen = [
        f"{stage['name'].replace('_', ' ')} {stage['start']['step']:,} to {stage['end']['step']:,}"
        for stage in stages["stages"]
        if stage["observed"]
    ]
    return "stages: " + (", ".join(seen) or stages["verdict"])


def when_text(entry: dict[str, Any] | None) -> str:
    """Tokens, else steps, "-" for what did not emerge."""
    if entry is None:
        return "-"
    return tokens_text(entry["tokens"]) if entry["tokens"] is not None else f"step {entry['step']:,}"


def tokens_text(tokens: float | None) -> str:
    """`2.1M`, "-" where unknown."""
    if tokens is None:
        return "-"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"


def _empty(title: str) -> Table:
    return Table(title=Text(title, "bold"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")


def _size(found: dict[str, Any] | None) -> str:
    return count(found["n_edges"]) if found and found["status"] == "OK" else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
