"""`Explanation`: what a circuit does, as a reader sees it; of plain types, so that pages need no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from circuitlit.result import Result


@dataclass(frozen=True, kw_only=True)
class Likely:
    """A token that may come next, and its probability from 0 to 1."""

    token: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Example:
    """One test pair.

    Attributes:
        pair: its number among the test pairs.
        clean, corrupted: texts of the prompts' tokens up to the one that predicts; equally many.
        roles: token role of each.
        answer, wrong: the best right and wrong candidate of the full model; empty where a pair has none.
        full, circuit, ablated: likeliest next tokens of the full model, of the circuit, and with every edge cut.
    """

    pair: int
    clean: list[str]
    corrupted: list[str]
    roles: list[str]
    answer: str
    wrong: str
    full: list[Likely]
    circuit: list[Likely]
    ablated: list[Likely]

    @property
    def changed(self) -> list[bool]:
        """True for the tokens in which the corrupted prompt differs."""
        return [a != b for a, b in zip(self.clean, self.corrupted, strict=True)]


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation(Result):
    """What `explain_circuit` found.

    Attributes:
        task, model, method, ablation, seed: the circuit, and what stands in for cut edges.
        n_edges: the circuit's.
        examples: test pairs of different sentences, as far as there are any.
    """

    schema: ClassVar[str] = "explanation"
    file: ClassVar[str] = "explanation.json"
    indent: ClassVar[int | None] = None

    task: str
    model: str
    method: str
    ablation: str
    seed: int
    n_edges: int
    examples: list[Example]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row an example: what is likeliest."""
        for one in self.examples:
            said = {name: getattr(one, name)[0].token for name in ("full", "circuit", "ablated")}
            yield {"pair": one.pair, "clean": "".join(one.clean), "answer": one.answer, **said}
