"""What is measured at one checkpoint: behaviour, circuit, the smallest faithful circuit, head scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.build import attribute, build_method, build_workbench
from circuitlit.cli.learn import learn
from circuitlit.discover.workbench import Resampler, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Behaviour, TestBed, paired_difference, summarise
from circuitlit.evaluate.rival import validation
from circuitlit.evaluate.similarity import corrected_jaccard, noise_floor
from circuitlit.evaluate.smallest import smallest_circuit
from circuitlit.evaluate.testing import LEAST_DRAWS, enough_draws
from circuitlit.graph import Circuit, EdgeScores
from circuitlit.heads import (
    Heads,
    copying_scores,
    heads_in_circuit,
    repeat_scores,
    repeated_tokens,
    successor_lists,
    successor_scores,
)
from circuitlit.heads.causal import causal_check, repeat_score
from circuitlit.heads.repeats import front_token
from circuitlit.heads.roles import head_name, heads_of, top_heads
from circuitlit.model import Subject
from circuitlit.run.evolve.algorithm import algorithm_part
from circuitlit.run.evolve.series import claims_of
from circuitlit.timeline.series import Noise

SMALL = 1000  # tokens of a vocabulary on which copying costs nothing


def task_cell(
    cfg: DictConfig, subject: Subject, folder: Path, start: Path | None, cold_too: bool, noise: bool
) -> dict[str, Any]:
    """One task at one checkpoint.

    Args:
        cfg: the task's settings.
        subject: the checkpoint's model.
        folder: gets the circuit of equal size and, under `smallest`, the smallest faithful one.
        start: circuit file whose masks training begins with; None begins with attribution scores.
        cold_too: also learn masks from attribution scores, and compare.
        noise: also attribute on bootstrap samples of the training pairs, for the noise floor.
    """
    seed_everything(cfg.seed, verbose=False)
    bench = build_workbench(cfg, subject)
    test = bench.data.test
    behaviour = Behaviour.measure(subject, test.batches(cfg.data.eval_batch_size))
    score = Resampler(bench, build_method(cfg)) if noise and cfg.evolve.resamples > 1 and _attributes(cfg) else None
    scores, cold = _scores(cfg, bench, folder, start, cold_too) if score is None else (score.scores, None)
    circuit = bench.cut(scores)
    folder.mkdir(parents=True, exist_ok=True)
    circuit.save(folder)
    bed = TestBed.build(bench.model, bench.fresh_references(), test.batches(cfg.data.eval_batch_size))
    content: dict[str, Any] = {
        "n_edges_total": bench.layout.n_edges,
        "n_nodes_total": subject.graph.n_writers,
        "method": scores.method,
        "behaviour": behaviour.to_dict(),
        "circuit": _described(bed, circuit),
        **_smallest(cfg, bench, scores, bed, folder),
    }
    found = content["smallest"] if content["status"] == "OK" else None
    inside = None if found is None else heads_in_circuit(Circuit.load(folder / "smallest"))
    if inside is None or bool(inside.any()):
        content |= algorithm_part(cfg, bench, _repeated(cfg, subject)[0], inside)
    if cold is not None:
        content["cold_overlap"] = corrected_jaccard(circuit.kept, bench.cut(cold).kept)
    if score is not None:
        floor = noise_floor(score, bench.cut, len(bench.data.train), cfg.evolve.resamples, cfg.seed)
        content["noise"] = asdict(Noise.of(*floor))
    return content


def _attributes(cfg: DictConfig) -> bool:
    return cfg.evolve.circuits == "attribution"


def _scores(
    cfg: DictConfig, bench: Workbench, folder: Path, start: Path | None, cold_too: bool
) -> tuple[EdgeScores, EdgeScores | None]:
    """The circuit's scores and, where asked for, those of masks learned without the checkpoint before."""
    if _attributes(cfg):
        return attribute(cfg, bench), None
    attribution = attribute(cfg, bench) if start is None or cold_too else None
    cold = learn(cfg, bench, attribution, folder / "cold")[0].scores() if attribution is not None else None
    if start is None:
        assert cold is not None
        return cold, None
    warm = cfg.copy()
    warm.mask.init_from = str(start)
    return learn(warm, bench, None, folder)[0].scores(), cold


def _smallest(cfg: DictConfig, bench: Workbench, scores: EdgeScores, bed: TestBed, folder: Path) -> dict[str, Any]:
    """The smallest circuits, normalised and raw: chosen on validation pairs, measured on test pairs."""
    probe = validation(bench, cfg.evolve.probe_pairs)
    if probe is None:
        raise UserError(f"task {cfg.task.name} has no validation pairs to choose the smallest circuit by")
    gap = paired_difference(probe.full.metric, probe.corrupted.metric, probe.full.group)
    if gap.bounds is None or gap.bounds[0] <= 0:
        reason = f"clean prompts are not clearly better than corrupted ones ({gap}), so no circuit explains anything"
        return {"status": "FAILED", "reason": reason, "smallest": None, "smallest_raw": None}
    if not cfg.evolve.smallest:
        return {"status": "UNSEARCHED", "reason": None, "smallest": None, "smallest_raw": None}
    target = cfg.evolve.faithfulness
    content: dict[str, Any] = {}
    for name, raw in (("smallest", False), ("smallest_raw", True)):
        found, circuit = smallest_circuit(probe, scores, target, raw, select=bench.select)
        content[name] = {**found.to_dict(), **_described(bed, circuit)}
        if name == "smallest" and found.status == "OK":
            (folder / name).mkdir(exist_ok=True)
            circuit.save(folder / name)
    failed = content["smallest"]["status"] == "FAILED"
    reason = f"no size reaches a faithfulness of {target:g}; the best is {content['smallest']['value']}"
    return {"status": "FAILED" if failed else "OK", "reason": reason if failed else None, **content}


def _described(bed: TestBed, circuit: Circuit) -> dict[str, Any]:
    """Size, heads and, on held-out pairs, how good it is."""
    return {
        "n_edges": circuit.n_edges,
        "n_edges_reachable": circuit.n_reachable,
        "n_nodes": int(circuit.nodes.sum()),
        "heads": [head_name(head) for head in heads_of(heads_in_circuit(circuit))],
        **summarise([bed.run(circuit.kept)], bed.full, bed.corrupted).to_dict(),
    }


def heads_cell(cfg: DictConfig, subject: Subject) -> dict[str, Any]:
    """Scores of every head, and the model's loss and accuracy on repeated random tokens."""
    ids, fresh = _repeated(cfg, subject)
    grids = _grids(cfg, subject, ids)
    names = [head_name((layer, h)) for layer in range(subject.graph.n_layers) for h in range(subject.graph.n_heads)]
    scores = {role: dict(zip(names, grid.flatten().tolist(), strict=True)) for role, grid in grids.items()}
    behaviours = _behaviours(cfg, subject, ids, fresh)
    intact = {name: float(measure(()).mean()) for name, measure in behaviours.items()}
    return {"status": "OK", "n_parameters": subject.model.num_parameters(), "scores": scores, **intact}


def _grids(cfg: DictConfig, subject: Subject, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What heads look at on repeated tokens, what they copy of the first half, and successors where the words are."""
    heads, length = Heads(subject), cfg.evolve.heads.length
    grids = repeat_scores(heads, ids, length)
    few = ids[: 16 if subject.model.config.vocab_size < SMALL else 1, : ids.shape[1] - length]
    grids["copying"] = copying_scores(heads, few, torch.ones_like(few, dtype=torch.bool))["copying"]
    lists = [] if subject.tokenizer is None else successor_lists(subject.tokenizer)
    return grids | ({"successor": successor_scores(heads, lists)} if lists else {})


def causal_cell(cfg: DictConfig, subject: Subject) -> dict[str, Any]:
    """What ablating the induction heads does to repeated tokens, beside as many random heads that are none.

    All heads above the threshold are ablated, or the `top` highest of them; no random set holds a head above it. Where
    more than half of the heads are above it, as many of the highest are taken as there are others. Random sets may hold
    previous-token heads, which induction needs; those of `bystanders` hold no head with any score of attention above
    the threshold, where there are enough such heads.
    """
    ids, fresh = _repeated(cfg, subject)
    settings, graph = cfg.evolve.heads, subject.graph
    grids = repeat_scores(Heads(subject), ids, settings.length)
    grid = grids["induction"]
    above = [head for head in top_heads(grid, grid.numel()) if float(grid[head]) > settings.threshold]
    best = above[: min(settings.top or len(above), grid.numel() - len(above))]
    if not best:
        reason = "every head" if above else "no head"
        return {"status": "FAILED", "reason": f"{reason} has an induction score above {settings.threshold:g}"}
    anything = heads_of(torch.stack([*grids.values()]).amax(0) > settings.threshold)
    names = {"heads": [head_name(head) for head in best], "n_above": len(above), "n_heads": grid.numel()}
    content: dict[str, Any] = {"status": "OK", **names}
    ids, fresh = _repeated(cfg, subject, new=1)  # others than the heads were chosen on
    draws = settings.draws or enough_draws(claims_of(cfg))
    for name, measure in _behaviours(cfg, subject, ids, fresh).items():
        check = causal_check(measure, graph, best, draws, cfg.seed, spared=above)
        content[name] = {**asdict(check), "heads": content["heads"], "bystanders": None}
        if grid.numel() - len({*anything, *best}) >= len(best):
            content[name]["bystanders"] = asdict(
                causal_check(measure, graph, best, min(draws, LEAST_DRAWS), cfg.seed, spared=[*above, *anything])
            )["random"]
    return content


def _behaviours(
    cfg: DictConfig, subject: Subject, ids: torch.Tensor, fresh: torch.Tensor
) -> dict[str, Callable[..., torch.Tensor]]:
    length = cfg.evolve.heads.length
    return {
        name: repeat_score(subject, ids, fresh, length, "interchange", name)  # type: ignore[arg-type]
        for name in ("loss", "accuracy")
    }


def _repeated(cfg: DictConfig, subject: Subject, new: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens said twice, and as long ones that do not repeat; other `new` gives others."""
    settings, vocabulary = cfg.evolve.heads, subject.model.config.vocab_size
    bos = front_token(subject.tokenizer)
    ids = repeated_tokens(vocabulary, settings.sequences, settings.length, cfg.seed + 2 * new, bos)
    fresh = repeated_tokens(vocabulary, settings.sequences, 2 * settings.length, cfg.seed + 1 + 2 * new, bos, 1)
    return ids.to(subject.device), fresh.to(subject.device)
