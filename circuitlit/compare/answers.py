"""What several tuned models answer on the same held-out pairs and on other text, and how the first two differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.compare.effects import PairBed, model_text_kl, plain_logits
from circuitlit.evaluate import Estimate, paired_difference
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.finetune import BehaviourChange, behaviour_change
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.tasks import EncodedPairs


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A tuned model's answers beside the base's.

    Attributes:
        held_out: on test pairs.
        text_kl: KL(base || it) on other text, nats a token.
    """

    held_out: BehaviourChange
    text_kl: Estimate


@dataclass(frozen=True, kw_only=True)
class AnswersApart:
    """The first of two tuned models minus the second, pair by pair.

    Attributes:
        ways: their names.
        accuracy, metric: on test pairs.
        text_kl: on other text.
    """

    ways: list[str]
    accuracy: Estimate
    metric: Estimate
    text_kl: Estimate


@dataclass(frozen=True, kw_only=True)
class AllAnswers:
    """Of all tuned models, by name, and between the first two."""

    ways: dict[str, Answers]
    between: AnswersApart


def compare_answers(
    base: Subject,
    tuned: Iterable[tuple[str, Subject]],
    pairs: EncodedPairs,
    batch_size: int,
    text: Int[Tensor, "passage pos"],
) -> AllAnswers:
    """Test several models tuned from one base.

    Args:
        base: before tuning.
        tuned: at least two models with their names; each is used before the next one is asked for.
        pairs: held-out pairs.
        batch_size: pairs that run together.
        text: passages of other text.
    """
    bed, ways = PairBed(base, pairs.batches(batch_size)), {}
    found: dict[str, tuple[Outcome, Float[Tensor, "passage"]]] = {}
    for name, model in tuned:
        outcome = bed.measure(lambda batch, model=model: plain_logits(model, batch))
        moved = model_text_kl(base, model, text)
        found[name] = outcome, moved
        ways[name] = Answers(held_out=behaviour_change(bed.full, outcome), text_kl=mean_estimate(moved, None))
    (one, text_one), (other, text_other) = list(found.values())[:2]
    between = AnswersApart(
        ways=list(found)[:2],
        accuracy=paired_difference(one.accuracy, other.accuracy, one.group),
        metric=paired_difference(one.metric, other.metric, one.group),
        text_kl=paired_difference(text_one, text_other, None),
    )
    return AllAnswers(ways=ways, between=between)
