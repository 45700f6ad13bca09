"""What the literature measures greater-than, agreement and pronouns by: of the full model, of a circuit, of controls.

A task's `published` says which measures; `Pairs.panel` holds the pairs. Each measure is one number a pair, so intervals
go by sentences as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import kendalltau
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.evaluate.controls import random_circuit, shuffled_circuit
from circuitlit.evaluate.measure import masked_logits
from circuitlit.evaluate.statistics import Estimate, mean_estimate
from circuitlit.graph import Circuit
from circuitlit.masked import MaskedModel, Reference
from circuitlit.tasks.pair import Batch, Pair
from circuitlit.tasks.panel import Panel, encode_panel

LEAST_PAIRS, LEAST_SENTENCES = 50, 8  # below which nothing is to be concluded
PROMPTS = 56  # that all pairs take together, where nobody says how many these are
WITHIN = 10  # years on either side of the cut-off
Kept = Bool[Tensor, "copies edge"]
ByMeasure = dict[str, Float[Tensor, "pair"]]


class Weighed(NamedTuple):
    """Log-probabilities, in nats over the whole vocabulary, of a pair's right and wrong continuations."""

    right: Float[Tensor, "right"]
    wrong: Float[Tensor, "wrong"]

    @property
    def shares(self) -> Float[Tensor, "choice"]:
        """Probabilities of all continuations, wrong ones first, among themselves: years in rising order."""
        return torch.cat([self.wrong, self.right]).softmax(0)


def years(own: Weighed, full: Weighed) -> dict[str, float]:
    """Of the distribution over the years of the century, which sums to 1; a strictly later year is right.

    Source: Hanna et al. (arXiv 2305.00586) section 2, probability difference and cutoff sharpness p(y + 1) - p(y - 1);
    Edge Pruning (arXiv 2406.16778) section 4, the share within ten years of the cut-off, Kendall's tau and KL. There
    the start year is neither right nor wrong, here it is wrong, as in Hanna et al.
    """
    p, teacher, start = own.shares, full.shares, len(own.wrong)
    near = slice(max(0, start - WITHIN), start), slice(start, start + WITHIN)
    tau = 1.0 if own is full else float(kendalltau(p.numpy(), teacher.numpy())[0])  # type: ignore[arg-type]
    return {
        "prob_diff_years": float(p[start:].sum() - p[:start].sum()),
        "prob_diff_10": float(p[near[1]].sum() - p[near[0]].sum()),
        "sharpness": float(p[start] - p[start - 2]) if start > 1 else float("nan"),
        "kendall_tau": tau,
        "kl_years": float((teacher * (teacher.log() - p.log())).sum()),
        "mass": float(own.right.exp().sum() + own.wrong.exp().sum()),
    }


def forms(own: Weighed, full: Weighed) -> dict[str, float]:
    """Of verbs in both numbers: summed probabilities, and scores with verbs weighed alike, or as the model does.

    Source: Newman et al. 2021, "Refining targeted syntactic evaluation of language models", section 3.
    """
    right, wrong = own.right.exp(), own.wrong.exp()
    return {
        "prob_diff_forms": float(right.sum() - wrong.sum()),
        "equally_weighted": float((right > wrong).double().mean()),
        "model_weighted": float(right.sum() / (right.sum() + wrong.sum())),
    }


def two(own: Weighed, full: Weighed) -> dict[str, float]:
    """Of an answer and a wrong answer, such as two pronouns.

    Source: Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 small",
    logit difference; arXiv 2407.10827 has the same.
    """
    right, wrong = float(own.right[0]), float(own.wrong[0])
    return {
        "logit_diff_two": right - wrong,
        "prefers": float(right > wrong),
        "prob_diff_two": float(own.right[0].exp() - own.wrong[0].exp()),
    }


KINDS: dict[str, Callable[[Weighed, Weighed], dict[str, float]]] = {"years": years, "forms": forms, "two": two}


@dataclass(frozen=True)
class PublishedFigure:
    """One measure.

    Attributes:
        circuit, full, corrupted: of the circuit, the full model and the run without any edge.
        shuffled: of circuits in which every node has as many edges as in the circuit, another one for every batch.
        closer: how much nearer to the model, pair by pair, the circuit is than the shuffled ones: mean of
            |shuffled - full| - |circuit - full|; above 0 it is nearer.
        attribution: of the best attribution's circuit of equal size, where there is one.
    """

    circuit: Estimate
    full: Estimate
    corrupted: Estimate
    shuffled: Estimate
    closer: Estimate
    attribution: Estimate | None = None


@dataclass(frozen=True)
class Published:
    """A task's published measures.

    Attributes:
        kind: which ones, see `Pairs.published`.
        n_pairs, n_sentences: that they are measured on.
        figures: by their names, which `circuitlit.report.published.LABELS` explains.
        reason: why nothing should be concluded, or None.
    """

    kind: str
    n_pairs: int
    n_sentences: int
    figures: dict[str, PublishedFigure]
    reason: str | None = None


@dataclass(frozen=True)
class PanelBed:
    """A panel's pairs with all that circuits are measured against.

    Attributes:
        panel: the pairs.
        kind: of the measures.
        model: the masked forward.
        batches, references: of the pairs' rows, on the model's device.
        full, corrupted: log-probabilities of the continuations under the full model, and without any edge.
    """

    panel: Panel
    kind: str
    model: MaskedModel
    batches: list[Batch]
    references: list[Reference]
    full: Float[Tensor, "pair choice"]
    corrupted: Float[Tensor, "pair choice"]

    @classmethod
    @torch.no_grad()
    def build(cls, bench: Workbench, pairs: int | None) -> PanelBed | None:
        """The first pairs of a task's panel; None where it has no published measures, or for no pairs."""
        some, splits = _some(bench, pairs), bench.data.splits
        if not some:
            return None
        panel = _encoded(bench, some)
        known, batches, references = bench.fresh_references(), [], []
        full, corrupted = (torch.full(panel.signs.shape, torch.nan, dtype=torch.float64) for _ in range(2))
        nothing = torch.zeros(1, bench.model.graph.n_edges, dtype=torch.bool)
        shares = bench.subject.device.type == "cpu" and len(panel.rows) > len(some)  # a pair's rows begin alike
        for batch in panel.batches(1 if shares else bench.data.eval_batch_size):
            batch = batch.to(bench.subject.device)
            alike = batch.alike if shares else 0
            if known.kind == "interchange":
                reference, logits = known.with_corrupted(batch, alike)
            else:
                reference = replace(known.compute(batch), alike=alike)
                logits = masked_logits(bench.model, nothing, batch, reference)
            panel.log_probabilities(batch, reference.teacher, full)
            panel.log_probabilities(batch, logits, corrupted)
            batches.append(batch)
            references.append(reference)
        return cls(panel, splits.published, bench.model, batches, references, full, corrupted)

    @property
    def groups(self) -> Int[Tensor, "pair"]:
        """Which pairs share a sentence."""
        return self.panel.groups

    def run(self, kept: Callable[[int], Kept]) -> ByMeasure:
        """The measures of sets of edges, given by the number of the batch."""
        found = torch.full_like(self.full, torch.nan)
        for number, (batch, reference) in enumerate(zip(self.batches, self.references, strict=True)):
            self.panel.log_probabilities(batch, masked_logits(self.model, kept(number), batch, reference), found)
        return self.measured(found)

    def of(self, circuit: Circuit) -> ByMeasure:
        """The measures of a circuit."""
        return self.run(lambda _: circuit.kept)

    def shuffled(self, circuit: Circuit) -> ByMeasure:
        """Those of circuits in which every node has as many edges, another one for every batch."""
        return self.run(lambda seed: shuffled_circuit(circuit.graph, circuit.kept, seed))

    def random(self, count: int, copies: int = 1) -> ByMeasure:
        """Those of so many edges drawn uniformly, others for every batch."""
        return self.run(lambda seed: random_circuit(self.model.graph, count, seed, copies))

    def measured(self, own: Float[Tensor, "pair choice"]) -> ByMeasure:
        """The measures of log-probabilities."""
        rows = []
        for number, signs in enumerate(self.panel.signs):
            sides = [[values[number][signs == sign] for sign in (1, -1)] for values in (own, self.full)]
            ours, full = (Weighed(*both) for both in sides)
            rows.append(KINDS[self.kind](full if own is self.full else ours, full))
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def _encoded(bench: Workbench, pairs: Sequence[Pair]) -> Panel:
    tokenizer = bench.subject.tokenizer
    assert tokenizer is not None
    return encode_panel(pairs, tokenizer, bench.data.splits.role_names)


def _some(bench: Workbench, pairs: int | None) -> list[Pair]:
    """The first pairs of a task's panel; None takes those of so many prompts, at least one of every sentence."""
    splits = bench.data.splits
    every = (splits.panel or splits.test) if splits.published and bench.subject.tokenizer is not None else []
    if pairs is None and every:
        pairs = max(PROMPTS // len(_encoded(bench, every[:1]).rows), len({pair.unit for pair in every}))
    return every[:pairs]


def published_rows(bench: Workbench, pairs: int | None) -> int:
    """Rows that a circuit is run on for the published measures."""
    some = _some(bench, pairs)
    return len(some) * len(_encoded(bench, some[:1]).rows) if some else 0


def measure_published(
    bench: Workbench, circuit: Circuit, attribution: Circuit | None = None, pairs: int | None = None
) -> Published | None:
    """The published measures of a task for a circuit and all that it is compared with.

    Args:
        bench: subject, pairs and masked model.
        circuit: what is measured.
        attribution: a circuit to measure beside it.
        pairs: most of the panel's pairs; None takes 56, or fewer where each of them takes several prompts, but one of
            every sentence.

    Returns:
        None where the task has none, or for no pairs.
    """
    bed = PanelBed.build(bench, pairs)
    if bed is None:
        return None
    full, none = bed.measured(bed.full), bed.measured(bed.corrupted)
    found, shuffled = bed.of(circuit), bed.shuffled(circuit)
    theirs = None if attribution is None else bed.of(attribution)

    def mean(values: Float[Tensor, "pair"]) -> Estimate:
        return mean_estimate(values, bed.groups)

    figures = {
        name: PublishedFigure(
            mean(found[name]),
            mean(full[name]),
            mean(none[name]),
            mean(shuffled[name]),
            mean((shuffled[name] - full[name]).abs() - (found[name] - full[name]).abs()),
            None if theirs is None else mean(theirs[name]),
        )
        for name in found
    }
    count, sentences = len(bed.groups), len(bed.groups.unique())
    enough = f"{LEAST_PAIRS} of {LEAST_SENTENCES} (evaluate.published_pairs={LEAST_PAIRS})"
    few = f"{count} pairs of {sentences} sentences are too few to judge by; take {enough}"
    reason = None if count >= LEAST_PAIRS and sentences >= LEAST_SENTENCES else few
    return Published(bed.kind, count, sentences, figures, reason)
