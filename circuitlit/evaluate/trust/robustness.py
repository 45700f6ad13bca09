"""What perturbing a share of the training pairs does to the circuit that is found from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from circuitlit.evaluate.statistics import Estimate
from circuitlit.result import Result


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """Circuits from pairs of which a share is perturbed, one of each random half of the training sentences.

    Intervals of J* are for new training sentences, those of KLs for new test sentences. KLs are of the first draws
    alone where a method scores pair by pair.

    Attributes:
        kind: how pairs are perturbed: "noise", "mixed" or "swapped", as `perturb` has it.
        share: of the pairs; 1 perturbs all.
        pairs: perturbed pairs of each circuit, mean.
        reason: why there is nothing.
        alike: J* with the circuit of the same pairs unperturbed: 0 chance, 1 the same circuit.
        beyond_degrees: the same corrected for circuits in which every node has as many edges: what is left is not due
            to the same nodes being in both.
        replaced: J* with the circuit in which as many pairs are replaced by unperturbed ones of other sentences.
        minus_replaced: `alike` minus that, half by half; 0 says that a perturbed pair changes the circuit no more than
            any other pair would.
        kl: KL(model || circuit) on unperturbed test pairs, nats.
        kl_minus_replaced: how far it is above that of the circuit with replaced pairs.
        each: `alike` of each half, for comparing models: the same seed and pairs give the same halves.
    """

    kind: str
    share: float
    pairs: float = 0.0
    reason: str | None = None
    alike: Estimate | None = None
    beyond_degrees: Estimate | None = None
    replaced: Estimate | None = None
    minus_replaced: Estimate | None = None
    kl: Estimate | None = None
    kl_minus_replaced: Estimate | None = None
    each: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, repr=False)
class Robustness(Result):
    """What `measure_robustness` found.

    Attributes:
        task, model, ablation: what was asked.
        method: how the given circuit was found, by its file.
        procedure: how circuits were found anew.
        n_edges, n_edges_total: of every circuit and of the graph, an edge counted once a token role.
        n_sentences: of the training pairs, which are halved; pairs where each stands alone.
        n_halves: that circuits are found from.
        n_pairs: test pairs of the KLs.
        perturbed: by kind and share, all pairs last.
    """

    schema: ClassVar[str] = "robustness"
    file: ClassVar[str] = "robustness.json"

    task: str
    model: str
    ablation: str
    method: str
    procedure: str
    n_edges: int
    n_edges_total: int
    n_sentences: int
    n_halves: int
    n_pairs: int
    perturbed: list[Perturbed]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a kind and share."""
        for one in self.perturbed:
            values = {name: value.value for name, value in vars(one).items() if isinstance(value, Estimate)}
            yield {"kind": one.kind, "share": one.share, "pairs": one.pairs, **values, "reason": one.reason}
