"""A circuit on the model's own errors: are they the circuit's, too, and is that more than cheap explanations give?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.agreement import LEAST_ERRORS, Agreement, Agreements
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, mean_estimate, paired_difference
from circuitlit.graph import Circuit
from circuitlit.objective import Outcome
from circuitlit.progress import told
from circuitlit.result import Result
from circuitlit.tasks import EncodedPairs, Pair

WORDS = 10  # slot values that are listed


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Right answers beside errors that are as close: each error with a right answer of nearly its margin.

    Attributes:
        n: such twos.
        within: most that the two margins differ by, logits.
        gap: agreement on these right answers less that on these errors; near 0 where errors are lost only for being
            close. Its interval for new sentences goes by the errors' sentences.
        reason: why there is none.
    """

    n: int
    within: float
    gap: Estimate | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Biased:
    """A baseline circuit with a constant added to every wrong answer's logit, so that it errs more often.

    Attributes:
        label: the baseline.
        bias: that constant, logits: the largest that leaves the baseline the circuit's agreement with right answers.
        n_val: validation pairs that it was fitted on.
        agreement: of the biased baseline.
        beaten_by: the circuit's agreement with errors less the biased baseline's; above 0, more than a bias explains.
    """

    label: str
    bias: float
    n_val: int
    agreement: Agreement
    beaten_by: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of the prompts, and how often the model errs with it."""

    role: str
    word: str
    pairs: int
    errors: int


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelErrors(Result):
    """What `measure_errors` found.

    Attributes:
        task, model, method, ablation: what was asked.
        n_pairs: pairs that the full model ran on.
        n_run: those of them that circuits ran on; the rest is stood for by weights.
        n_sentences: that these are of; None in older files, like `least`.
        least: right answers, and errors, that are needed to hold their figures against a bar.
        candidates, vocabulary: the circuit's agreement, as in `Agreements`.
        matched: the margin-matched control; None without candidates.
        biased: the control by a biased baseline; None without a baseline or errors.
        no_bias: why there is none.
        words: slot values with the most errors.
    """

    schema: ClassVar[str] = "errors"
    file: ClassVar[str] = "errors.json"

    task: str
    model: str
    method: str
    ablation: str
    n_pairs: int
    n_run: int
    n_sentences: int | None = None
    least: int | None = None
    vocabulary: Agreement
    candidates: Agreement | None = None
    matched: Matched | None = None
    biased: Biased | None = None
    no_bias: str | None = None
    words: list[Word] = field(default_factory=list)

    @property
    def main(self) -> tuple[str, Agreement]:
        """Agreement between candidates, or, where that is measurable and the first is not, over the vocabulary."""
        if self.candidates is None or (self.candidates.reason and not self.vocabulary.reason):
            return "all tokens", self.vocabulary
        return "candidates", self.candidates

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a way to say something."""
        biased, names = self.biased and self.biased.agreement, ("right", "wrong", "gap", "wrong_too", "kappa")
        for name, one in (("candidates", self.candidates), ("vocabulary", self.vocabulary), ("biased", biased)):
            if one is not None:
                figures = {key: getattr(one, key) for key in (*names, "kl_right", "kl_wrong")}
                values = {key: estimate and estimate.value for key, estimate in figures.items()}
                yield {"said": name, "n_right": one.n_right, "n_wrong": one.n_wrong, **values, "reason": one.reason}


@checks_arguments
def measure_errors(
    bench: Workbench,
    circuit: Circuit,
    *,
    split: str = "test",
    most: int = 150,
    least: int = LEAST_ERRORS,
    within: float = 0.1,
    baseline: Circuit | None = None,
    seed: int = 0,
) -> ModelErrors:
    """Agreement of a circuit with the model's right and wrong answers, and two controls.

    The full model runs on all pairs of a split, circuits on its errors and as many of its right answers.

    Args:
        bench: subject, pairs and masked model; many pairs, so that there are errors.
        circuit: its edges.
        split: whose pairs.
        most: pairs that circuits run on, of each kind: right or wrong among candidates, and among all tokens.
        least: errors below which nothing is said of them; the trust card wants as many right answers, too.
        within: logits by which matched margins may differ.
        baseline: an earlier circuit of the same model (one that was not trained for errors, say) for the control by a
            bias; None leaves that out.
        seed: of the draw of pairs.

    Raises:
        UserError: no such split, no pairs in it, or `most` is below `least`.

    Source: arXiv 2609.35686, agreement apart and the bias control; the match by margin is ours.
    """
    if most < least:
        raise UserError(f"most={most} pairs of a kind are run, and least={least} errors are needed; give most={least}")
    pairs, texts = _pairs_of(bench, split)
    census = full_outcome(bench, pairs)
    kind = 2 * (census.margin <= 0).long() + (census.accuracy == 0).long()
    rows, weights = _drawn(kind, most, seed)
    bed = TestBed.of(bench, pairs, rows)
    found = bed.run(circuit.kept)
    said = Agreements.of(bed.full, found, weights, least)
    assert said.vocabulary is not None
    matched = biased = None
    if said.candidates is not None:
        matched = _matched(bed.full, found, within, least)
        if baseline is not None and said.candidates.wrong is not None and len(bench.data.val):
            biased = _biased(bench, bed, found, circuit, baseline, weights, least)
    return ModelErrors(
        task=bench.data.splits.name,
        model=bench.subject.name,
        method=circuit.scores.method,
        ablation=bench.references.kind,
        n_pairs=len(pairs),
        n_run=len(rows),
        n_sentences=len(bed.full.group.unique()),
        least=least,
        candidates=said.candidates,
        vocabulary=said.vocabulary,
        matched=matched,
        biased=biased,
        no_bias=None if biased else _no_bias(bench, said.candidates, baseline),
        words=_words(texts, (census.margin <= 0) if said.candidates else census.accuracy == 0),
    )


def _pairs_of(bench: Workbench, split: str) -> tuple[EncodedPairs, Sequence[Pair]]:
    pairs = getattr(bench.data, split, None)
    if not isinstance(pairs, EncodedPairs) or not len(pairs):
        raise UserError(f"task {bench.data.splits.name} has no pairs in a split {split}; take another one")
    return pairs, getattr(bench.data.splits, split)


@torch.no_grad()
def full_outcome(bench: Workbench, pairs: EncodedPairs) -> Outcome:
    """The full model alone on some pairs, in their order."""
    order, size, parts = pairs.by_length(), bench.data.eval_batch_size, []
    for batch in told(pairs.batches(size, order=order), "batches", -(-len(pairs) // size)):
        placed = batch.to(bench.subject.device)
        logits = bench.subject.logits(placed.clean, placed.positions)
        parts.append(Outcome.of(logits, logits.float().log_softmax(-1), placed))
    return Outcome.join(parts).rows(torch.tensor(order).argsort())


def _drawn(kind: Int[Tensor, "pair"], most: int, seed: int) -> tuple[list[int], Float[Tensor, "row"]]:
    """At most so many pairs of each kind, in their order, and how many pairs each one stands for."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(len(kind))
    for one in kind.unique():
        own = (kind == one).nonzero()[:, 0]
        taken = own[torch.randperm(len(own), generator=generator)[:most]]
        weights[taken] = len(own) / len(taken)
    rows = weights.nonzero()[:, 0]
    return rows.tolist(), weights[rows]


def _matched(full: Outcome, circuit: Outcome, within: float, least: int) -> Matched:
    """As many errors as can each have a right answer of nearly the same margin, the nearest such twos."""
    right, wrong = (full.margin > 0).nonzero()[:, 0], (full.margin <= 0).nonzero()[:, 0]
    apart = (full.margin[right][:, None] - full.margin[wrong].abs()).abs().double()
    far = apart > within
    one, two = linear_sum_assignment(torch.where(far, 1e6, apart).numpy())
    one, two = torch.from_numpy(one), torch.from_numpy(two)
    near = ~far[one, two]
    one, two = right[one[near]], wrong[two[near]]
    if len(one) < least:
        reason = f"{len(one)} errors have a right answer within {within:g} logits of their margin, {least} are needed"
        return Matched(n=len(one), within=within, reason=reason)
    same = (full.said == circuit.said).double()
    return Matched(n=len(one), within=within, gap=mean_estimate(same[one] - same[two], full.group[two]))


def _biased(
    bench: Workbench,
    bed: TestBed,
    found: Outcome,
    circuit: Circuit,
    baseline: Circuit,
    weights: Float[Tensor, "pair"],
    least: int,
) -> Biased:
    """The bias is fitted on validation pairs, and the biased baseline measured on the pairs of `bed`."""
    val = TestBed.of(bench, bench.data.val)
    bias = fit_bias(val.full, val.run(circuit.kept), val.run(baseline.kept))
    theirs = bed.run(baseline.kept)
    theirs = replace(theirs, margin=theirs.margin - bias)
    agreement = Agreements.of(bed.full, theirs, weights, least).candidates
    assert agreement is not None
    wrong = bed.full.margin <= 0
    ours, others = ((bed.full.said == one.said)[wrong].double() for one in (found, theirs))
    return Biased(
        label=baseline.scores.method,
        bias=bias,
        n_val=len(val.full.kl),
        agreement=agreement,
        beaten_by=paired_difference(ours, others, found.group[wrong]),
    )


def _no_bias(bench: Workbench, candidates: Agreement | None, baseline: Circuit | None) -> str:
    """Why there is no biased baseline."""
    if candidates is None:
        return "pairs have no wrong answer"
    if candidates.wrong is None and candidates.reason:
        return candidates.reason
    if baseline is None:
        return "no earlier circuit to add a bias to; name one: baseline, the setting trust.errors.baseline=RUN"
    return f"task {bench.data.splits.name} has no validation pairs to fit a bias on"


def fit_bias(full: Outcome, circuit: Outcome, baseline: Outcome) -> float:
    """Logits to add to a baseline's wrong answers: the most that leaves it the circuit's agreement with right answers.

    A baseline that agrees less than the circuit gets a negative one.
    """
    right = full.margin > 0
    wanted = float((full.said == circuit.said)[right].double().mean()) if bool(right.any()) else 1.0
    same = right & (baseline.best_right == full.said)  # those that it agrees with unless the bias is above the margin
    margins = baseline.margin[same].double().sort().values
    kept = round(wanted * int(right.sum()))  # pairs that it has to agree with
    if not 0 < kept <= len(margins):
        return 0.0 if not len(margins) else float(margins[0]) - 1.0
    place = len(margins) - kept  # the first that stays right
    below = margins[place - 1] if place else margins[0] - 1.0
    return float((below + margins[place]) / 2)


def _words(texts: Sequence[Pair], wrong: Tensor) -> list[Word]:
    """The slot values with which the model errs most often, those of more errors first."""
    pairs: Counter[tuple[str, str]] = Counter()
    errors: Counter[tuple[str, str]] = Counter()
    for pair, errs in zip(texts, wrong.tolist(), strict=True):
        for slot in {(role, pair.clean[start:end]) for role, start, end in pair.roles}:
            pairs[slot] += 1
            errors[slot] += errs
    listed = [Word(role=role, word=word, pairs=pairs[role, word], errors=n) for (role, word), n in errors.most_common()]
    return [word for word in listed[:WORDS] if word.errors]
