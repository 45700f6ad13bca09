"""`EdgeScores`: what every discovery method returns and everything after it consumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.graph.topology import Graph

Kind = Literal["effect", "gate", "share"]
KINDS = get_args(Kind)
OPEN_PROBABILITY = "open probability"


@dataclass(frozen=True)
class EdgeScores:
    """One number per edge, and what kind of number it is.

    The kinds, and what `weight` means for each:

    - "effect": an estimate of how much keeping the edge, rather than ablating it, improves the objective, so that its
      sign is opposite to EAP's `metric(corrupted) - metric(clean)` convention. It weighs as much as it is large; where
      edges are ranked by the signed effect, one that makes things worse weighs nothing.
    - "gate": the log-alpha of a learned gate. It weighs the probability that the gate is open under its full noise,
      `sigmoid((log-alpha - threshold) / softness)`, between 0 and 1. A log-alpha is no quantity: it cannot be added up.
    - "share": a number of at least 0 that is its own weight, such as the share of circuits that keep the edge.

    Selection sorts by `order`, and nothing else does. All sums, shares and overlaps are of `weight`, in which an edge
    that ranks higher never has less. What compares circuits takes `Circuit.weight`, which is 0 outside of the circuit.
    The raw `values` are for the methods that make them and for files.

    Attributes:
        graph: the edges' order.
        values: scores, one row per token role or a single row.
        method: name of the method that made them.
        roles: names of the rows; empty for a single row that holds for all positions.
        ranks_by_magnitude: of effects alone: True where selection goes by absolute value, for an edge that, if kept,
            makes things worse is part of the mechanism too (negative heads).
        details: settings and figures of the method, plain types only.
        kind: one of `KINDS`.
        unit: of an effect, such as "nats" or "logits"; what a share is a share of; empty where it is not known.
        threshold: of gates alone, the log-alpha at which one is open with probability one half.
        softness: of gates alone, the width of the sigmoid from log-alpha to open probability; above 0.
    """

    graph: Graph
    values: Float[Tensor, "copies edge"] = field(repr=False)
    method: str
    roles: tuple[str, ...] = ()
    ranks_by_magnitude: bool = False
    details: dict[str, object] = field(default_factory=dict)
    kind: Kind = field(default="effect", kw_only=True)
    unit: str = field(default="", kw_only=True)
    threshold: float = field(default=0.0, kw_only=True)
    softness: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        expected = (max(1, len(self.roles)), self.graph.n_edges)
        if tuple(self.values.shape) != expected:
            raise ValueError(f"scores of shape {tuple(self.values.shape)}, the graph wants {expected}")
        if not bool(self.values.isfinite().all()):
            raise UserError(
                f"{self.method} gave scores that are not finite; load the model in float32 (model.dtype=float32), or "
                "in float64 where it is that already; a metric needs a wrong answer or choices in each pair"
            )
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind} is none of {', '.join(KINDS)}")
        if self.kind == "share" and bool((self.values < 0).any()):
            raise ValueError(f"{self.method}: scores of the kind share cannot be negative")

    @property
    def size(self) -> int:
        """Number of scores: edges, counted once a role."""
        return self.values.numel()

    @property
    def limit(self) -> int | None:
        """Edges that the method itself kept; of those that it rejected it says no order. None where all are ranked."""
        kept = self.details.get("kept")
        return kept if isinstance(kept, int) else None

    @property
    def ranking(self) -> Literal["absolute", "signed"]:
        """How selection ranks: by the size of the effects, or by the scores as they are."""
        return "absolute" if self.kind == "effect" and self.ranks_by_magnitude else "signed"

    @property
    def order(self) -> Float[Tensor, "copies edge"]:
        """The numbers that selection sorts by, largest first; good for nothing else, for they may be log-alphas."""
        return self.values.abs() if self.ranking == "absolute" else self.values

    @property
    def weight(self) -> Float[Tensor, "copies edge"]:
        """How much each edge counts, float64, never negative; its meaning depends on the kind."""
        if self.kind == "gate":
            return torch.sigmoid((self.values.double() - self.threshold) / self.softness)
        return self.order.double().clamp(min=0)

    @property
    def signed(self) -> Float[Tensor, "copies edge"]:
        """Effects with their signs, float64; gates and shares, which have none, as their weights."""
        return self.values.double() if self.kind == "effect" else self.weight

    @property
    def meaning(self) -> str:
        """What `weight` and `signed` are, in a few words: a column's heading."""
        if self.kind == "gate":
            return OPEN_PROBABILITY
        return self.unit or "share" if self.kind == "share" else f"effect ({self.unit})" if self.unit else "effect"


def normalised(weight: Float[Tensor, "copies edge"]) -> Float[Tensor, "edge"]:
    """Each edge's share of the whole weight, float64; token roles are added up. All 0 where nothing weighs anything."""
    size = weight.double().sum(0)
    return size / size.sum().clamp(min=torch.finfo(torch.float64).tiny)
