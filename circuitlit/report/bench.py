"""Measurements of time and memory as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from circuitlit.evaluate.cost.benchmark import (
    AttributionTimes,
    Benchmark,
    MemoryPlan,
    MemoryPlans,
    RunTimes,
    StepTime,
    StepTimes,
)

SCALING = ("layers", "edges", "tokens", "examples", "step", "to_stock", "peak_gib")
Rows = Sequence[dict[str, str]]


def print_benchmark(found: Benchmark, console: Console) -> None:
    """Print its table."""
    if isinstance(found, MemoryPlans):
        console.print(_upright(f"Memory of one step: {found.what}", [_plan_row(one) for one in found.measured]))
    elif isinstance(found, StepTimes) and found.bench == "step":
        console.print(_upright(f"One step of {found.what}", [_step_row(one) for one in found.measured]))
    elif isinstance(found, StepTimes) and found.bench == "length":
        console.print(_table(f"Cost against length, {found.what}", [_length_row(one) for one in found.measured]))
    elif isinstance(found, StepTimes):
        rows = [{name: _figure(getattr(one, name)) for name in SCALING} for one in found.measured]
        console.print(_table(f"Scaling of {found.what}", rows))
    elif isinstance(found, AttributionTimes):
        rows = [{name: _figure(value) for name, value in asdict(one).items()} for one in found.measured]
        console.print(_table(f"Scores of all edges of {found.what}", rows))
    elif isinstance(found, RunTimes):
        for one in found.measured:
            table = Table("phase", "seconds", title=f"A run of {found.what}: {one.seconds:.1f} s")
            for phase, seconds in one.phases.items():
                table.add_row(phase, f"{seconds:.2f}")
            console.print(table)


def _step_row(one: StepTime) -> dict[str, str]:
    shown = {
        "dtype": one.dtype,
        "edges": f"{one.edges:,}",
        "step": f"{one.step * 1e3:.1f} ms ({one.low * 1e3:.1f} to {one.high * 1e3:.1f})",
        "stock forward and backward": f"{one.stock * 1e3:.1f} ms" if one.stock else "-",
        "step / stock": f"{one.to_stock:.2f}" if one.to_stock else "-",
        "mixing's traffic": f"{one.traffic_bytes / 1e9:.2f} GB",
        "step / time of that traffic": f"{one.to_traffic:.1f}",
        "peak memory": ", ".join(f"{peak:.2f}" for peak in one.peaks_gib) + " GiB",
        "planned": f"{one.planned_gib:.2f} GiB" if one.planned_gib else "-",
        "references": "cached" if one.cached else "computed in the step",
    }
    return shown | {f"  {name}": f"{seconds * 1e3:.1f} ms" for name, seconds in one.phases.items()}


def _recomputed(what: bool | str | None) -> str:
    return what if isinstance(what, str) else "all" if what else "nothing"


def _length_row(one: StepTime) -> dict[str, str]:
    return {
        "pairs x tokens": f"{one.batch} x {one.tokens:,}",
        "panel": str(one.panel),
        "recompute": _recomputed(one.recompute),
        "ms a step": f"{one.step * 1e3:.4g}",
        "us a token": f"{one.step * 1e6 / (one.batch * one.micro_batches * one.tokens):.3g}",
        "step / stock": f"{one.to_stock:.2f}" if one.to_stock else "-",
        "step / traffic": f"{one.to_traffic:.1f}",
        "GiB": f"{one.peak_gib:.2f}",
        "planned": f"{one.planned_gib:.2f}" if one.planned_gib else "-",
    }


def _plan_row(one: MemoryPlan) -> dict[str, str]:
    size = f"{one.batch} x {one.tokens} tokens, {one.dtype}, panel {one.panel}, recompute: {_recomputed(one.recompute)}"
    return {
        "batch": size,
        "on": f"{one.devices} x {one.strategy}",
        "edges": f"{one.edges:,}",
        **{name: f"{size:.2f} GiB" for name, size in one.gib.items()},
        "sum": f"{one.total_gib:.2f} GiB",
        f"largest batch in {one.room_gib:.0f} GiB": str(one.largest_batch),
    }


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str("-" if value is None else value)


def _table(title: str, rows: Rows) -> Table:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row.values())
    return table


def _upright(title: str, rows: Rows) -> Table:
    """Every row of figures is a column."""
    table = Table(title=title, show_header=False)
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(row.get(name, "") for row in rows))
    return table
