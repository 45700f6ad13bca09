"""`report.html`: one self-contained page a run, readable without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.files import whole
from circuitlit.heads.explain.explanation import Explanation
from circuitlit.report.artefacts import Run, read_run
from circuitlit.report.beside import read_beside
from circuitlit.report.circuit_figure import circuit_figure, colours_of
from circuitlit.report.drawing import DRAWABLE, DRAWN, Beside, drawing
from circuitlit.report.edges import RankedEdge, edges_by_effect, effects_note, ranked_edges, ranking_note
from circuitlit.report.evolution_figure import flow_figure, kept_figure, timeline_figure
from circuitlit.report.figures import layer_figure, training_figure
from circuitlit.report.leading import known_nodes, leading_sentences, random_note, role_words, shares_text
from circuitlit.report.published import COLUMNS, published_columns, published_note, published_rows
from circuitlit.report.stages import doubtful_text, stage_rows
from circuitlit.report.table import Metric, columns, count, notes, percent, result_rows
from circuitlit.report.trust import rows_of, trust_table
from circuitlit.timeline.chance import NOT_BEYOND
from circuitlit.timeline.mask_timeline import MaskTimeline

LISTED = 30
_TEMPLATE = "page.html.j2"
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_EVOLVES = ("steps", "overlap_final", "churn", "kept", "flow", "graph")
_SETTINGS = ("task", "model", "method", "ablation", "seed", "steps", "seconds", "n_pairs")


@checks_arguments
def write_page(
    run_dir: Path | str, beside: Sequence[Path | str] = (), groups: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Write `report.html` beside a run's artefacts and return its path.

    Args:
        run_dir: holds `circuit.json`, `circuit.safetensors`, `result.json`, `history.json`.
        beside: other circuits in the same graph: runs, circuit files, or folders of `rivals.json`.
        groups: nodes of the graph by the names of groups; None takes those of `groups.json` in the run's folder.

    Raises:
        UserError: an artefact is missing or damaged, or the page cannot be written.
    """
    folder = Path(run_dir)
    run = read_run(folder)
    return save_page(folder / "report.html", _render(run, read_beside(run, beside, groups)))


def save_page(path: Path, text: str) -> Path:
    """Write a page whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or make the directory writable") from error
    return path


def render(template: str, values: Mapping[str, Any], figures: Mapping[str, go.Figure]) -> str:
    """Fill a template of this folder; every page gets plotly and its figures as `figures`."""
    drawn = {name: safe_json(figure.to_json() or "{}") for name, figure in figures.items()}
    return _TEMPLATES.get_template(template).render(**values, figures=drawn, plotly=Markup(get_plotlyjs()))


def run_figures(run: Run, edges: list[RankedEdge], without: Sequence[str] = ()) -> dict[str, go.Figure]:
    """All figures of a run by name, as far as it has the data, and without some."""
    graph, evolution = run.circuit.graph, run.evolution
    made: dict[str, Callable[[], go.Figure | None]] = {
        "circuit": partial(circuit_figure, graph, edges),
        "layers": partial(layer_figure, graph, edges),
    }
    if evolution:
        own = {"timeline": timeline_figure, "kept": kept_figure, "flow": flow_figure}
        made |= {name: partial(draw, evolution) for name, draw in own.items()}
    made["training"] = partial(training_figure, run.history)
    figures = {name: draw() for name, draw in made.items() if name not in without}
    return {name: figure for name, figure in figures.items() if figure is not None}


def headline(result: dict) -> str:
    """The result in one sentence; a failed run claims nothing."""
    kl = Metric.of(result.get("kl"))
    edges = f"{count(result['n_edges'])} of {count(result['n_edges_total'])} edges"
    edges += f" ({percent(result['sparsity'])} removed), {count(result['n_edges_reachable'])} of them reachable,"
    distance = "with no KL measured"
    if kl.value is not None:
        distance = f"with KL {kl.text('z#.3g')} nats {kl.interval('z#.3g')}".rstrip()
    verb = "reproduce" if result["status"] == "OK" else "run"
    others = [
        f"{name} {Metric.of(result[key].get('kl')).text('z#.3g')}"
        for key, name in (("corrupted", "the corrupted run has"), ("random", "random circuits of equal size"))
        if isinstance(result.get(key), dict) and Metric.of(result[key].get("kl")).value is not None
    ]
    sentence = f"{edges} {verb} {result['model']} on {result['task']} {distance}"
    return sentence + (f"; {', '.join(others)}." if others else ".")


def paired_note(result: dict) -> str:
    """What the paired difference to attribution says, empty where there is none."""
    difference = Metric.of(result.get("attribution_minus_circuit_kl"))
    if difference.bounds is None:
        return ""
    low, high = difference.bounds
    verdict = "the interval includes 0, so neither is shown to be closer"
    if result.get("n_pairs") == 1:
        verdict = "of a single pair, so neither is shown to be closer"
    elif low > 0:
        verdict = "this circuit is closer to the full model"
    elif high < 0:
        verdict = "attribution is closer to the full model"
    beyond = f", {difference.sentences()} for new sentences" if difference.sentences() else ""
    return (
        "KL of attribution at the same size minus KL of this circuit, pair by pair: "
        f"{difference} nats{beyond}; {verdict}."
    )


def flatten(content: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (dotted name, text), in order; lists are joined by spaces."""
    pairs = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            pairs += flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            pairs.append((name, " ".join(str(item) for item in value)))
        elif isinstance(value, float):
            pairs.append((name, f"{value:.6g}"))
        else:
            pairs.append((name, "-" if value is None else str(value)))
    return pairs


def timeline_note(evolution: MaskTimeline | None) -> str:
    """What was found of the stages, in one sentence; empty without an evolution."""
    if evolution is None:
        return ""
    verdict, found = evolution.stages.verdict, stage_rows(evolution)
    snapshots = f"{len(evolution.steps)} snapshots of the masks"
    if verdict != "learning":
        said = {
            "no learning": "show no change that stands out of the noise",
            "too few snapshots": "are too few",
            NOT_BEYOND: "show no boundary beyond chance: walks with the same steps have as clear ones",
        }
        return f"{snapshots} {said.get(verdict, verdict)}: no stages. {doubtful_text(evolution.stages)}".strip()
    names = ", ".join(row.name for row in found if row.observed)
    absent = ", ".join(row.name for row in found if not row.observed)
    others = [f"Not observed: {absent}." if absent else "", doubtful_text(evolution.stages)]
    return " ".join(text for text in (f"{snapshots} show these stages: {names}.", *others) if text)


def _render(run: Run, beside: Beside) -> str:
    graph, evolution = run.circuit.graph, run.evolution
    nodes, effects = (run.explanation.nodes, run.explanation.edges) if run.explanation else (None, None)
    edges = edges_by_effect(run.circuit, effects.estimate) if effects else ranked_edges(run.circuit)
    value = f"effect on the {nodes.metric}" if nodes and effects else run.circuit.scores.meaning
    picture = drawing(graph, edges, value, known_nodes(nodes) if nodes else {}, beside)
    evolved = evolution and evolution.to_dict()
    everything = {"result": run.result, "history": run.history, "evolution": evolved}
    values = {
        "result": run.result,
        "headline": headline(run.result),
        "columns": columns(run.result),
        "rows": result_rows(run.result),
        "paired_note": paired_note(run.result),
        "notes": notes(run.result),
        "published": _published(run.result.get("published")),
        **_explained(run.explanation),
        "trust": trust_table(rows_of(run.result["trust"])) if run.result.get("trust") else None,
        "folder": run.folder.name,
        "colours": colours_of(graph),
        "grouped": graph.n_kv_heads < graph.n_heads,
        "n_reachable": count(len(edges)),
        "drawn": f"the top {DRAWN} of {count(len(edges))}" if len(edges) > DRAWN else f"all {count(len(edges))}",
        "drawable": f" Up to {count(DRAWABLE)} can be drawn." if len(edges) > DRAWABLE else "",
        "cytoscape": Markup((Path(__file__).parent / "cytoscape" / "cytoscape.min.js").read_text(encoding="utf-8")),
        "drawing": picture,
        "drawing_json": safe_json(json.dumps(picture, separators=(",", ":"))),
        "circuit_json": safe_json((run.folder / "circuit.json").read_text(encoding="utf-8")),
        "data_json": safe_json(json.dumps(everything)),
        "evolution": evolution,
        "evolution_json": safe_json(json.dumps({key: evolved[key] for key in _EVOLVES} if evolved else None)),
        "stages": stage_rows(evolution) if evolution else [],
        "timeline_note": timeline_note(evolution),
        "top": edges[:LISTED],
        "score": value,
        "measured": {name: Metric.of(one) for name, one in effects.measured.items()} if effects else {},
        "ranking_note": effects_note(effects) if effects else ranking_note(run.circuit.scores),
        "roles": bool(run.circuit.scores.roles),
        "settings": _settings(run),
        "provenance": _provenance(run.result),
        "files": run.files,
    }
    elsewhere = ("circuit", "layers") if evolution else ("circuit",)  # the last snapshot's map shows layers, too
    return render(_TEMPLATE, values, run_figures(run, edges, without=elsewhere))


def _published(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """The task's published measures as the page lists them."""
    if found is None:
        return None
    headings = [COLUMNS[key] for key in published_columns(found)]
    return {"note": published_note(found), "headings": headings, "rows": published_rows(found)}


def _explained(found: Explanation | None) -> dict[str, Any]:
    """What the sections on examples and heads show."""
    nodes = found and found.nodes
    looks = [vars(node.look) | {"name": node.name} if node.look else None for node in nodes.leading] if nodes else []
    tokens = [one.clean for one in found.examples] if found else []
    return {
        "explanation": found,
        "leading_sentences": leading_sentences(nodes) if nodes else [],
        "random_note": random_note(nodes) if nodes else "",
        "role_words": role_words,
        "shares_text": shares_text,
        "metric_of": Metric.of,
        "looks_json": safe_json(json.dumps({"looks": looks, "tokens": tokens})),
    }


def _settings(run: Run) -> list[tuple[str, str]]:
    chosen = {key: run.result[key] for key in _SETTINGS if key in run.result}
    if "target_sparsity" in run.history:
        chosen["target_sparsity"] = run.history["target_sparsity"]
    for key, nested in (("seconds", run.result.get("seconds_by_phase")), ("method", run.circuit.scores.details)):
        if isinstance(nested, dict):
            chosen |= {f"{key}.{name}": value for name, value in nested.items()}
    return flatten(chosen)


def _provenance(result: dict) -> list[tuple[str, str]]:
    provenance = result.get("provenance")
    return flatten(provenance) if isinstance(provenance, dict) else []


def safe_json(text: str) -> Markup:
    """JSON that cannot close the script element it stands in."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
