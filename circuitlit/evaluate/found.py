"""The result of a search: the circuit and everything that it is compared with, on held-out pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.evaluate.agreement import Agreement, Agreements
from circuitlit.evaluate.published import Published, PublishedFigure
from circuitlit.evaluate.statistics import Estimate
from circuitlit.evaluate.trust.row import TrustRow
from circuitlit.objective import Objective
from circuitlit.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

    from circuitlit.evaluate.live import Live

OK, FAILED, UNMEASURABLE, SMOKE = "OK", "FAILED", "NOT MEASURABLE", "SMOKE TEST"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model or circuit on some pairs; None where a figure does not exist. `Summary` says what the metrics are.

    Attributes:
        n_edges, n_edges_reachable: its edges.
        label: what it is of, for attributions.
        n_circuits: random circuits that the means run over.
        n_pairs: pairs, where they are not all.
        n_alike: random circuits that are the circuit itself; None where none is.
        p, p_holm: share of random circuits with a KL at most the circuit's, itself counted; corrected for both. None
            where too few of them are another circuit.
        agreement: with what the model says, apart where the model is right and where it is wrong.
    """

    kl: Estimate | None = None
    faithfulness: Estimate | None = None
    faithfulness_raw: Estimate | None = None
    accuracy: Estimate | None = None
    exact_match: Estimate | None = None
    logit_diff: Estimate | None = None
    prob_diff: Estimate | None = None
    log_prob: Estimate | None = None
    per_pair: dict[str, Estimate] | None = None
    n_edges: int | None = None
    n_edges_reachable: int | None = None
    label: str | None = None
    n_circuits: int | None = None
    n_alike: int | None = None
    n_pairs: int | None = None
    p: float | None = None
    p_holm: float | None = None
    agreement: Agreements | None = None


def _plain(value: Any) -> Any:
    """Plain types; of measured circuits without the fields that do not exist."""
    if isinstance(value, Measured | Agreements | Agreement | TrustRow | Published | PublishedFigure):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        return {key: _plain(part) for key, part in own.items() if part is not None}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.to_dict() if isinstance(value, Estimate) else value


@dataclass(frozen=True, kw_only=True)
class Subset(Measured):
    """The circuit on the pairs that controls run on, with full model and corrupted run on the same."""

    full: Measured | None = None
    corrupted: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Compared(Subset):
    """A circuit on some held-out pairs, beside full model, corrupted run and the attribution's circuit of its size.

    Attributes:
        sentences: how many sentences the pairs are of, and why nothing can be said of others where it is one.
        reason: why there is nothing.
        attribution: the best attribution's circuit of equal size.
        attribution_minus_circuit_kl: paired difference of the two KLs, nats.
    """

    sentences: dict[str, Any] | None = None
    reason: str | None = None
    attribution: Measured | None = None
    attribution_minus_circuit_kl: Estimate | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class FoundCircuit(Compared, Result):
    """What `find_circuit`, `attribute_circuit` and `evaluate_circuit` give.

    Attributes:
        status: "OK", "FAILED", "NOT MEASURABLE" or "SMOKE TEST"; `reason` says why it is not OK.
        task, model, method, ablation, seed: what was searched, and how.
        n_edges_total: edges of the graph, an edge counted once a token role.
        sparsity: share of them that the circuit lacks.
        attribution_reachable: the attribution's circuit with as many reachable edges.
        random, shuffled: circuits of equal size that know nothing.
        subset: the circuit on their pairs.
        attributions_tried: rankings, best on validation pairs first, with their cost.
        new_words: the same comparison on sentences whose words, too, occur nowhere in training.
        gates: what was trained beside what was cut from it.
        steps: of training; 0 without.
        stages: of training.
        behaviour: of the full model, ahead of the search.
        edge_roc_auc, true_edges, true_edges_found, false_edges_found: where the model's own edges are known.
        circuit: file and provenance of a circuit that was evaluated.
        ground_truth: against a published circuit.
        completeness, minimality, curve, smallest: of `evaluate_circuit`.
        trust: rows of the trust card that cost little, by their names.
        published: the task's published measures.
        experts: of a mixture of experts, what each expert has in the kept edges; see `ExpertShares`.
    """

    schema: ClassVar[str] = "circuit"
    version: ClassVar[int] = 3
    file: ClassVar[str] = "result.json"

    status: str
    task: str
    model: str
    method: str | None
    ablation: str
    seed: int
    n_edges_total: int
    sparsity: float | None = None
    attribution_reachable: Measured | None = None
    random: Measured | None = None
    shuffled: Measured | None = None
    subset: Subset | None = None
    attributions_tried: list[dict[str, Any]] = field(default_factory=list)
    new_words: Compared | None = None
    gates: dict[str, Any] | None = None
    steps: int = 0
    stages: dict[str, Any] | None = None
    behaviour: dict[str, Any] | None = None
    edge_roc_auc: float | None = None
    true_edges: int | None = None
    true_edges_found: int | None = None
    false_edges_found: int | None = None
    circuit: dict[str, Any] | None = None
    ground_truth: dict[str, Any] | None = None
    completeness: dict[str, Any] | None = None
    minimality: dict[str, Any] | None = None
    curve: dict[str, Any] | None = None
    smallest: dict[str, Any] | None = None
    trust: dict[str, TrustRow] | None = None
    experts: list[dict[str, Any]] | None = None
    published: Published | None = None

    __repr__ = Result.__repr__

    @classmethod
    def from_dict(cls, content: dict[str, Any], source: str = "this") -> Self:
        """As `Result.from_dict`; files of schema 2, which have the same keys, are read, too."""
        if content.get("schema") == 2:
            content = content | {"schema": {"name": cls.schema, "version": cls.version}}
        return super().from_dict(content, source)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in the file; what does not exist is left out, unless it says that there is no circuit."""
        said = {key: getattr(self, key) for key in ("reason", "method", "n_edges", "n_edges_reachable", "sparsity")}
        return {"schema": {"name": self.schema, "version": self.version}, **said, **_plain(self)}

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for the circuit and each that it is compared with."""
        names = ("full", "attribution", "corrupted", "shuffled", "random", "new_words")
        for name, one in (("circuit", self), *((name, getattr(self, name)) for name in names)):
            if one is not None and one.kl is not None:
                metrics = {key: getattr(one, key) for key in ("kl", "faithfulness", "accuracy", "exact_match")}
                ends = {"kl_low": one.kl.low, "kl_high": one.kl.high}
                values = {key: estimate and estimate.value for key, estimate in metrics.items()}
                yield {"circuit": name, "n_edges": one.n_edges, **values, **ends}

    @property
    def live(self) -> Live:
        """The circuit bound to its model: `live.circuit` has the edges.

        Raises:
            UserError: this result was loaded from a file, and knows no model.
        """
        live = getattr(self, "_live", None)
        if live is None:
            raise UserError("this result is not bound to a model; its edges are read by Circuit.load(folder)")
        return live

    def plot(self, drawn: int = 100) -> Figure:
        """The circuit as a graph, as `plot_circuit` draws it."""
        import circuitlit  # drawing comes after this part, and is asked for by its public name

        return circuitlit.plot_circuit(self.live.circuit, drawn)

    def logits(
        self, clean: str | Sequence[str], corrupted: str | Sequence[str] | None = None
    ) -> Float[Tensor, "prompt vocab"]:
        """Logits of the next token under the circuit; see `Live.logits`."""
        return self.live.logits(clean, corrupted)

    def generate(self, prompt: str, corrupted: str | None = None, max_new_tokens: int = 8) -> str:
        """What the circuit goes on with, the likeliest token each time; see `Live.generate`."""
        return self.live.generate(prompt, corrupted, max_new_tokens)

    def measure(self, metric: Objective, split: str = "test") -> pd.DataFrame:
        """A metric of your own on held-out pairs, of circuit, full model and no edge; see `Live.measure`."""
        return self.live.measure(metric, split)

    def bind(self, live: Live) -> Self:
        """The same result, bound to a circuit and its model."""
        object.__setattr__(self, "_live", live)
        return self
