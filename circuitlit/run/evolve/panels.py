"""An evolution in W&B: behaviour, head scores, circuit size, likeness and stages over tokens, and the page's tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from circuitlit.cli.loggers import open_loggers
from circuitlit.report.evolution_page import evolution_figure, stage_at
from circuitlit.report.size_tables import size_tables
from circuitlit.timeline.evolution import Evolution


def log_panels(cfg: DictConfig, result: Evolution, page: Path) -> None:
    """Log to whatever loggers there are; tables, figure and page go to W&B only."""
    with open_loggers(cfg) as loggers:
        for logger in loggers:
            if not isinstance(logger, WandbLogger):
                for step, row in curves(result):
                    logger.log_metrics({key: value for key, value in row.items() if value is not None}, step=step)
                continue
            run = logger.experiment
            for series in result.series:
                axis = f"{series.name}/{'tokens' if series.knows_tokens else 'step'}"
                run.define_metric(axis, hidden=True)
                run.define_metric(f"{series.name}/*", step_metric=axis)
            for _, row in curves(result):
                run.log({key: value for key, value in row.items() if value is not None})
            _log_tables(run, result, page)


def curves(result: Evolution) -> Iterator[tuple[int, dict[str, float | None]]]:
    """Step and row of each checkpoint of each series: `SERIES/tokens`, `SERIES/TASK/accuracy` and so on."""
    for series in result.series:
        rows: dict[int, dict[str, float | None]] = {}
        name = series.name
        for task, entry in series.tasks.items():
            for row in entry.rows:
                own = rows.setdefault(row.step, {f"{name}/step": row.step, f"{name}/tokens": row.tokens})
                found = row.faithful
                own |= {
                    f"{name}/{task}/accuracy": row.behaviour.accuracy.value,
                    f"{name}/{task}/edges": found and found.n_edges,
                    f"{name}/{task}/nodes": found and found.n_nodes,
                    f"{name}/{task}/overlap_last": row.likeness.last.corrected_jaccard,
                    f"{name}/{task}/node_ewma": row.likeness.node_ewma,
                    f"{name}/{task}/stage": stage_at(entry.stages, row.step),
                }
        for row in series.heads.rows:
            own = rows.setdefault(row.step, {f"{name}/step": row.step, f"{name}/tokens": row.tokens})
            own |= {f"{name}/heads/{role}": value for role, value in row.best.items()}
        yield from sorted(rows.items())


def _log_tables(run: Any, result: Evolution, page: Path) -> None:
    import wandb

    panels: dict[str, Any] = {
        "figures/evolution": wandb.Plotly(evolution_figure(result)),
        "figures/page": wandb.Html(page.read_text(encoding="utf-8"), inject=False),
    }
    for number, (title, headings, rows) in enumerate(size_tables(result)):
        names: list[Any] = [heading or "quantity" for heading in headings]
        panels[f"tables/{number}_{title[:40]}"] = wandb.Table(columns=names, data=list[Any](rows))
    run.log(panels)
