"""How much of a circuit's faithfulness hangs on what stands in for the edges that are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.discover.workbench import Ablation, Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.controls import random_circuit
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, ratio_estimate
from circuitlit.evaluate.summary import summarise
from circuitlit.graph import Circuit
from circuitlit.masked.ablation import KINDS, Kind
from circuitlit.progress import told
from circuitlit.result import Result


@dataclass(frozen=True, kw_only=True)
class UnderAblation:
    """The circuit where cut edges carry one kind of value.

    Attributes:
        kind: "interchange", "zero", "mean" or "optimal".
        kl: KL(model || circuit), nats.
        empty_kl: the same of no edges at all, nats; the full model's is 0.
        share: `kl` over `empty_kl`; 0 is the full model, 1 the empty circuit.
        faithfulness: share of the metric between no edges (0) and the full model (1); may lie outside.
        exact_match: share of pairs on which it says what the model says.
        random: `share` of random circuits of its size, mean; what a circuit that knows nothing has.
        reason: why it was not measured.
    """

    kind: str
    kl: Estimate | None = None
    empty_kl: Estimate | None = None
    share: Estimate | None = None
    faithfulness: Estimate | None = None
    exact_match: Estimate | None = None
    random: Estimate | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Ablations(Result):
    """What `measure_ablations` found.

    Attributes:
        task, model, method: what was measured.
        found_with: the ablation that the circuit was measured with before.
        n_pairs: held-out pairs, the same for all kinds.
        n_random: random circuits; they run on the first pairs alone.
        kinds: one row a kind.
        n_sentences: that the pairs are of; None in older files.
    """

    schema: ClassVar[str] = "ablations"
    file: ClassVar[str] = "ablations.json"

    task: str
    model: str
    method: str
    found_with: str
    n_pairs: int
    n_random: int
    kinds: list[UnderAblation]
    n_sentences: int | None = None

    @property
    def ends(self) -> tuple[UnderAblation, UnderAblation] | None:
        """The kinds with the least and the largest share of the empty circuit's KL; None where none has one."""
        known = [(one.share.value, place) for place, one in enumerate(self.kinds) if one.share and one.share.value]
        return (self.kinds[min(known)[1]], self.kinds[max(known)[1]]) if known else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a kind."""
        for one in self.kinds:
            figures = ("kl", "empty_kl", "share", "faithfulness", "exact_match", "random")
            values = {key: getattr(one, key) and getattr(one, key).value for key in figures}
            yield {"ablation": one.kind, **values, "reason": one.reason}


@checks_arguments
def measure_ablations(
    bench: Workbench,
    circuit: Circuit,
    *,
    kinds: Sequence[Kind] = KINDS,
    pairs: int = 64,
    positional: bool = False,
    steps: int = 100,
    lr: float = 0.01,
    random: int = 5,
    random_pairs: int = 16,
    seed: int = 0,
) -> Ablations:
    """Measure a circuit under several ablations on the same held-out pairs.

    Args:
        bench: subject, pairs and masked model; constants are made of its training pairs.
        circuit: its edges.
        kinds: what stands in for cut edges; the workbench's own kind as it was made, whatever the settings below.
        pairs: most held-out pairs, of as many sentences as possible.
        positional: of means: one for every position.
        steps, lr: of the training of optimal constants.
        random: random circuits of its size under every ablation; 0 runs none.
        random_pairs: pairs that these run on.
        seed: of that training.

    Raises:
        UserError: no kind that is known.

    Source: Miller, Chughtai and Saunders (arXiv 2407.08734), who show how far faithfulness moves with the ablation.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(f"ablations {list(kinds)} are not some of {', '.join(KINDS)}")
    rows = bench.data.test.spread(pairs)
    drawn = [random_circuit(circuit.graph, circuit.n_edges, draw, len(circuit.kept)) for draw in range(random)]
    settings = [Ablation(kind, positional, steps=steps, lr=lr) for kind in kinds]
    return Ablations(
        task=bench.data.splits.name,
        model=bench.subject.name,
        method=circuit.scores.method,
        found_with=bench.references.kind,
        n_pairs=len(rows),
        n_random=random,
        n_sentences=len(bench.data.test.collate(rows).group.unique()),
        kinds=[
            _under(bench, circuit, one, rows, seed, drawn, random_pairs)
            for one in told(settings, "ablations", len(settings))
        ],
    )


def _under(
    bench: Workbench,
    circuit: Circuit,
    ablation: Ablation,
    rows: list[int],
    seed: int,
    drawn: Sequence[Bool[Tensor, "copies edge"]],
    few: int,
) -> UnderAblation:
    if ablation.kind == "interchange" and not bench.data.test.collate(rows[:1]).has_corrupted:
        return UnderAblation(kind=ablation.kind, reason="not measured: the pairs have no corrupted prompts")
    if ablation.kind != bench.references.kind:
        bench = replace(bench, references=bench.ablated(ablation, seed))
    try:
        bed = TestBed.of(bench, bench.data.test, rows)
    except UserError as error:  # means by position, and longer prompts
        return UnderAblation(kind=ablation.kind, reason=f"not measured: {error}")
    found = bed.run(circuit.kept)
    others = torch.stack([bed.run(kept, few).kl for kept in drawn]) if drawn else None
    summary = summarise([found], bed.full, bed.corrupted)
    return UnderAblation(
        kind=ablation.kind,
        kl=summary.kl,
        empty_kl=summarise([bed.corrupted], bed.full, bed.corrupted).kl,
        share=ratio_estimate(found.kl, bed.corrupted.kl, found.group),
        faithfulness=summary.faithfulness,
        exact_match=summary.exact_match,
        random=None if others is None else ratio_estimate(others, bed.corrupted.kl[:few], found.group[:few]),
    )
