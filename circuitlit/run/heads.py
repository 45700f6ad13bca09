"""What single heads do: scores, the IOI algorithm, and whether ablating them does what their role says."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from circuitlit.cli.build import build_pairs, build_subject, plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.finish import prepare
from circuitlit.cli.sides import passages
from circuitlit.graph import Circuit
from circuitlit.heads import HeadScores
from circuitlit.heads.head_settings import HeadSettings
from circuitlit.heads.score_heads import score_heads
from circuitlit.plain_types import converter_of
from circuitlit.progress import CONSOLE, phase, times
from circuitlit.report.heads_figure import write_heads_page
from circuitlit.report.heads_table import print_heads


def run(cfg: DictConfig) -> HeadScores:
    """Compute the scores of `heads.scores`; scores, their figure and the causal checks go into the run directory."""
    settings = converter_of(HeadSettings).validate_python(plain(cfg.heads))
    prepare(cfg)
    with phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        circuit = None if settings.circuit is None else Circuit.load(settings.circuit)
        subject = build_subject(cfg)
        data = build_pairs(cfg, subject)
    wanted = settings.passages
    found = score_heads(
        subject,
        data,
        settings,
        circuit=circuit,
        text=lambda: passages(cfg, subject, wanted.count, wanted.length),
        source=cfg.text or "sampled from the model",
        seed=cfg.seed,
    )
    result = replace(found, details={**found.details, **times(), "provenance": provenance(cfg, subject)})
    result.save(run_dir())
    page = write_heads_page(run_dir(), result)
    print_heads(result, settings.top, CONSOLE)
    for path in (run_dir() / "heads.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result
