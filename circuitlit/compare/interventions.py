"""Ablation, transfer and scaling of the nodes that matter, beside matched random ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from circuitlit.arguments import check_once, checks_arguments
from circuitlit.compare.ablate_nodes import ablate
from circuitlit.compare.effects import ranked_nodes
from circuitlit.compare.intervention_case import Case
from circuitlit.compare.intervention_figures import Ablations, Enhancement, Transfer
from circuitlit.compare.scale_nodes import scale
from circuitlit.compare.transfer_nodes import transfer
from circuitlit.compare.transplant import Transplant
from circuitlit.compare.writes import Writers
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate, TestBed
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.testing import with_holm
from circuitlit.graph import INPUTS, Circuit
from circuitlit.graph.nodes import known_nodes
from circuitlit.heads.text import sample_passages
from circuitlit.model import Subject
from circuitlit.model.limits import passage_length
from circuitlit.progress import phase
from circuitlit.result import Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Interventions(Result):
    """What `intervene_on_nodes` found.

    Attributes:
        task, model, method: what the nodes were ranked on, in and by.
        ablated_by: what stood in for ablated nodes.
        seed: of random sets and text.
        n_pairs: test pairs.
        chosen: the set that is ablated, scaled and transferred.
        settings: sizes and levels.
        text: where the other text is from.
        full_metric: of the model as it is.
        ablation, enhancement, transfer: the three interventions; no transfer without a tuned model.
    """

    schema: ClassVar[str] = "interventions"
    file: ClassVar[str] = "intervene.json"

    task: str
    model: str
    method: str
    ablated_by: str
    seed: int
    n_pairs: int
    chosen: list[str]
    settings: dict[str, Any]
    text: str
    full_metric: Estimate
    ablation: Ablations
    enhancement: Enhancement
    transfer: Transfer | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a node or edge that was ablated alone."""
        for what, found in (("node", self.ablation.nodes), ("edge", self.ablation.edges)):
            for one in found:
                yield {
                    "what": what,
                    "name": one.name,
                    "kind": one.kind,
                    "drop": one.drop.value,
                    "kl": one.kl,
                    "q": one.q,
                }


@checks_arguments
def intervene_on_nodes(
    bench: Workbench,
    circuit: Circuit,
    *,
    tuned: Subject | None = None,
    nodes: Sequence[str] | None = None,
    size: int = 4,
    candidates: int | None = 20,
    edges: int = 20,
    steps: Sequence[int] = (1, 2, 4, 8, 16),
    doses: Sequence[float] = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    draws: int | None = None,
    pairs: int = 32,
    control_pairs: int = 16,
    other_tasks: Mapping[str, Workbench] | None = None,
    level: float = 0.05,
    kinds: Mapping[str, str] | None = None,
    text: Int[Tensor, "passage pos"] | None = None,
    text_source: str = "sampled from the model",
    seed: int = 0,
) -> Interventions:
    """Ablate, scale and transfer the nodes that carry most of a circuit.

    Args:
        bench: the model and its task's pairs; its ablation stands in for what is cut.
        circuit: ranks nodes and edges.
        tuned: nodes are transferred from it; None transfers none.
        nodes: the set, instead of the best `size` of the ranking.
        size: nodes of the set.
        candidates: nodes ablated one by one; None takes all.
        edges: edges cut one by one.
        steps: numbers of nodes ablated together, best first.
        doses: factors of the set's writes, 0 (zero ablation) and 1 (nothing changed) among them.
        draws: at most so many random sets; None takes as many as significance needs.
        pairs: test pairs.
        control_pairs: test pairs for random sets.
        other_tasks: the same model with other tasks' pairs, for specificity.
        level: false discovery rate.
        kinds: roles of components, for the table.
        text: passages for the collateral KL; None samples 16 of up to 48 tokens from the model.
        text_source: where they are from, in words.
        seed: of random sets and sampled text.

    Raises:
        UserError: unknown nodes, one twice or an input among them, doses without 0 and 1, numbers out of range, a
            single passage, pairs without wrong answers, or a compiled program.
    """
    subject, writers = bench.subject, Writers(bench.subject)
    if not {0.0, 1.0} <= {float(dose) for dose in doses}:
        raise UserError("doses must hold 0 (zero ablation) and 1 (nothing changed)")
    if min(size, edges, *steps) < 1 or min(pairs, control_pairs) < 2:
        raise UserError("size, edges and steps must be at least 1, pairs and control_pairs at least 2")
    check_once("nodes", nodes or [])
    if text is not None and len(text) < 2:
        raise UserError("text must hold at least two passages; give more")  # each is ablated as on the next
    move = None if tuned is None else Transplant(subject, tuned)
    with phase("scores", "Ranking the nodes"):
        chosen = ranked_nodes(circuit)[:size] if nodes is None else known_nodes(subject.graph, nodes)
        if not chosen or {*chosen} & {*INPUTS}:
            raise UserError("nodes must name heads and MLPs, at least one; an input has no random control")
        text = sample_passages(subject, 16, passage_length(subject.model.config), seed) if text is None else text
        beds = [_bed(one, pairs) for one in (bench, *(other_tasks or {}).values())]
        if not bool(beds[0].full.metric.isfinite().all()):
            task = bench.data.splits.name
            raise UserError(f"task {task} has pairs without wrong answers, so there is no metric to change")
        others = dict(zip(other_tasks or {}, beds[1:], strict=True))
        case = Case(bench, beds[0], circuit, chosen, kinds or {}, text, writers, others, control_pairs, draws, seed)
    with phase("ablation", f"Ablating {' '.join(chosen)} and random nodes like them"):
        ablated = ablate(case, candidates, edges, steps, level)
    with phase("enhancement", f"Scaling them by {len(doses)} doses"):
        enhancement = scale(case, sorted(map(float, doses)))
    transferred = None
    if move is not None:
        with phase("transfer", "Transferring them from the tuned model"):
            transferred = transfer(case, move)
    sizes = {"size": size, "candidates": candidates, "edges": edges, "steps": list(steps), "doses": list(doses)}
    found = Interventions(
        task=bench.data.splits.name,
        model=subject.name,
        method=circuit.scores.method,
        ablated_by=bench.references.kind,
        seed=seed,
        n_pairs=len(case.bed.full.kl),
        chosen=chosen,
        settings=sizes | {"draws": draws, "pairs": pairs, "control_pairs": control_pairs, "level": level},
        text=text_source,
        full_metric=mean_estimate(case.bed.full.metric, case.bed.full.group),
        ablation=ablated,
        enhancement=enhancement,
        transfer=transferred,
    )
    return with_holm(found)


def _bed(bench: Workbench, pairs: int) -> TestBed:
    return TestBed.of(bench, bench.data.test, bench.data.test.spread(pairs))
