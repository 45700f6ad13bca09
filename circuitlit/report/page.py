"""`report.html`: one self-contained page a run, readable without a network."""

from __future__ import annotations

import os
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from circuitlit.errors import UserError
from circuitlit.report.artefacts import FILES, Run, read_run
from circuitlit.report.circuit_figure import COLOURS, DRAWN, circuit_figure
from circuitlit.report.edges import ranked_edges
from circuitlit.report.figures import layer_figure, training_figure
from circuitlit.report.table import Metric, columns, count, percent, result_rows

LISTED = 30
_TEMPLATE = "page.html.j2"
_SETTINGS = ("task", "model", "method", "ablation", "seed", "steps", "seconds", "n_pairs")


def write_page(run_dir: Path) -> Path:
    """Write `report.html` beside a run's artefacts and return its path.

    Args:
        run_dir: holds `circuit.json`, `circuit.safetensors`, `result.json`, `history.json`.

    Raises:
        UserError: an artefact is missing or damaged, or the page cannot be written.
    """
    text = _render(read_run(run_dir))
    path = run_dir / "report.html"
    partial = run_dir / "report.html.part"
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or make the directory writable") from error
    return path


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
    if difference.value is None or difference.low is None or difference.high is None:
        return ""
    verdict = "the interval includes 0, so neither is shown to be closer"
    if difference.low > 0:
        verdict = "this circuit is closer to the full model"
    elif difference.high < 0:
        verdict = "attribution is closer to the full model"
    return f"KL of attribution at the same size minus KL of this circuit, pair by pair: {difference} nats; {verdict}."


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


def _render(run: Run) -> str:
    result, graph = run.result, run.circuit.graph
    edges = ranked_edges(run.circuit)
    curves = training_figure(run.history)
    figures = {
        "circuit": circuit_figure(graph, edges),
        "layers": layer_figure(graph, edges),
        **({"training": curves} if curves else {}),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        result=result,
        headline=headline(result),
        columns=columns(result),
        rows=result_rows(result),
        paired_note=paired_note(result),
        figures={name: _figure_json(figure) for name, figure in figures.items()},
        colours=COLOURS,
        grouped=graph.n_kv_heads < graph.n_heads,
        n_reachable=count(len(edges)),
        drawn=f"The strongest {DRAWN} of {count(len(edges))}" if len(edges) > DRAWN else f"All {count(len(edges))}",
        strongest=edges[:LISTED],
        roles=bool(run.circuit.scores.roles),
        settings=_settings(run),
        provenance=_provenance(result),
        files=FILES,
        plotly=Markup(get_plotlyjs()),
    )


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


def _figure_json(figure: go.Figure) -> Markup:
    """Figure as JSON that cannot close the script element it stands in."""
    return Markup((figure.to_json() or "{}").replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
