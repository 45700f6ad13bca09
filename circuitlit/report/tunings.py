"""A comparison of ways to tune as tables and as one page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from circuitlit.compare.tunings import RunPair, TunedRun, TuningComparison
from circuitlit.compare.turnover import Turnover
from circuitlit.compare.ways import MOST
from circuitlit.compare.weight_figures import Reach
from circuitlit.evaluate.testing import LEVEL, above_all
from circuitlit.report.figures import error_bars, finish
from circuitlit.report.grid import grid
from circuitlit.report.overlap import OVERLAP_HEADINGS, overlap_rows, overlap_sentence
from circuitlit.report.simple_page import html_table, write_simple_page
from circuitlit.report.table import Metric, percent

SCORE = ("run", "step", "validation", "accuracy", "metric", "KL, nats", "KL on text, nats", "attention, nats")
CHANGE = ("run", "|dW|/|W|", "unchanged", "matrices", "effective rank", "layers for 80 %", "Gini layers", "Gini nodes")
CIRCUIT = ("run", "edges kept", "nodes kept", "edge overlap", "node overlap", "score strength", "score entropy")
PAIR = ("runs", "edge overlap", "between", "within a model", "edges kept", "nodes kept")
OVERLAP = ("circuits", *OVERLAP_HEADINGS)
WAY = ("of", "runs", "mean overlap beyond chance", "runs of")


def print_tunings(result: TuningComparison, console: Console) -> None:
    """Print all tables."""
    for title, (headings, rows) in tunings_tables(result).items():
        table = grid(title, headings)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for sentence in (lead(result), *way_sentences(result), *overlap_sentences(result)):
        console.print(sentence, highlight=False)


def lead(result: TuningComparison) -> str:
    """What was compared, and how it is to be read."""
    shared = result.shared
    return (
        f"Each run at its checkpoint whose validation {result.match} is nearest to {result.level:.3f}. "
        f"{'' if result.ways else 'Differences between ways hold the seed, too. '} Circuits of {result.n_edges:,} of "
        f"{result.n_edges_total:,} edges; {shared.all:,} edges are in all, {shared.any:,} in any. Overlaps "
        "are corrected for chance; kept is the overlap over that of two resamples of one model."
    )


def tunings_tables(result: TuningComparison) -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Headings and rows by title."""
    runs = result.runs
    tables = {
        f"{result.task}: ways to tune {result.base['name']}, matched on {result.match}": (
            SCORE,
            [_score_row(name, run) for name, run in runs.items()],
        ),
        "weights": (CHANGE, [_change_row(name, run.weights) for name, run in runs.items()]),
        "circuit against the base's": (CIRCUIT, [_circuit_row(name, run, result) for name, run in runs.items()]),
        "circuits against each other": (PAIR, [_pair_row(pair) for pair in result.pairs]),
        "overlaps beside chance": (
            OVERLAP,
            [(name, *row) for name, shared in _overlaps(result).items() for row in overlap_rows(shared)],
        ),
    }
    if result.ways:
        tables["seeds of one way beside two ways"] = (WAY, list(_way_rows(result)))
    return tables


def _way_rows(result: TuningComparison) -> Iterator[tuple[str, ...]]:
    for part, own in result.ways.items():
        for runs, values in (("one way", own.within), ("two ways", own.between)):
            yield from ((part, name, f"{value:.3f}", runs) for name, value in values.items())


def way_sentences(result: TuningComparison) -> list[str]:
    """Whether ways to tune differ by more than seeds do."""
    found = []
    for part, own in result.ways.items():
        real = own.p_holm is not None and own.p_holm < LEVEL
        few = own.p_holm is None or (not real and above_all(own.rank_p, own.groupings - 1))
        told = "two seeds of one way share more than runs of two ways"
        if few:
            told = f"too few runs to tell whether {told}"
        elif not real:
            told = "two seeds of one way do not share more than runs of two ways beyond doubt"
        tried = f"{own.groupings:,} random" if own.groupings == MOST else f"all {own.groupings:,}"
        dealings = f"{tried} dealings of the runs to such groups"
        tested = f"not tested with {dealings}"
        if own.p_holm is not None:
            tested = f"p = {own.p_holm:.3f} among {dealings}, corrected for all claims"
        found.append(f"{part.capitalize()}: {told}: {own.difference:+.3f} of the overlap beyond chance, {tested}.")
    return found


def _overlaps(result: TuningComparison) -> dict[str, Turnover]:
    """Of every run with the base and with every other."""
    beside_base = {f"{name} / base": run.from_base for name, run in result.runs.items()}
    return beside_base | {" / ".join(pair.of): pair for pair in result.pairs}


def overlap_sentences(result: TuningComparison) -> list[str]:
    """What circuits share, and whether nodes stay while edges change."""
    return [f"{name}: {overlap_sentence(shared)}" for name, shared in _overlaps(result).items()]


def _score_row(name: str, run: TunedRun) -> tuple[str, ...]:
    answered = run.held_out
    estimates = (answered.accuracy_tuned, answered.metric_tuned, answered.kl, run.text_kl, run.attention)
    return (name, str(run.step), f"{run.matched_score:.3f}", *(str(Metric.of(own)) for own in estimates))


def _change_row(name: str, own: Reach) -> tuple[str, ...]:
    most = " ".join(map(str, own.layers_80[:5])) + (" ..." if len(own.layers_80) > 5 else "")
    return (
        name,
        "-" if own.relative is None else f"{own.relative:.2e}",
        percent(own.unchanged),
        f"{own.modules} of {own.of_modules}",
        f"{own.effective_rank:.1f}",
        f"{len(own.layers_80)}: {most}",
        _number(own.gini),
        _number(own.node_gini),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _circuit_row(name: str, run: TunedRun, result: TuningComparison) -> tuple[str, ...]:
    own, scores, base = run.from_base, run.scores, result.base_scores
    strength = scores.intensity / base.intensity if base.intensity else 0.0
    return (
        name,
        *(str(Metric.of(part.retained)) for part in (own.edges, own.nodes)),
        *(str(Metric.of(part.between)) for part in (own.edges, own.nodes)),
        f"{strength:.2f} x base",
        f"{scores.entropy:.3f} (base {base.entropy:.3f})",
    )


def _pair_row(pair: RunPair) -> tuple[str, ...]:
    edges, nodes = pair.edges, pair.nodes
    estimates = (edges.between, edges.within, edges.retained, nodes.retained)
    return (" / ".join(pair.of), f"{edges.corrected:.3f}", *(str(Metric.of(own)) for own in estimates))


def write_tunings(result: TuningComparison, folder: Path) -> Path:
    """Write `tunings.html` into a folder: one file that needs nothing else."""
    sections: list[tuple[str, go.Figure | str]] = []
    for title, (headings, rows) in tunings_tables(result).items():
        sections.append((title, html_table(headings, rows)))
    sections.append(
        (
            "What circuits share",
            "".join(f"<p>{escape(text)}</p>" for text in [*way_sentences(result), *overlap_sentences(result)]),
        )
    )
    sections.insert(2, ("Edges kept, and weights moved", reach_figure(result)))
    title = f"{result.task}: ways to tune {result.base['name']}"
    return write_simple_page(folder / "tunings.html", title, lead(result), sections)


def reach_figure(result: TuningComparison) -> go.Figure:
    """Weight change against the share of the base's edge overlap that is retained."""
    figure = go.Figure()
    for name, run in result.runs.items():
        retained = Metric.of(run.from_base.edges.retained)
        value = retained.value
        if value is None:  # resamples of one model share nothing beyond chance
            continue
        error = error_bars([retained])
        figure.add_scatter(
            x=[run.weights.relative], y=[value], error_y=error, mode="markers", name=name, marker={"size": 10}
        )
    figure.update_xaxes(title_text="|dW| / |W|", type="log", exponentformat="power")
    figure.update_yaxes(title_text="edges kept, of the base's")
    return finish(figure, 340)
