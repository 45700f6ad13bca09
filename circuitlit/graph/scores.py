"""`EdgeScores`: what every discovery method returns and everything after it consumes."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.graph.topology import Graph


@dataclass(frozen=True)
class EdgeScores:
    """One number per edge: the higher, the more the edge is worth keeping.

    For attributions the number estimates how much keeping the edge, rather than ablating it, improves the objective
    (nats for KL, logits for a logit difference), so its sign is opposite to EAP's `metric(corrupted) - metric(clean)`
    convention. For mask learners it is the log-alpha of the gate.

    Attributes:
        graph: the edges' order.
        values: scores, one row per token role or a single row.
        method: name of the method that made them.
        roles: names of the rows; empty for a single row that holds for all positions.
        ranks_by_magnitude: True where selection goes by absolute value: an edge that, if kept, makes things worse is
            part of the mechanism too (negative heads). False for gates.
        details: settings and figures of the method, plain types only.
    """

    graph: Graph
    values: Float[Tensor, "copies edge"]
    method: str
    roles: tuple[str, ...] = ()
    ranks_by_magnitude: bool = False
    details: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (max(1, len(self.roles)), self.graph.n_edges)
        if tuple(self.values.shape) != expected:
            raise ValueError(f"scores of shape {tuple(self.values.shape)}, the graph wants {expected}")
        if not bool(self.values.isfinite().all()):
            raise UserError(
                f"{self.method} gave scores that are not finite; load the model in float32: model.dtype=float32"
            )

    def importance(self) -> Float[Tensor, "copies edge"]:
        """The numbers that selection sorts by, largest first."""
        return self.values.abs() if self.ranks_by_magnitude else self.values
