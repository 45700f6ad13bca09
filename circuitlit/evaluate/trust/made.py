"""A circuit that was found anew, as plain types."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuitlit.graph import Circuit


@dataclass(frozen=True, kw_only=True)
class Made:
    """A circuit that was found anew.

    Attributes:
        edges: numbers of its edges, counted over all token roles.
        order: what they are ranked by, the more the better.
        kl: KL(model || it) on each test pair, nats; empty where it was not run.
    """

    edges: list[int]
    order: list[float]
    kl: list[float]

    @classmethod
    def of(cls, circuit: Circuit, kl: Float[Tensor, "pair"] | None = None) -> Made:
        """Of a circuit and its KLs."""
        kept = circuit.kept.flatten()
        order = circuit.scores.order.flatten()[kept].tolist()
        return cls(edges=kept.nonzero()[:, 0].tolist(), order=order, kl=[] if kl is None else kl.tolist())
