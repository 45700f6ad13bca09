"""How a verb begins and ends: seeds and precision; seconds, provenance, files, page, table, paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import seed_everything
from omegaconf import DictConfig
from rich.console import Console

from circuitlit.cli.build import plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.ranks import is_writer
from circuitlit.evaluate.found import FoundCircuit
from circuitlit.heads.explain.explain_circuit import explain_circuit
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, part, times
from circuitlit.report import print_table, write_page
from circuitlit.report.published import print_published
from circuitlit.result import Result
from circuitlit.surroundings import products_at

Found = TypeVar("Found", bound=Result)


def prepare(cfg: DictConfig, precision: str = "highest") -> None:
    """Set the seed, and the precision of matrix products on a GPU."""
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision(precision)


def own_settings(node: DictConfig, *without: str) -> dict[str, Any]:
    """A verb's own settings as keyword arguments of its function, without some."""
    return {key: value for key, value in plain(node).items() if key not in without}


def finish_circuit(cfg: DictConfig, result: FoundCircuit, facts: dict[str, Any]) -> FoundCircuit:
    """Save a found circuit with its scores, curves and page, print the table and the paths.

    A result without a circuit, of a model that does not do the task, is saved alone.
    """
    folder, result = run_dir(), result.replaced(**times(), provenance=facts)
    if result.n_edges is None:
        if is_writer():
            result.save(folder)
        CONSOLE.print(f"FAILED: {result.reason}", style="bold red", highlight=False, soft_wrap=True)
        return result
    result.live.save(folder, cfg.sparsity.target if result.live.curves else None)
    _explain(cfg, result, facts, folder)
    result = result.replaced(**times())
    written = [result.save(folder), write_page(folder)]
    content = result.to_dict()
    print_table(content, CONSOLE)
    if result.published is not None:
        print_published(content["published"], CONSOLE)
    for path in written:
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _explain(cfg: DictConfig, result: FoundCircuit, facts: dict[str, Any], folder: Path) -> None:
    """What the page begins with, beside the circuit; not with shared-out weights, which one process cannot run."""
    bench = result.live.bench
    if cfg.explain is None or bench.model.shards is not None:
        return
    with part("explanation", "Looking at what the circuit does"), products_at("highest"):
        found = explain_circuit(bench, result.live.circuit, seed=cfg.seed, **own_settings(cfg.explain))
    found.replaced(provenance=facts).save(folder)


def finish(
    cfg: DictConfig,
    result: Found,
    subject: Subject | dict[str, Any],
    draw: Callable[[Found, Path], Path | list[Path]] | None,
    show: Callable[[Found, Console], None],
    *made: Path,
) -> Found:
    """Save a result into the run's folder with its page, print its table and the paths.

    Args:
        cfg: the verb's settings.
        result: what was found; seconds and provenance are added.
        subject: the model that it was found in, or its provenance.
        draw: writes the page into a folder and gives its path; None where there is none.
        show: prints the table.
        made: what is there already, and named first.
    """
    facts = subject if isinstance(subject, dict) else provenance(cfg, subject)
    result = result.replaced(**times(), provenance=_with_tasks(cfg, facts))
    written = [*made, result.save(run_dir())]
    pages = draw(result, run_dir()) if draw else []
    show(result, CONSOLE)
    for path in [*written, *([pages] if isinstance(pages, Path) else pages)]:
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _with_tasks(cfg: DictConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """A provenance that names the verb's own tasks: in the configured one's place, and in `rivals` beside it."""
    own = cfg.get(cfg.verb)
    lists = {name: own[name] for name in ("tasks", "packs") if own.get(name)} if isinstance(own, DictConfig) else {}
    if "task" not in facts or not lists:
        return facts
    kept = {name: value for name, value in facts.items() if name != "task" or cfg.verb == "rivals"}
    return kept | {name: plain(tasks) for name, tasks in lists.items()}
