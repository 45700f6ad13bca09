"""`Explanation`: what a circuit does, as a reader sees it; of plain types, so that pages need no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from circuitlit.evaluate.statistics import Estimate
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


@dataclass(frozen=True, kw_only=True)
class NodeEffect:
    """What ablating one node does to the task's metric, in its unit; positive where the node helps.

    Attributes:
        name: `a3.h1` or `m3`.
        in_circuit: the circuit's metric minus that of the circuit without the node.
        in_model: the full model's metric minus that of the model without the node.
    """

    name: str
    in_circuit: Estimate
    in_model: Estimate


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where a node attends, on clean prompts, and what it writes; an MLP attends nowhere.

    Attributes:
        places: on each example, the last token at which the node's main role is.
        attends: mean attention from there, by what the keys are: token roles, "itself", "first token", "token before"
            or "other"; from 0 to 1, largest first.
        uniform: the same of attention that does not choose.
        patterns: of each example, attention from every token to itself and those before.
        writes, lowers: on each example, the tokens that its output at that place, alone, makes likeliest and least
            likely.
    """

    places: list[int]
    attends: dict[str, float]
    uniform: dict[str, float]
    patterns: list[list[list[float]]]
    writes: list[list[str]]
    lowers: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class LeadingNode(NodeEffect):
    """One of the nodes with the largest estimated effects.

    Attributes:
        estimate: the effect in the circuit to first order, on other pairs, by which it became a candidate.
        beyond: the interval of `in_circuit` lies beyond the effects of all random nodes of its kind, on either side.
        acts_at: shares of the estimate by token role, largest first.
        roles: by the scores of `score_heads`.
        scores: those scores.
        look: None where heads cannot be taken apart.
    """

    estimate: float
    beyond: bool
    acts_at: dict[str, float]
    roles: list[str]
    scores: dict[str, float]
    look: Look | None


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes that matter, beside random ones.

    Attributes:
        metric: what effects are of: "logit difference", "probability difference" or "log-probability".
        circuit, full: that metric of the circuit and of the full model.
        n_pairs, n_sentences: test pairs that effects are measured on.
        leading: largest effect in the circuit first.
        random: other nodes of the circuit, of the same kinds and near the same layers.
        random_in_circuit, random_in_model: mean size of their effects.
        reason: why there are no patterns and no roles; empty where there are.
    """

    metric: str
    circuit: Estimate
    full: Estimate
    n_pairs: int
    n_sentences: int
    leading: list[LeadingNode]
    random: list[NodeEffect]
    random_in_circuit: Estimate
    random_in_model: Estimate
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class EdgeEffects:
    """By how much edges raise the task's metric in the circuit, in its unit.

    Attributes:
        estimate: by name to first order, on validation pairs; the largest ones, first.
        measured: of the first ones and of as many random ones, the loss when the edge alone is cut, on the same pairs.
        correlation: Spearman's of the two; None with fewer than three edges.
        p: of no correlation, two-sided.
    """

    estimate: dict[str, float]
    measured: dict[str, Estimate]
    correlation: float | None
    p: float | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation(Result):
    """What `explain_circuit` found.

    Attributes:
        task, model, method, ablation, seed: the circuit, and what stands in for cut edges.
        n_edges: the circuit's.
        examples: test pairs of different sentences, as far as there are any.
        nodes: the heads and MLPs that matter; None where nobody looked.
        edges: effects of edges; None where nobody looked.
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
    nodes: Nodes | None = None
    edges: EdgeEffects | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a node: its effects, roles and where it attends."""
        for node in self.nodes.leading if self.nodes else ():
            looks = node.look.attends if node.look else {}
            ends = {"low": node.in_circuit.low_sentences, "high": node.in_circuit.high_sentences}
            yield {
                "node": node.name,
                "in_circuit": node.in_circuit.value,
                **ends,
                "in_model": node.in_model.value,
                "beyond_random": node.beyond,
                "roles": " ".join(node.roles),
                "acts_at": next(iter(node.acts_at), ""),
                "attends_to": next(iter(looks), ""),
            }
