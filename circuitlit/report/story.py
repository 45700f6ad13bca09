"""A tuning story as a short table and as one page: answers, timeline, difference, interventions, suggestions."""

from __future__ import annotations

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.text import Text

from circuitlit.compare.intervention_figures import SetAblation, Transferred
from circuitlit.compare.moved_layers import MovedLayers
from circuitlit.evaluate import Estimate
from circuitlit.report.evolution_table import neighbours_text
from circuitlit.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, error_bars, finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import overlap_sentence, p_text
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.stages import stages_text
from circuitlit.report.suggestions import suggestions
from circuitlit.report.table import Metric, count
from circuitlit.timeline.stages import Stage
from circuitlit.timeline.story import TuningStory

_STAGE_COLOURS = {"initialization": GREY, "rapid_learning": GREEN, "fine_tuning": ORANGE, "convergence": BLUE}
_LINES = (BLUE, ORANGE, PINK, RED)
_PANELS = ("accuracy", "overlap with the last circuit (J*)", "edges changed since the checkpoint before")
_EDGES = ("added", "removed", "strengthened", "weakened", "modified", "reused", "uncertain")


def print_story(story: TuningStory, console: Console) -> None:
    """Print the answers of all ways and the suggestions."""
    head, rows = _answers(story)
    table = grid(_title(story), head)
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    for heading, text in suggestions(story):
        console.print(Text.assemble((f"{heading}: ", "bold"), text), soft_wrap=True)
    closing = f"{story.status}: {story.reason}" if story.reason else str(story.status)
    console.print(Text(closing, "bold red" if story.reason else "green"), soft_wrap=True)


def write_story(story: TuningStory, folder: Path) -> Path:
    """Write `story.html` into a folder: one file that needs nothing else."""
    ways = story.ways
    stages = "".join(f"<li>{escape(name)}: {escape(stages_text(told.timeline.stages))}" for name, told in ways.items())
    said = "".join(f"<dt><b>{escape(heading)}</b><dd>{escape(text)}" for heading, text in suggestions(story))
    sections: list[tuple[str, go.Figure | str]] = [
        ("What was learned", html_table(*_answers(story))),
        ("The timeline and its stages", timeline_figure(story)),
        ("Stages", f"<ul>{stages}</ul><p>A stage that is not named was not observed.</p>"),
        ("What changed in the circuit", html_table(*_changes(story))),
        ("What nodes and edges the circuits share", "".join(f"<p>{escape(text)}</p>" for text in _shared(story))),
        ("Where the weights moved", weight_figure(story)),
        ("What nodes and layers carry", html_table(*_carried(story))),
        ("Layers moved into the base model", layer_figure(story)),
        ("What this suggests, and how sure it is", f"<dl>{said}</dl>"),
    ]
    closing = f"{story.status}: {story.reason}. " if story.reason else f"{story.status}. "
    lead = (
        f"{closing}{story.steps} steps a way; circuits scored by {story.method} on pairs that tuning never saw. "
        "Brackets are 95 % intervals."
    )
    return write_simple_page(folder / "story.html", _title(story), lead, sections)


def timeline_figure(story: TuningStory) -> go.Figure:
    """Accuracy, likeness to the last circuit and edges that changed, over the checkpoints; bands are stages."""
    ways = story.ways
    titles = [f"{way}: {panel}" for panel in _PANELS for way in ways]
    figure = make_subplots(rows=3, cols=len(ways), shared_xaxes=True, vertical_spacing=0.07, subplot_titles=titles)
    for column, (told, colour) in enumerate(zip(ways.values(), _LINES, strict=False), start=1):
        rows = told.timeline.rows
        steps = [row.step + 1 for row in rows]
        found = [Metric.of(row.behaviour.accuracy) for row in rows]
        bars = error_bars(found)
        alike = [row.likeness.last.corrected_jaccard for row in rows]
        before = [row.likeness.previous for row in rows]
        changed = [None if other is None else other.edges_changed for other in before]
        line = {"mode": "lines+markers", "line": {"color": colour}, "showlegend": False}
        figure.add_trace(go.Scatter(x=steps, y=[m.value for m in found], error_y=bars, **line), row=1, col=column)
        figure.add_trace(go.Scatter(x=steps, y=alike, **line), row=2, col=column)
        figure.add_trace(go.Scatter(x=steps, y=changed, **line), row=3, col=column)
        for stage in told.timeline.stages.stages:
            _band(figure, stage, column)
    for name, colour in _STAGE_COLOURS.items():
        label = name.replace("_", " ")
        mark = {"color": colour, "size": 12, "symbol": "square", "opacity": 0.4}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=mark, name=label), row=1, col=1)
    figure.update_xaxes(type="log")
    figure.update_xaxes(title="step + 1 (log)", row=3)
    figure.update_layout(legend={"orientation": "h", "y": -0.12})
    return finish(figure, 760)


def _band(figure: go.Figure, stage: Stage, column: int) -> None:
    if stage.start is None or stage.end is None:
        return
    for row in (1, 2, 3):
        figure.add_vrect(
            x0=stage.start.step + 1,
            x1=stage.end.step + 1,
            fillcolor=_STAGE_COLOURS[stage.name],
            opacity=0.15,
            line_width=0,
            row=row,  # type: ignore[arg-type]
            col=column,  # type: ignore[arg-type]
        )


def weight_figure(story: TuningStory) -> go.Figure:
    """Each layer's share of the squared norm of the weights' change."""
    figure = go.Figure()
    for (name, told), colour in zip(story.ways.items(), _LINES, strict=False):
        shares = told.difference.weights.distribution["layer"].share
        layers = sorted(map(int, shares))
        figure.add_bar(x=layers, y=[shares[str(layer)] for layer in layers], name=name, marker={"color": colour})
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="share of the change's energy")
    return finish(figure, 320)


def layer_figure(story: TuningStory) -> go.Figure:
    """Share of the gain that some layers carry, beside random layers."""
    figure = go.Figure()
    for (name, told), colour in zip(story.ways.items(), _LINES, strict=False):
        rows = told.layers
        _points(figure, name, rows, [Metric.of(row.gain_share) for row in rows], colour, "circle")
        beside = [row for row in rows if row.ranking != "all"]
        _points(figure, f"{name}, random", beside, [Metric.of(row.random) for row in beside], colour, "x-thin-open")
    figure.update_yaxes(title_text="share of the gain")
    figure.update_layout(scattermode="group", scattergap=0.5)
    return finish(figure, 380)


def _points(
    figure: go.Figure, name: str, rows: list[MovedLayers], metrics: list[Metric], colour: str, symbol: str
) -> None:
    figure.add_scatter(
        x=["all layers" if row.ranking == "all" else f"{row.n_layers} by {row.ranking}" for row in rows],
        y=[metric.value for metric in metrics],
        error_y=error_bars(metrics),
        mode="markers",
        name=name,
        marker={"color": colour, "size": 9, "symbol": symbol},
    )


def _answers(story: TuningStory) -> tuple[list[str], list[list[str]]]:
    head = ["way", "trained", "accuracy before", "after", "change", "McNemar p", "metric: change", "KL on other text"]
    rows = []
    for name, told in story.ways.items():
        own, share = told.held_out, told.tuning["n_parameters_trained"] / told.tuning["n_parameters"]
        cells = [str(Metric.of(one)) for one in (own.accuracy_base, own.accuracy_tuned, own.accuracy_change)]
        moved = [str(Metric.of(own.metric_change)), str(Metric.of(told.text_kl))]
        rows.append([name, f"{share:.1%}", *cells, f"{own.accuracy_p:.2g}", *moved])
    return head, rows


def _changes(story: TuningStory) -> tuple[list[str], list[list[str]]]:
    columns = []
    for told in story.ways.values():
        size, relative = told.difference.at_size, told.difference.weights.relative
        verdict = "changed" if size.changed else "no more than resampling"
        counts = [count(size.counts[label]) for label in _EDGES]
        numbers = [f"{size.distance:.3f}", f"{size.floor:.3f}"]
        columns.append([*counts, *numbers, verdict, "-" if relative is None else f"{relative:.3g}"])
    names = [f"edges {label}" for label in _EDGES]
    names += ["distance of the circuits", "noise floor of resampling", "verdict", "change of the weights, |dW| / |W|"]
    return ["", *story.ways], [list(row) for row in zip(names, *columns, strict=True)]


def _shared(story: TuningStory) -> list[str]:
    """What base and tuned circuit share, and what neighbouring checkpoints do, way by way."""
    found = []
    for name, told in story.ways.items():
        found.append(f"{name}, base and tuned model: {overlap_sentence(told.difference.turnover)}")
        found.append(f"{name}: {neighbours_text(told.timeline.learned)}")
    return found


def _carried(story: TuningStory) -> tuple[list[str], list[list[str]]]:
    head = ["way", "what", "they", "random like them", "p (Holm)"]
    rows = []
    for name, told in story.ways.items():
        nodes, own, moved = told.nodes, told.nodes.ablation.set, told.nodes.transfer
        chosen = " ".join(nodes.chosen)
        rows.append([name, f"{chosen} ablated: metric lost", *_beside(own.drop, own.random, own)])
        for kind, found in (("activations", moved.activations), ("weights", moved.weights)):
            cells = _beside(found.gain_share, found.random_gain_share, found)
            rows.append([name, f"their {kind} put back: gain lost", *cells])
        for row in told.layers:
            what = f"{row.n_layers} layers by {row.ranking} moved: gain"
            rows.append([name, what, *_beside(row.gain_share, row.random, row)])
    return head, rows


def _beside(own: Estimate, random: Estimate | None, claim: SetAblation | Transferred | MovedLayers) -> list[str]:
    return [str(Metric.of(own)), str(Metric.of(random)), p_text(claim.p_holm, claim.rank_p, claim.draws)]


def _title(story: TuningStory) -> str:
    return f"{story.model} learns {story.task.replace('_', ': ')}, tuned by {' and '.join(story.ways)}"
