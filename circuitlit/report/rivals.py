"""`rivals.json` as a table and as one page: the frontier, the verdict, the edges that are held longest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.evaluate.trust.rivals import RivalCircuit, Rivals
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import html_table, write_simple_page

HEADINGS = ("common edges", "KL, nats", "above the circuit's", "exact match", "random", "best start", "state")


def rival_rows(result: Rivals) -> Iterator[tuple[str, ...]]:
    """A line a circuit, as plain texts; the one without a constraint last."""
    for one in result.rivals:
        yield _cells(f"{one.n_common:,} ({one.share:.0%})", one)
    yield _cells(f"free: {result.free.n_common:,} ({result.free.share:.0%})", result.free)


def _cells(name: str, one: RivalCircuit) -> tuple[str, ...]:
    beside = ["-" if kl is None else f"{kl.value:.3f}" for kl in (one.random_kl, one.ranked_kl)]
    return name, str(one.kl), str(one.worse), f"{one.exact_match.value:.3f}", *beside, f"{one.state} ({one.start})"


def facts(result: Rivals) -> list[tuple[str, str]]:
    """Figures with their names, as plain texts."""
    between = "" if result.u == result.u_low else f", may be {result.u_low:.2f}"
    found = [
        ("verdict", f"{result.verdict}: {result.why}"),
        ("overturned by", result.overturned_by),
        ("u, least share of common edges", f"{result.u:.2f}{between}; a random circuit has {result.u_chance:.3f}"),
        ("core, in the circuit and all accepted rivals", f"{result.core:,} of {result.n_edges:,} edges"),
    ]
    if result.redundancy is not None:
        one = result.redundancy
        lost = [f"{part.value:.3f}" for part in (one.first, one.rival, one.both)]
        damage = f"without the circuit {lost[0]} nats, the rival {lost[1]}, both {lost[2]}"
        found.append(("redundancy (1 is additive)", f"{one.ratio}; {damage}"))
    if result.control is not None:
        one = result.control
        said = f"{one.edges_found} of {one.edges} edges, KL {one.kl:.3f} of {one.corrupted_kl:.3f} nats"
        size = f"{one.n_edges:,} of {one.n_edges_total:,} edges"
        found.append(("planted second copy", f"{'found' if one.found else 'not found'}: {said}; {size}"))
    return found


def print_rivals(result: Rivals, console: Console) -> None:
    """Print the frontier and what follows from it."""
    table = grid(_title(result), HEADINGS)
    for row in rival_rows(result):
        table.add_row(*row)
    console.print(table)
    for name, text in facts(result):
        console.print(f"{name}: {text}", highlight=False, markup=False)


def write_rivals(result: Rivals, folder: Path) -> Path:
    """Write `rivals.html` into a folder: one file that needs nothing else."""
    lead = (
        f"{result.n_edges:,} of {result.n_edges_total:,} edges by {result.method}, KL {result.kl} of "
        f"{result.corrupted_kl} nats. Rivals have as many edges, and exactly the given number in common with it; masks "
        f"were trained for {result.steps} steps from {len(result.starts)} starts. One is accepted if its KL is at most "
        f"{result.bar:.3g} nats higher, at the upper end of the interval (other pairs of these "
        f"{result.n_sentences} sentences), and its exact match at most {result.exact_bar:g} lower."
    )
    cross = [[task, *map(str, sets.values())] for task, sets in result.cross.items()]
    names = next(iter(result.cross.values()))
    held = [(name, f"{share:.2f}") for name, share in result.hardest.items()]
    sections = [
        ("KL by common edges", _frontier(result)),
        ("What that says", html_table(("figure", "value"), facts(result))),
        ("Circuits", html_table(HEADINGS, rival_rows(result))),
        ("KL of circuit and rival by task, nats", html_table(("task", *names), cross)),
        (
            "Edges held longest: least share of common edges with which they are kept",
            html_table(("edge", "share"), held),
        ),
    ]
    return write_simple_page(folder / "rivals.html", _title(result), lead, sections)


def _frontier(result: Rivals) -> go.Figure:
    figure, rivals = go.Figure(), result.rivals
    kls = [one.kl for one in rivals]
    error = {
        "array": [(kl.high or 0.0) - (kl.value or 0.0) for kl in kls],
        "arrayminus": [(kl.value or 0.0) - (kl.low or 0.0) for kl in kls],
    }
    shares = [one.share for one in rivals]
    figure.add_scatter(
        x=shares, y=[kl.value for kl in kls], error_y=error, name="rivals", text=[r.state for r in rivals]
    )
    for name, key in (("random edges", "random_kl"), ("best start, not trained", "ranked_kl")):
        there = [(one.share, getattr(one, key).value) for one in rivals if getattr(one, key) is not None]
        figure.add_scatter(x=[x for x, _ in there], y=[y for _, y in there], name=name, mode="markers")
    figure.add_scatter(x=[result.free.share], y=[result.free.kl.value], name="no constraint", mode="markers")
    figure.add_hline(y=(result.kl.value or 0.0) + result.bar, line_dash="dot")
    figure.update_layout(xaxis_title="share of the circuit's edges that is kept", yaxis_title="KL, nats", height=420)
    return figure


def _title(result: Rivals) -> str:
    return f"{result.task} on {result.model}: {result.verdict}"
