"""Several runs of `finetune`, each at its checkpoint of one score: circuits, weights, attention, side effects."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from circuitlit.cli.build import build_workbench, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.scored import score_side
from circuitlit.cli.sides import load_base, load_side, passages
from circuitlit.compare import Resampled, weight_changes
from circuitlit.compare.effects import text_kl
from circuitlit.compare.likeness import attention_change
from circuitlit.compare.tuning import change_figures, common_level, nearest_step, score_figures
from circuitlit.compare.turnover import Circuits, turnover
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import draws_for
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.testing import with_holm
from circuitlit.files import write_json
from circuitlit.finetune import HeldOut, behaviour_change
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.tunings import print_tunings, write_tunings
from circuitlit.tasks.pair import Batch


def run_tunings(cfg: DictConfig) -> dict[str, Any]:
    """Compare ways to tune and write `tunings.json` and a page into the run directory.

    Raises:
        UserError: a run without checkpoints, or one that cannot be compared.
    """
    settings = cfg.compare
    if settings.match not in ("metric", "accuracy"):
        raise UserError(f"compare.match={settings.match} is neither metric nor accuracy; choose one")
    if not isinstance(cfg.runs, ListConfig) or len(cfg.runs) < 2:
        raise UserError("runs needs at least two runs of finetune: runs=[A,B]")
    clock, runs = Clock(), _named(list(cfg.runs))
    series = {name: _scores(path, settings.match) for name, path in runs.items()}
    level = common_level(series) if settings.level is None else float(settings.level)
    steps = {name: nearest_step(name, scores, level) for name, scores in series.items()}
    with clock.phase("base", "Scoring the base model"):
        base = load_base(cfg)
        bench = build_workbench(cfg, base)
        held_out = HeldOut(base.model, bench.data.test, cfg.data.eval_batch_size, base.device)
        text = passages(cfg, base, settings.text.passages, settings.text.length)
        draws = settings.draws or draws_for(len(runs) * (len(runs) + 1) // 2)
        before = Circuits.of(score_side(cfg, bench).at(bench.count), draws, 0)
    circuits: dict[str, Circuits] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, path in runs.items():
        with clock.phase(f"run_{name}", f"{name} at step {steps[name]}"):
            folder = str(Path(path) / "checkpoints" / f"step_{steps[name]:06d}")
            tuned = load_side(cfg, folder, f"run {name}")
            if tuned.graph != base.graph:
                raise UserError(f"run {name} is of another graph than the base; only models of one can be compared")
            own = build_workbench(cfg, tuned)
            circuits[name] = Circuits.of(score_side(cfg, own).at(own.count), draws, 1 + len(circuits))
            rows[name] = {
                "run": path,
                "step": steps[name],
                "matched_score": series[name][steps[name]],
                "held_out": behaviour_change(held_out.base, held_out.measure(tuned.model)).to_dict(),
                **_changes(base, tuned, list(own.data.test.batches(cfg.data.eval_batch_size)), text),
                "scores": score_figures(circuits[name].model.scores),
                "from_base": asdict(turnover(before, circuits[name], settings.seed)),
            }
    result = {
        "task": cfg.task.name,
        "method": cfg.method.name,
        "ablation": cfg.ablation.kind,
        "seed": cfg.seed,
        "match": settings.match,
        "level": level,
        "base": {"name": base.name, **base.provenance},
        "n_edges": bench.count,
        "n_edges_total": base.graph.n_edges,
        "resamples": settings.resamples,
        "base_scores": score_figures(before.model.scores),
        "runs": rows,
        "pairs": [
            {"of": [a, b], **asdict(turnover(circuits[a], circuits[b], settings.seed))}
            for a, b in combinations(circuits, 2)
        ],
        "shared": _shared({name: side.model for name, side in circuits.items()}),
        **clock.times(),
        "provenance": provenance(cfg, base),
    }
    write_json(run_dir() / "tunings.json", with_holm(result))
    page = write_tunings(run_dir())
    print_tunings(result, CONSOLE)
    for path in (run_dir() / "tunings.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _changes(base: Subject, tuned: Subject, batches: list[Batch], text: Tensor) -> dict[str, Any]:
    """How far a tuned model's weights, attention and answers to other text are from the base's."""
    return {
        "weights": change_figures(list(weight_changes(base, tuned))),
        "attention": _estimate(attention_change(base, tuned, batches)),
        "text_kl": _estimate(text_kl(base, text, lambda: tuned.unembed(tuned.hidden(text)))),
    }


def _named(paths: list[str]) -> dict[str, str]:
    """Runs by the way they tuned (`dpo lora`), by their folder where the run did not finish, numbered where equal."""
    names: list[str] = []
    for path in paths:
        file = Path(path) / "result.json"
        found = json.loads(file.read_text()) if file.is_file() else {}
        name = f"{found['tune']} {found['adapter']}" if {"tune", "adapter"} <= set(found) else Path(path).name
        names.append(name)
    labels = [f"{n} {names[:i].count(n) + 1}" if names.count(n) > 1 else n for i, n in enumerate(names)]
    return dict(zip(labels, paths, strict=True))


def _scores(path: str, match: str) -> dict[int, float]:
    """Validation scores of a run's checkpoints, by step.

    Raises:
        UserError: there are none.
    """
    file = Path(path) / "checkpoints" / "checkpoints.json"
    try:
        rows = json.loads(file.read_text())["checkpoints"]
        return {int(row["step"]): float(row["metrics"][match]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"runs: {file} has no checkpoints with validation {match} ({error}); name runs of finetune"
        ) from error


def _estimate(values: torch.Tensor | None) -> dict[str, float | None] | None:
    return None if values is None else asdict(mean_estimate(values, None))


def _shared(circuits: dict[str, Resampled]) -> dict[str, Any]:
    """Edges of all circuits at once, and those that only one has."""
    kept = {name: side.kept for name, side in circuits.items()}
    every = torch.stack([*kept.values()])
    return {
        "all": int(every.all(0).sum()),
        "any": int(every.any(0).sum()),
        "only": {name: int((own & (every.sum(0) == 1)).sum()) for name, own in kept.items()},
    }
