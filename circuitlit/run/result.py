"""`result.json`: the circuit and everything it is compared with, on held-out pairs."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from jaxtyping import Bool
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.evaluate import TestBed, paired_difference, random_circuit, shuffled_circuit, summarise
from circuitlit.evaluate.ground_truth import edge_auc
from circuitlit.evaluate.statistics import Estimate
from circuitlit.files import write_json
from circuitlit.graph import Circuit, EdgeScores, reachable_edges, top_k
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.report import print_table, write_page
from circuitlit.run.build import Workbench
from circuitlit.run.checks import run_dir
from circuitlit.run.clock import CONSOLE


def best_attribution(bench: Workbench, scores: EdgeScores, pairs: int) -> EdgeScores:
    """The scores ranked by magnitude or by sign, whichever circuit has the lower KL on validation pairs."""
    bed = validation(bench, pairs)
    return signed_or_absolute(bed, bench, scores) if bed else scores


def validation(bench: Workbench, pairs: int) -> TestBed | None:
    """The first validation pairs; None where the task has none."""
    rows = range(min(pairs, len(bench.data.val)))
    if not rows:
        return None
    return TestBed.build(bench.model, bench.fresh_references(), [bench.data.val.collate(rows)])


def signed_or_absolute(bed: TestBed, bench: Workbench, scores: EdgeScores) -> EdgeScores:
    """The scores ranked by magnitude or by sign, whichever circuit has the lower KL on the pairs of `bed`."""
    rankings = [replace(scores, ranks_by_magnitude=magnitude) for magnitude in (True, False)]
    return min(rankings, key=lambda r: float(bed.run(bench.cut(r).kept).kl.mean()))


def cut_to_reachable(scores: EdgeScores, reachable: int) -> Bool[Tensor, "copies edge"]:
    """The smallest top-k circuit of some scores that has at least `reachable` reachable edges."""
    order = scores.order
    low, high = 1, scores.size
    while low < high:
        middle = (low + high) // 2
        if int(reachable_edges(scores.graph, top_k(order, middle)).sum()) >= reachable:
            high = middle
        else:
            low = middle + 1
    return top_k(order, low)


def held_out(cfg: DictConfig, bench: Workbench) -> TestBed:
    """The test pairs, scattered, so that the first few are of all templates."""
    test = bench.data.test
    order = sorted(range(len(test)), key=_scattered)
    return TestBed.build(bench.model, bench.fresh_references(), test.batches(cfg.data.eval_batch_size, order=order))


def make_result(
    cfg: DictConfig, bench: Workbench, circuit: Circuit, rival: EdgeScores | None = None, bed: TestBed | None = None
) -> dict[str, Any]:
    """Run everything on the test split.

    Args:
        cfg: the run's settings.
        bench: subject, pairs and masked model.
        circuit: what was found.
        rival: attribution scores whose circuits of equal size are the baseline, if the circuit is not itself of an
            attribution.
        bed: of `held_out`, if it is there already.
    """
    bed = bed or held_out(cfg, bench)
    found = bed.run(circuit.kept)
    result: dict[str, Any] = {
        "task": cfg.task.name,
        "model": cfg.model.name,
        "method": circuit.scores.method,
        "ablation": cfg.ablation.kind,
        "seed": cfg.seed,
        "n_edges_total": circuit.kept.numel(),
        "n_edges": circuit.n_edges,
        "n_edges_reachable": circuit.n_reachable,
        "sparsity": circuit.sparsity,
        "n_pairs": len(bench.data.test),
        **_entry(bed, [found]),
        "full": _entry(bed, [bed.full]) | {"n_edges": circuit.kept.numel()},
        "corrupted": _entry(bed, [bed.corrupted]) | {"n_edges": 0},
        **({} if rival is None else _rival(bed, bench.cut(rival), circuit, rival, found)),
        **_controls(cfg, bench, bed, circuit),
        **_against_truth(bench.subject, circuit),
    }
    reason = verdict(result, cfg.evaluate.max_kl_share)
    return {"status": "FAILED" if reason else "OK", "reason": reason, **result}


def publish(circuit: Circuit, result: dict[str, Any], history: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write circuit, curves, result and page into the run directory, and print the table."""
    folder = run_dir()
    circuit.save(folder)
    write_json(folder / "history.json", history or {"rows": []})
    write_json(folder / "result.json", result)
    page = write_page(folder)
    print_table(result, CONSOLE)
    for path in (folder / "result.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _rival(bed: TestBed, equal: Circuit, circuit: Circuit, rival: EdgeScores, found: Outcome) -> dict[str, Any]:
    """The attribution circuit of equal nominal and of equal reachable size."""
    nominal = bed.run(equal.kept)
    reachable = cut_to_reachable(rival, circuit.n_reachable)
    return {
        "attribution": _entry(bed, [nominal])
        | {"n_edges": equal.n_edges, "n_edges_reachable": equal.n_reachable}
        | {"label": f"{rival.method}, {rival.ranking}"},
        "attribution_reachable": _entry(bed, [bed.run(reachable)])
        | {"n_edges": int(reachable.sum()), "n_edges_reachable": int(reachable_edges(rival.graph, reachable).sum())},
        "attribution_minus_circuit_kl": asdict(paired_difference(nominal.kl, found.kl, found.group)),
    }


def _against_truth(subject: Subject, circuit: Circuit) -> dict[str, Any]:
    """How the circuit compares with the edges that the model is known to use, where they are known."""
    true = subject.true_edges
    if true is None:
        return {}
    found = circuit.kept.any(0)
    return {
        "edge_roc_auc": edge_auc(circuit.scores, true),
        "true_edges": int(true.sum()),
        "true_edges_found": int((found & true).sum()),
        "false_edges_found": int((found & ~true).sum()),
    }


def _scattered(index: int) -> int:
    return index * 2654435761 % 2**32


def _entry(bed: TestBed, outcomes: list[Outcome]) -> dict[str, Any]:
    return summarise(outcomes, bed.full, bed.corrupted).to_dict()


def _controls(cfg: DictConfig, bench: Workbench, bed: TestBed, circuit: Circuit) -> dict[str, Any]:
    """Random circuits of the same size, and shuffles with the same degrees."""
    number, pairs = cfg.evaluate.controls, min(cfg.evaluate.control_pairs, len(bench.data.test))
    graph = bench.subject.graph
    kinds = {
        "random": [random_circuit(graph, circuit.n_edges, seed, bench.layout.copies) for seed in range(number)],
        "shuffled": [shuffled_circuit(graph, circuit.kept, seed) for seed in range(number)],
    }
    facts = {"n_edges": circuit.n_edges, "n_circuits": number, "n_pairs": pairs}
    return {kind: _entry(bed, [bed.run(kept, pairs) for kept in circuits]) | facts for kind, circuits in kinds.items()}


def verdict(result: dict[str, Any], max_kl_share: float) -> str | None:
    """Why a circuit misses its bar, or None: its KL against the corrupted run's, and against the controls'."""
    kl = Estimate(**result["kl"])
    allowed = max_kl_share * result["corrupted"]["kl"]["value"]
    assert kl.value is not None and kl.high is not None
    if kl.value > allowed:
        return f"its KL of {kl.value:.3f} nats exceeds {allowed:.3f}, {max_kl_share:g} of the corrupted run's"
    for control in ("random", "shuffled"):
        if kl.high >= result[control]["kl"]["low"]:
            return f"its KL is not clearly below that of {control} circuits"
    return None
