"""What W&B gets of a finished run: final numbers, tables, figures and the files as artifacts.

All of it is read from the run's directory, works without a network and reaches the server by `wandb sync`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from circuitlit.evaluate.statistics import INTERVALS
from circuitlit.report.artefacts import Run, read_run
from circuitlit.report.edges import ranked_edges
from circuitlit.report.evolution_figure import layers_over_steps
from circuitlit.report.page import run_figures
from circuitlit.report.stages import doubtful, stage_rows
from circuitlit.report.table import columns, entry_of, result_rows
from circuitlit.report.trust import logged, rows_of

if TYPE_CHECKING:
    from circuitlit.evaluate.trust.card import TrustCard

LISTED = 500
_PLAIN = (
    "status",
    "reason",
    "n_edges_total",
    "n_edges",
    "n_edges_reachable",
    "sparsity",
    "n_pairs",
    "steps",
    "seconds",
)


@rank_zero_only
def log_run(loggers: list[Any], folder: Path) -> None:
    """Log a finished run to every W&B logger; the others have no place for tables and files.

    Args:
        loggers: still open.
        folder: the run directory, page included.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            found = read_run(folder)
            logger.experiment.summary.update(_summary(found.result))
            _log_tables(logger, found)
            _log_figures(logger, found)
            _log_artifacts(logger, found)


@rank_zero_only
def log_trust(loggers: Iterable[Any], result: TrustCard, folder: Path) -> None:
    """Log a trust card to every W&B logger: its rows, and its page."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.summary.update(logged(result.trust.values()))
            page = wandb.Html((folder / "trust.html").read_text(encoding="utf-8"), inject=False)
            logger.experiment.log({"trust/page": page})


def _summary(result: dict) -> dict[str, Any]:
    """The final numbers under `result/`, each metric with the ends of its intervals, with known and with new words."""
    summary = {f"result/{key}": result[key] for key in _PLAIN if result.get(key) is not None}
    for words in ("", "new_words."):
        for name, _, _ in columns(result):
            found = entry_of(result, words + name)
            if isinstance(found, dict):
                summary |= {f"result/{words}{name}": found["value"]}
                summary |= {f"result/{words}{name}_{end}": found[end] for end in INTERVALS[1:]}
    return summary | logged(rows_of(result.get("trust")))


def _log_tables(logger: WandbLogger, found: Run) -> None:
    import wandb

    names = [name for name, _, _ in columns(found.result)]
    ends = [f"{name}_{end}" for name in names for end in ("low", "high")]
    results = wandb.Table(columns=["pairs", "circuit", "edges", *names, *ends])
    for row in result_rows(found.result):
        intervals = [end for metric in row.metrics for end in (metric.low, metric.high)]
        results.add_data(row.section, row.label, row.edges, *(metric.value for metric in row.metrics), *intervals)
    edges = wandb.Table(columns=["rank", "edge", "into", "role", found.circuit.scores.meaning])
    for rank, edge in enumerate(ranked_edges(found.circuit)[:LISTED], 1):
        edges.add_data(rank, edge.name, edge.kind, edge.role, edge.score)
    tables = {"result/table": results, "circuit/edges": edges}
    if found.evolution:
        tables["timeline/stages"] = wandb.Table(columns=["stage", "observed", "start", "end", "p"])
        for row in stage_rows(found.evolution):
            tables["timeline/stages"].add_data(row.name, row.observed, row.start, row.end, row.p)
        for point in doubtful(found.evolution.stages):
            step = f"{point.step:,}"
            tables["timeline/stages"].add_data(point.status, False, step, step, point.p)
    logger.experiment.log(tables)


def _log_figures(logger: WandbLogger, found: Run) -> None:
    """Each figure as a panel that can be zoomed, and the whole page, whose graph and slider work in W&B too."""
    import wandb

    figures = run_figures(found, ranked_edges(found.circuit))
    if found.evolution:
        figures["layers_over_steps"] = layers_over_steps(found.evolution)
    panels: dict[str, Any] = {f"figures/{name}": wandb.Plotly(figure) for name, figure in figures.items()}
    panels["figures/page"] = wandb.Html((found.folder / "report.html").read_text(encoding="utf-8"), inject=False)
    logger.experiment.log(panels)


def _log_artifacts(logger: WandbLogger, found: Run) -> None:
    """The masks, and the circuit that was cut from the last of them; the circuit's metadata names its masks.

    Runs of one task, model and method add versions to one artifact, and each has its run's id for an alias.
    """
    import wandb

    run, result = logger.experiment, found.result
    name = re.sub(r"[^\w.-]+", "_", "-".join(str(result[key]) for key in ("task", "model", "method")))
    aliases = ["latest", run.id, f"seed{result['seed']}", f"sparsity{result['sparsity']:.4g}"]
    metadata = {"run": run.id, **{key: result.get(key) for key in ("task", "model", "method", "seed", *_PLAIN)}}
    metadata["provenance"] = result.get("provenance")
    masks = sorted((found.folder / "masks").glob("step_*.safetensors"))
    if masks:
        artifact = wandb.Artifact(f"masks-{name}", "masks", metadata={**metadata, "n_snapshots": len(masks)})
        for path in masks:
            artifact.add_file(str(path), f"masks/{path.name}")
        run.log_artifact(artifact, aliases=aliases)
        metadata["masks"] = f"masks-{name}:{run.id}"
    circuit = wandb.Artifact(f"circuit-{name}", "circuit", metadata=metadata)
    for name in (*found.files, "report.html"):
        circuit.add_file(str(found.folder / name), name)
    run.log_artifact(circuit, aliases=aliases)
