"""`result.json`: the circuit and everything it is compared with, on held-out pairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool, Float
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import attribute
from circuitlit.cli.checks import run_dir
from circuitlit.cli.configs import preset
from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate import TestBed, paired_difference, random_circuit, shuffled_circuit, summarise
from circuitlit.evaluate.ground_truth import edge_auc
from circuitlit.evaluate.statistics import Estimate, mean_estimate
from circuitlit.evaluate.testing import LEVEL, enough_draws, holm, rank_p
from circuitlit.files import write_json
from circuitlit.graph import Circuit, EdgeScores, reachable_edges, top_k
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.progress import CONSOLE, told
from circuitlit.report import print_table, write_page
from circuitlit.tasks import EncodedPairs

SCHEMA = 2  # of result.json
OK, FAILED, UNMEASURABLE, SMOKE = "OK", "FAILED", "NOT MEASURABLE", "SMOKE TEST"


@dataclass(frozen=True)
class Rival:
    """An attribution that a circuit is compared with.

    Attributes:
        scores: of all edges, as they are ranked.
        seconds: that scoring took.
        val_kl: KL of its circuit on validation pairs, nats; None where it was not needed.
    """

    scores: EdgeScores
    seconds: float
    val_kl: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        label = f"{self.scores.method}, {self.scores.ranking}"
        return {"label": label, "seconds": self.seconds, "val_kl": self.val_kl}


def rivals(cfg: DictConfig, bench: Workbench, start: EdgeScores, seconds: float) -> list[Rival]:
    """The start scores, and those of every method of `evaluate.rivals`, each with what it cost."""
    made = [Rival(start, seconds)]
    for name in cfg.evaluate.rivals:
        if name == cfg.method.name:
            continue
        own = cfg.copy()
        own.method = preset("method", name)
        begun = time.perf_counter()
        scores = attribute(own, bench)
        bench.cut(scores)  # a method that rejected too many edges is refused here, not after training
        made.append(Rival(scores, time.perf_counter() - begun))
    return made


def best_attribution(bench: Workbench, tried: Sequence[Rival], bed: TestBed | None) -> list[Rival]:
    """Every ranking of some attributions, by magnitude and by sign, the one of lowest KL on validation pairs first."""
    if bed is None:
        return list(tried)
    ranked = [
        replace(rival, scores=scores, val_kl=float(bed.run(bench.cut(scores).kept).kl.mean()))
        for rival in tried
        for scores in rankings(rival.scores)
    ]
    return sorted(ranked, key=lambda rival: rival.val_kl or 0.0)


def validation(bench: Workbench, pairs: int) -> TestBed | None:
    """The first validation pairs; None where the task has none."""
    rows = bench.data.val.spread(pairs)
    if not rows:
        return None
    return TestBed.build(bench.model, bench.fresh_references(), [bench.data.val.collate(rows)])


def against_cut(masks: Float[Tensor, "copies edge"], circuit: Circuit, bed: TestBed | None) -> dict[str, Any]:
    """What was trained beside what is cut from it: their KL on validation pairs, and the masks that differ."""
    facts: dict[str, Any] = {
        "n_between": int(((masks > 0) & (masks < 1)).sum()),
        "n_differ": int(((masks >= 0.5).cpu() != circuit.kept).sum()),
    }
    if bed is None:
        return {"gates": facts}
    cut = bed.run(circuit.kept)
    trained = bed.run(masks) if any(facts.values()) else cut
    facts |= {"n_pairs": len(cut.kl), "cut_minus_gates_kl": paired_difference(cut.kl, trained.kl, cut.group).to_dict()}
    ends = {"kl": trained, "cut_kl": cut}
    return {"gates": facts | {key: mean_estimate(end.kl, end.group).to_dict() for key, end in ends.items()}}


def rankings(scores: EdgeScores) -> list[EdgeScores]:
    """The scores ranked by magnitude and by sign; gates, shares and what a method rejected have one ranking."""
    if scores.kind != "effect" or scores.limit is not None:
        return [scores]
    return [replace(scores, ranks_by_magnitude=magnitude) for magnitude in (True, False)]


def signed_or_absolute(bed: TestBed, bench: Workbench, scores: EdgeScores) -> EdgeScores:
    """The ranking of some scores whose circuit has the lower KL on the pairs of `bed`."""
    return min(rankings(scores), key=lambda r: float(bed.run(bench.cut(r).kept).kl.mean()))


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


def held_out(cfg: DictConfig, bench: Workbench, split: str = "test") -> TestBed:
    """The pairs of a held-out split, so ordered that the first few are of as many sentences as possible."""
    pairs: EncodedPairs = getattr(bench.data, split)
    batches = pairs.batches(cfg.data.eval_batch_size, order=pairs.spread())
    return TestBed.build(bench.model, bench.fresh_references(), batches)


def evaluated_pairs(cfg: DictConfig, bench: Workbench, tried: int) -> int:
    """Pairs that circuits are run on by `best_attribution` and `make_result`, beside `tried` attributions."""
    data, settings = bench.data, cfg.evaluate
    baselines = (2 * len(data.test) + len(data.new_words)) * bool(tried)
    probes = 2 * tried * min(settings.probe_pairs, len(data.val))
    controls = 2 * settings.controls * min(max(settings.control_pairs, data.test.n_groups), len(data.test))
    return len(data.test) + len(data.new_words) + baselines + probes + controls


def make_result(
    cfg: DictConfig, bench: Workbench, circuit: Circuit, tried: Sequence[Rival] = (), bed: TestBed | None = None
) -> dict[str, Any]:
    """Run everything on the test split, and circuit and baseline on the one with new words.

    Args:
        cfg: the run's settings.
        bench: subject, pairs and masked model.
        circuit: what was found.
        tried: attributions, best first, if the circuit is not itself of one: the first one's circuits of equal size are
            the baseline.
        bed: of `held_out`, if it is there already.
    """
    bed = bed or held_out(cfg, bench)
    found = bed.run(circuit.kept)
    rival = tried[0].scores if tried else None
    equal = None if rival is None else bench.cut(rival)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "task": cfg.task.name,
        "model": cfg.model.name,
        "method": circuit.scores.method,
        "ablation": cfg.ablation.kind,
        "seed": cfg.seed,
        "n_edges_total": circuit.kept.numel(),
        "n_edges": circuit.n_edges,
        "n_edges_reachable": circuit.n_reachable,
        "sparsity": circuit.sparsity,
        **_compared(bed, found, equal),
        **({} if rival is None else _same_reachable(bed, circuit, rival)),
        **_controls(cfg, bench, bed, circuit, found),
        "attributions_tried": [one.to_dict() for one in tried],
        "new_words": _new_words(cfg, bench, circuit, equal),
        **_against_truth(bench.subject, circuit),
    }
    status, reason = verdict(result, cfg.evaluate, bench.data.splits.exhaustive)
    return {"status": status, "reason": reason, **result}


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


def _compared(bed: TestBed, found: Outcome, equal: Circuit | None) -> dict[str, Any]:
    """The circuit on some held-out pairs, with full model, corrupted run and the attribution's circuit of its size."""
    sentences = len(found.group.unique())
    few = "with a single sentence nothing can be said of others" if sentences < 2 else None
    compared = {
        "n_pairs": len(found.kl),
        "sentences": {"n": sentences, "reason": few},
        **_entry(bed, [found]),
        "full": _entry(bed, [bed.full]) | {"n_edges": bed.model.graph.n_edges},
        "corrupted": _entry(bed, [bed.corrupted]) | {"n_edges": 0},
    }
    if equal is None:
        return compared
    theirs = bed.run(equal.kept)
    return compared | {
        "attribution": _entry(bed, [theirs])
        | {"n_edges": equal.n_edges, "n_edges_reachable": equal.n_reachable}
        | {"label": f"{equal.scores.method}, {equal.scores.ranking}"},
        "attribution_minus_circuit_kl": paired_difference(theirs.kl, found.kl, found.group).to_dict(),
    }


def _same_reachable(bed: TestBed, circuit: Circuit, rival: EdgeScores) -> dict[str, Any]:
    """The attribution's circuit with as many reachable edges."""
    reachable = cut_to_reachable(rival, circuit.n_reachable)
    outcome = bed.run(reachable)
    return {
        "attribution_reachable": _entry(bed, [outcome])
        | {"n_edges": int(reachable.sum()), "n_edges_reachable": int(reachable_edges(rival.graph, reachable).sum())},
    }


def _new_words(cfg: DictConfig, bench: Workbench, circuit: Circuit, equal: Circuit | None) -> dict[str, Any]:
    """The same comparison on sentences whose words, too, occur nowhere in training."""
    if not len(bench.data.new_words):
        return {"n_pairs": 0, "reason": f"task {cfg.task.name} has no pairs with new words"}
    bed = held_out(cfg, bench, "new_words")
    return _compared(bed, bed.run(circuit.kept), equal)


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


def _entry(bed: TestBed, outcomes: list[Outcome]) -> dict[str, Any]:
    return summarise(outcomes, bed.full, bed.corrupted).to_dict()


def _controls(cfg: DictConfig, bench: Workbench, bed: TestBed, circuit: Circuit, found: Outcome) -> dict[str, Any]:
    """Random circuits of the same size, and shuffles with the same degrees, on pairs of every sentence.

    `subset` holds circuit, full model and corrupted run on the same pairs. `p` of a control is the share of its
    circuits with a KL at most the circuit's, the circuit itself counted; `p_holm` is corrected for both controls.
    """
    number, graph = cfg.evaluate.controls, bench.subject.graph
    pairs = min(max(cfg.evaluate.control_pairs, len(found.group.unique())), len(found.kl))
    own, full, corrupted = (outcome.head(pairs) for outcome in (found, bed.full, bed.corrupted))
    kinds = {
        "random": [random_circuit(graph, circuit.n_edges, seed, bench.layout.copies) for seed in range(number)],
        "shuffled": [shuffled_circuit(graph, circuit.kept, seed) for seed in range(number)],
    }
    outcomes = {
        kind: [bed.run(kept, pairs) for kept in told(circuits, f"{kind} circuits", number)]
        for kind, circuits in kinds.items()
    }
    closeness = -float(own.kl.mean())
    p = [rank_p(closeness, [-float(other.kl.mean()) for other in others]) for others in outcomes.values()]
    facts = {"n_edges": circuit.n_edges, "n_circuits": number, "n_pairs": pairs}
    rows = {
        kind: _entry(bed, others) | facts | {"p": one, "p_holm": both}
        for (kind, others), one, both in zip(outcomes.items(), p, holm(p), strict=True)
    }
    subset = {"n_pairs": pairs, "n_edges": circuit.n_edges, **summarise([own], full, corrupted).to_dict()}
    ends = {"full": full, "corrupted": corrupted}
    return rows | {"subset": subset | {k: summarise([o], full, corrupted).to_dict() for k, o in ends.items()}}


def verdict(result: dict[str, Any], settings: DictConfig, exhaustive: bool = False) -> tuple[str, str | None]:
    """Status of a result and why it is not OK: its KL against the corrupted run's, and against the controls'.

    Args:
        result: of `make_result`.
        settings: `evaluate`.
        exhaustive: True where the pairs are all inputs there are, so that few are enough.
    """
    if settings.smoke:
        return SMOKE, "a run this short shows that everything works and says nothing about the model"
    if result["n_pairs"] < settings.least_pairs and not exhaustive:
        return (
            UNMEASURABLE,
            f"{result['n_pairs']} test pairs are too few to judge by; take at least {settings.least_pairs}",
        )
    kl, worst = Estimate(**result["kl"]), result["corrupted"]["kl"]["value"]
    allowed = settings.max_kl_share * worst
    assert kl.value is not None
    if kl.value > allowed:
        return (
            FAILED,
            f"its KL of {kl.value:.3f} nats exceeds {allowed:.3f}, {settings.max_kl_share:g} of the corrupted run's",
        )
    for control in ("random", "shuffled"):
        row = result[control]
        if row["p_holm"] < LEVEL:
            continue
        if row["p"] <= 1 / (1 + row["n_circuits"]):
            enough = enough_draws(2)
            return UNMEASURABLE, f"{row['n_circuits']} {control} circuits are too few for p < {LEVEL}; take {enough}"
        return FAILED, f"its KL is not below that of {control} circuits beyond chance (p = {row['p_holm']:.2g})"
    return OK, None
