"""An attribution method with its settings, and what each method declares of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from circuitlit.errors import UserError
from circuitlit.graph import EdgeScores
from circuitlit.objective import Objective, kl_divergence

Score = Callable[..., EdgeScores]  # of a MaskedLoss, References and batches
Function = TypeVar("Function", bound=Callable[..., EdgeScores])


@dataclass(frozen=True)
class Traits:
    """What others have to know of a method.

    Attributes:
        mean_of_pairs: its scores are a mean over pairs, so that several processes can share the pairs out.
        gives_pairs: it takes `each`, which is given every pair's own scores.
        numbers_batches: it takes `numbers`, each batch's place among all.
        gives_batches: it takes `each_batch`, which is given every batch's own scores.
        gathers: it reads weights only through the masked model, so that they may be sharded.
        own_size: it keeps a number of edges of its own.
    """

    mean_of_pairs: bool = False
    gives_pairs: bool = False
    gives_batches: bool = False
    numbers_batches: bool = False
    gathers: bool = False
    own_size: bool = False


def declares(traits: Traits) -> Callable[[Function], Function]:
    """Put a method's traits on its function."""

    def put(function: Function) -> Function:
        function.traits = traits  # type: ignore[attr-defined]
        return function

    return put


@dataclass(frozen=True)
class Method:
    """How all edges are scored.

    Attributes:
        name: of the method.
        score: the function that scores, its settings bound by `functools.partial`.
        objective: what effects are effects on.
        max_batches: of training pairs, from as many sentences as possible; None takes all pairs.
    """

    name: str
    score: Score
    objective: Objective = kl_divergence
    max_batches: int | None = None

    def __post_init__(self) -> None:
        """Refuse to score on nothing.

        Raises:
            UserError: fewer than one batch.
        """
        if self.max_batches is not None and self.max_batches < 1:
            raise UserError(f"method {self.name}: max_batches={self.max_batches} is not at least 1; None takes all")

    @classmethod
    def of(cls, score: Score, objective: Objective = kl_divergence, **settings: Any) -> Method:
        """A method from its function: `Method.of(eap_ig, steps=10)`."""
        return cls(score.__name__, partial(score, **settings), objective)

    @property
    def traits(self) -> Traits:
        """What the function declares; a function of one's own may declare nothing."""
        function = self.score
        while isinstance(function, partial):
            function = function.func
        return getattr(function, "traits", Traits())
