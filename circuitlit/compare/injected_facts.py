"""Facts that are tuned into a model, and the nodes that carry them: putting nodes back shows which carry which."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, ClassVar

import torch

from circuitlit.arguments import checks_arguments
from circuitlit.compare.effects import PairBed, gain_share, plain_logits
from circuitlit.compare.injection import reverting_scores
from circuitlit.compare.transplant import Transplant
from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.matched import matched_nodes, mean_overlap
from circuitlit.evaluate.similarity import spearman
from circuitlit.evaluate.statistics import combined, mean_estimate, mean_of, ratio
from circuitlit.evaluate.testing import enough_draws, rank_p, until_clear, with_holm
from circuitlit.finetune import examples_of_file
from circuitlit.model import Subject
from circuitlit.model.slices import withheld
from circuitlit.objective import Outcome
from circuitlit.progress import phase
from circuitlit.result import Result
from circuitlit.tasks import EncodedPairs
from circuitlit.tasks.injected import KINDS, Fact, new_facts, revised_facts, true_facts

LEARNED = (0, 1)  # sentences that are tuned on
ASKED = 2  # the sentence that is tested
TUNING = ("status", "reason", "tune", "adapter", "steps", "held_out")  # what the result holds of a tuning run


@dataclass(frozen=True)
class Answers:
    """How a kind of fact is answered in the wording not tuned on, before and after: share right, and the metric."""

    accuracy_base: Estimate
    accuracy_tuned: Estimate
    metric_base: Estimate
    metric_tuned: Estimate


@dataclass(frozen=True)
class RandomLoss:
    """What random sets like some nodes lose, and the rank of those nodes' loss among theirs; None: not to be said."""

    lost: Estimate | None
    rank_p: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class Carriers:
    """The leading nodes of one kind of fact, put back.

    Attributes:
        nodes: the set.
        withheld: keys and values that stay the tuned model's, a part of whose heads is put back.
        overlap: mean share of the set that a random one holds, too.
        lost: share of the gain that is lost, by kind of fact.
        specific: that of the own kind less that of the other.
        random: random sets, by kind of fact.
    """

    nodes: list[str]
    withheld: list[str]
    overlap: float
    lost: dict[str, Estimate]
    specific: Estimate
    random: dict[str, RandomLoss]


@dataclass(frozen=True, kw_only=True, repr=False)
class FactInjection(Result):
    """What `inject_facts` found; kinds of facts are "new" (invented) and "revised" (against what the model knew).

    Attributes:
        model, seed, settings: what was tuned, and how many facts and nodes.
        facts: all of them.
        tuning: what became of the tuning run.
        behaviour: accuracy and metric on the wording not tuned on, before and after, by kind.
        scores: every node's part in each kind, estimated to first order.
        correlation: Spearman's, of the two kinds' parts.
        shared_nodes: among the leading nodes of both.
        carriers: the leading nodes of each kind: what either kind loses with them put back, beside random sets.
    """

    schema: ClassVar[str] = "fact_injection"
    file: ClassVar[str] = "injection.json"

    model: str
    seed: int
    settings: dict[str, Any]
    facts: list[Fact]
    tuning: dict[str, Any]
    behaviour: dict[str, Answers]
    scores: dict[str, dict[str, float]]
    correlation: float | None
    shared_nodes: list[str]
    carriers: dict[str, Carriers]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a node: its part in each kind of fact."""
        for node in self.scores["new"]:
            yield {"node": node, **{kind: own[node] for kind, own in self.scores.items()}}


@checks_arguments
def inject_facts(
    base: Subject,
    tune: Callable[[str], tuple[Subject, dict[str, Any]]],
    folder: Path,
    *,
    new: int = 50,
    revised: int = 50,
    only_known: bool = True,
    nodes: int = 10,
    draws: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> FactInjection:
    """Tune facts in, and find the nodes that carry them.

    Args:
        base: the model.
        tune: tunes it on a file of facts; gives the tuned model, and what became of it, its "status" at least.
        folder: for the file of facts.
        new, revised: invented facts, and facts that contradict what the model says.
        only_known: True revises only facts that the model knows.
        nodes: leading nodes that are put back.
        draws: at most so many random sets; None takes as many as significance needs.
        batch_size: pairs measured at once.
        seed: of facts and random sets.

    Raises:
        UserError: too few facts that the model knows, or a number below 1.
    """
    if min(new, revised, nodes, batch_size) < 1:
        raise UserError("new, revised, nodes and batch_size must be at least 1")
    settings = {"new": new, "revised": revised, "only_known": only_known, "nodes": nodes, "draws": draws}
    folder.mkdir(parents=True, exist_ok=True)
    facts, path = _facts(base, settings, batch_size, seed), folder / "facts.jsonl"
    rows = [(fact, number) for fact in facts for number in (*LEARNED, ASKED)]
    lines = (json.dumps(fact.row(n, "test" if n == ASKED else "train")) for fact, n in rows)
    path.write_text("\n".join(lines) + "\n")
    tuned, outcome = tune(str(path))
    with phase("nodes", "Estimating every node's part"):
        pairs = _pairs(base, facts, path)
        scores = {
            kind: reverting_scores(base, tuned, list(own["train"].batches(batch_size))) for kind, own in pairs.items()
        }
    with phase("revert", "Reverting nodes, and random sets like them"):
        found = _reverted(base, tuned, pairs, scores, settings, batch_size, seed)
    return FactInjection(
        model=base.name,
        seed=seed,
        settings=settings,
        facts=facts,
        tuning={key: outcome[key] for key in TUNING if key in outcome},
        **found,
    )


def _facts(base: Subject, settings: dict[str, Any], batch_size: int, seed: int) -> list[Fact]:
    """Invented facts, and facts that contradict what the model says on the first sentence."""
    candidates = true_facts(seed)
    if settings["only_known"]:
        lines = [fact.row(LEARNED[0], "test") for fact in candidates]
        lines.append(candidates[0].row(LEARNED[1], "train"))  # a file needs a training line
        assert base.tokenizer is not None
        with NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("\n".join(map(json.dumps, lines)) + "\n")
            file.flush()
            asked = examples_of_file(file.name, base.tokenizer)["test"].chosen
        bed = PairBed(base, asked.batches(batch_size))
        right = bed.full.accuracy.bool().tolist()
        candidates = [fact for fact, good in zip(candidates, right, strict=True) if good]
    return new_facts(settings["new"], seed) + revised_facts(candidates, settings["revised"])


def _pairs(base: Subject, facts: list[Fact], path: Path) -> dict[str, dict[str, EncodedPairs]]:
    """The encoded prompts of each kind of fact, as tuned on and as tested."""
    assert base.tokenizer is not None
    examples, found = examples_of_file(str(path), base.tokenizer), {}
    for kind in KINDS:
        own = [place for place, fact in enumerate(facts) if fact.kind == kind]
        rows = {"train": [2 * place + n for place in own for n in range(len(LEARNED))], "test": own}
        found[kind] = {
            split: EncodedPairs([examples[split].chosen.rows[row] for row in chosen], ())
            for split, chosen in rows.items()
        }
    return found


def _reverted(
    base: Subject,
    tuned: Subject,
    pairs: dict[str, dict[str, EncodedPairs]],
    scores: dict[str, dict[str, float]],
    settings: dict[str, Any],
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """What each kind of fact loses, on the test wording, with the nodes of either kind put back."""
    back = Transplant(tuned, base)
    beds = {kind: PairBed(tuned, own["test"].batches(batch_size)) for kind, own in pairs.items()}
    before = {kind: bed.measure(lambda batch: plain_logits(base, batch)) for kind, bed in beds.items()}

    def lost(nodes: Sequence[str]) -> dict[str, Outcome]:
        with back.weights(nodes) as copy:
            return {kind: bed.measure(lambda batch: plain_logits(copy, batch)) for kind, bed in beds.items()}

    def share(kind: str, outcome: Outcome) -> Estimate:
        return gain_share(beds[kind].full, before[kind], outcome)

    carriers = {}
    for kind, of_nodes in scores.items():
        nodes = sorted(of_nodes, key=lambda node: -of_nodes[node])[: settings["nodes"]]
        after = lost(nodes)
        sets = matched_nodes(back.graph, nodes, settings["draws"] or enough_draws(len(KINDS) ** 2), seed)
        own = [share(on, after[on]).value for on in KINDS]
        others = until_clear(own, map(lost, sets), lambda one: [share(on, one[on]).value for on in KINDS])
        carriers[kind] = Carriers(
            nodes=nodes,
            withheld=withheld(back.graph, nodes),
            overlap=mean_overlap(nodes, sets),
            lost={on: share(on, after[on]) for on in KINDS},
            specific=_specific(kind, beds, before, after),
            random={on: _random(share(on, after[on]).value, [share(on, o[on]).value for o in others]) for on in KINDS},
        )
    nodes = list(scores["new"])
    values = [torch.tensor([scores[kind][node] for node in nodes], dtype=torch.float64)[None] for kind in KINDS]
    return {
        "behaviour": {kind: _answers(before[kind], beds[kind].full) for kind in KINDS},
        "scores": scores,
        "correlation": spearman(*values),
        "shared_nodes": sorted(set(carriers["new"].nodes) & set(carriers["revised"].nodes)),
        "carriers": with_holm(carriers),
    }


def _specific(kind: str, beds: dict[str, PairBed], before: dict[str, Outcome], after: dict[str, Outcome]) -> Estimate:
    """Share that the own kind of fact loses less the share that the other does; both kinds' facts are resampled."""
    parts = []
    for seed, on in enumerate((kind, next(other for other in KINDS if other != kind))):
        high, low, own = (outcome.metric.double() for outcome in (beds[on].full, before[on], after[on]))
        parts.append(ratio(high - own, high - low, after[on].group, seed))
    return combined([(1.0, parts[0]), (-1.0, parts[1])]).estimate()


def _random(own: float | None, others: list[float | None]) -> RandomLoss:
    known = [value for value in others if value is not None]
    if not known:
        return RandomLoss(None, None)
    return RandomLoss(mean_of(known), None if own is None else rank_p(own, known))


def _answers(before: Outcome, after: Outcome) -> Answers:
    return Answers(
        *(
            mean_estimate(getattr(outcome, name), outcome.group)
            for name in ("accuracy", "metric")
            for outcome in (before, after)
        )
    )
