"""`injection.json` as tables and as one page."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.compare.injected_facts import FactInjection
from circuitlit.report.figures import BLUE, GREY, RED, finish
from circuitlit.report.grid import grid
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric

ANSWERS = ("facts", "number", "said before", "said after", "metric before", "metric after")
CARRIERS = ("nodes of", "which", "new facts lose", "random sets", "revised facts lose", "random sets", "own less other")


def print_injection(result: FactInjection, console: Console) -> None:
    """Print what was learned and what reverting nodes takes away again."""
    tables = {"facts, in a wording not tuned on": (ANSWERS, answer_rows(result)), "reverted": (CARRIERS, rows(result))}
    for title, (headings, cells) in tables.items():
        table = grid(title, headings)
        for row in cells:
            table.add_row(*row)
        console.print(table)
    console.print(sentence(result), highlight=False)


def answer_rows(result: FactInjection) -> list[tuple[str, ...]]:
    """One row a kind of fact."""
    made = []
    for kind, own in result.behaviour.items():
        number = sum(fact.kind == kind for fact in result.facts)
        values = (own.accuracy_base, own.accuracy_tuned, own.metric_base, own.metric_tuned)
        made.append((kind, str(number), *(str(Metric.of(value)) for value in values)))
    return made


def rows(result: FactInjection) -> list[tuple[str, ...]]:
    """One row a set of nodes; shares are of the gain by tuning."""
    made = []
    for kind, own in result.carriers.items():
        cells = []
        for on in ("new", "revised"):
            random = own.random[on]
            p = "" if random.p_holm is None else f" (p {random.p_holm:.2g})"
            cells += [str(Metric.of(own.lost[on])), f"{Metric.of(random.lost)}{p}"]
        made.append((kind, " ".join(own.nodes), *cells, str(Metric.of(own.specific))))
    return made


def sentence(result: FactInjection) -> str:
    """Whether new and revised facts sit in the same nodes."""
    shared, status = result.shared_nodes, result.tuning["status"]
    verdicts = []
    for kind, own in result.carriers.items():
        gap = Metric.of(own.specific)
        sure = gap.bounds is not None and gap.bounds[0] > 0
        verdicts.append(f"the nodes of {kind} facts are {'' if sure else 'not shown to be '}specific to them ({gap})")
    return (
        f"Tuning {status}. Node estimates of new and revised facts correlate by {result.correlation:.2f} "
        f"(Spearman); {len(shared)} of {result.settings['nodes']} leading nodes are the same; {'; '.join(verdicts)}."
    )


def write_injection(result: FactInjection, folder: Path) -> Path:
    """Write `injection.html` into a folder: one file that needs nothing else."""
    sections: list[tuple[str, go.Figure | str]] = [
        ("Facts, in a wording not tuned on", html_table(ANSWERS, answer_rows(result))),
        ("Every node's part, estimated", node_figure(result)),
        ("Nodes put back to the base's weights: share of the gain that is lost", html_table(CARRIERS, rows(result))),
    ]
    return write_simple_page(folder / "injection.html", f"Facts tuned into {result.model}", sentence(result), sections)


def node_figure(result: FactInjection) -> go.Figure:
    """Estimates for new against revised facts; the chosen nodes are coloured."""
    figure, scores = go.Figure(), result.scores
    chosen = {kind: own.nodes for kind, own in result.carriers.items()}
    rest = [node for node in scores["new"] if not any(node in nodes for nodes in chosen.values())]
    for name, nodes, colour in (
        ("others", rest, GREY),
        ("new", chosen["new"], BLUE),
        ("revised", chosen["revised"], RED),
    ):
        figure.add_scatter(
            x=[scores["new"][node] for node in nodes],
            y=[scores["revised"][node] for node in nodes],
            text=nodes,
            mode="markers",
            name=name,
            marker={"color": colour, "size": 7},
            hovertemplate="%{text}<br>new %{x:.3g}<br>revised %{y:.3g}<extra></extra>",
        )
    figure.update_xaxes(title_text="new facts: metric lost, first order")
    figure.update_yaxes(title_text="revised facts: metric lost, first order")
    return finish(figure, 420)
