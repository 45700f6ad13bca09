"""What a circuit is asked to match, and how the match is measured: per example, in float32, units stated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.tasks.pair import ALONE, Batch

Objective = Callable[[Float[Tensor, "batch answer vocab"], Float[Tensor, "batch answer vocab"], Batch], Tensor]


def kl_divergence(
    logits: Float[Tensor, "batch answer vocab"], teacher: Float[Tensor, "batch answer vocab"], batch: Batch
) -> Float[Tensor, "batch"]:
    """KL(full model || circuit) in nats, summed over the vocabulary, mean over an example's answer tokens; 0 is equal.

    Args:
        logits: the circuit's.
        teacher: the full model's log-probabilities.
        batch: gives the answer mask.

    Source: Edge Pruning (arXiv 2406.16778) section 3; answers of several tokens are averaged inside the example.
    """
    log_q = logits.float().log_softmax(-1)
    per_token = (teacher.float().exp() * (teacher.float() - log_q)).sum(-1)
    return _over_answer(per_token, batch.answer_mask)


def answer_cross_entropy(
    logits: Float[Tensor, "batch answer vocab"], teacher: Float[Tensor, "batch answer vocab"], batch: Batch
) -> Float[Tensor, "batch"]:
    """Negative log-probability of the answer in nats, mean over its tokens; does not look at the full model."""
    log_q = logits.float().log_softmax(-1)
    return _over_answer(-log_q.gather(-1, batch.answer[..., None])[..., 0], batch.answer_mask)


def log_probability(logits: Float[Tensor, "batch answer vocab"], batch: Batch) -> Float[Tensor, "batch"]:
    """Log-probability of the answer in nats, mean over its tokens; 0 is certainty."""
    return -answer_cross_entropy(logits, logits, batch)


def logit_difference_error(
    logits: Float[Tensor, "batch answer vocab"], teacher: Float[Tensor, "batch answer vocab"], batch: Batch
) -> Float[Tensor, "batch"]:
    """Absolute difference between the circuit's and the full model's logit difference, in logits; 0 is equal."""
    return (logit_difference(logits, batch) - logit_difference(teacher, batch)).abs()


def logit_difference(logits: Float[Tensor, "batch answer vocab"], batch: Batch) -> Float[Tensor, "batch"]:
    """Logit of the answer minus logit of the wrong answer where the two first differ; NaN without a wrong answer.

    Log-probabilities serve as logits: the normaliser cancels.
    """
    column = batch.contrast[:, None, None]
    at = torch.take_along_dim(logits.float(), column, 1)[:, 0]
    right = torch.take_along_dim(batch.answer, batch.contrast[:, None], 1)
    difference = at.gather(1, right) - at.gather(1, batch.wrong.clamp(min=0)[:, None])
    return torch.where(batch.wrong >= 0, difference[:, 0], torch.nan)


def probability_difference(logits: Float[Tensor, "batch answer vocab"], batch: Batch) -> Float[Tensor, "batch"]:
    """Summed probability of the right choices minus that of the wrong ones, in [-1, 1]; NaN without choices.

    Source: greater-than (Hanna et al., arXiv 2305.00586) section 2; probabilities are over the whole vocabulary.
    """
    probability = logits[:, 0].float().softmax(-1).gather(1, batch.choices)
    difference = (probability * batch.signs).sum(-1)
    return torch.where(batch.signs.abs().sum(-1) > 0, difference, torch.nan)


def task_metric(logits: Float[Tensor, "batch answer vocab"], batch: Batch) -> Float[Tensor, "batch"]:
    """What a task is measured by, the more the better.

    Probability difference where a pair has choices, else logit difference. In a task without wrong answers it is the
    answer's log-probability; in one where some pairs have them it is NaN for the others, whatever batch they are in.
    """
    by_logits = torch.where(batch.wrong == ALONE, log_probability(logits, batch), logit_difference(logits, batch))
    if batch.signs.shape[1] == 0:
        return by_logits
    return torch.where(batch.signs.abs().sum(-1) > 0, probability_difference(logits, batch).nan_to_num(), by_logits)


def negative_metric(
    logits: Float[Tensor, "batch answer vocab"], teacher: Float[Tensor, "batch answer vocab"], batch: Batch
) -> Float[Tensor, "batch"]:
    """Minus the task's metric, so that less is better as in every objective; does not look at the full model."""
    return -task_metric(logits, batch)


UNITS: dict[Objective, str] = {
    kl_divergence: "nats",
    answer_cross_entropy: "nats",
    logit_difference_error: "logits",
    negative_metric: "task metric",
}


def best_candidates(
    logits: Float[Tensor, "batch answer vocab"], batch: Batch
) -> tuple[Int[Tensor, "batch"], Int[Tensor, "batch"], Float[Tensor, "batch"]]:
    """The best right and the best wrong candidate of every example, and by how many logits the right one leads.

    Candidates are a pair's choices where it has some, else answer and wrong answer where the two first differ. Without
    a wrong one the tokens are -1, the wrong one is what `batch.wrong` says, and the lead is NaN.
    """
    right, wrong = torch.take_along_dim(batch.answer, batch.contrast[:, None], 1)[:, 0], batch.wrong
    margin = logit_difference(logits, batch)
    if batch.signs.shape[1]:
        own = logits[:, 0].float().gather(1, batch.choices)
        sides = [own.masked_fill(batch.signs * side <= 0, -torch.inf).max(-1) for side in (1, -1)]
        tokens = [batch.choices.gather(1, side.indices[:, None])[:, 0] for side in sides]
        chosen = (batch.signs > 0).any(-1) & (batch.signs < 0).any(-1)
        right, wrong = (torch.where(chosen, token, one) for token, one in zip(tokens, (right, wrong), strict=True))
        margin = torch.where(chosen, sides[0].values - sides[1].values, margin)
    known = ~margin.isnan()
    return torch.where(known, right, -1), torch.where(known, wrong, batch.wrong.clamp(max=ALONE)), margin


def says_answer(logits: Float[Tensor, "batch answer vocab"], batch: Batch) -> Bool[Tensor, "batch"]:
    """True where the most likely token is the answer at every answer position, or is one of the right choices."""
    said = says(logits, batch.answer, batch.answer_mask)
    right = ((logits[:, 0].argmax(-1, keepdim=True) == batch.choices) & (batch.signs > 0)).any(-1)
    return said | right


def says(
    logits: Float[Tensor, "batch answer vocab"], tokens: Int[Tensor, "batch answer"], real: Bool[Tensor, "batch answer"]
) -> Bool[Tensor, "batch"]:
    """True where the most likely token is the given one at every real position."""
    return ((logits.argmax(-1) == tokens) | ~real).all(-1)


def model_errs(teacher: Float[Tensor, "batch answer vocab"], batch: Batch) -> Bool[Tensor, "batch"]:
    """True where the full model prefers a wrong candidate, or, without candidates, does not say the answer."""
    margin = best_candidates(teacher, batch)[2]
    return torch.where(margin.isnan(), ~says_answer(teacher, batch), margin <= 0)


def weighted_for_errors(
    logits: Float[Tensor, "batch answer vocab"],
    teacher: Float[Tensor, "batch answer vocab"],
    batch: Batch,
    objective: Objective,
    weight: float,
    rate: float,
) -> Float[Tensor, "batch"]:
    """An objective in which the model's errors have a share of the weight of their own; the mean weight is 1.

    Args:
        logits, teacher, batch: as for every objective.
        objective: that is weighted.
        weight: share of the weight that all errors have together, above 0 and below 1.
        rate: share of pairs that are errors, above 0 and below 1.

    Source: arXiv 2609.35686, who give errors half of the loss.
    """
    of_pair = torch.where(model_errs(teacher, batch), weight / rate, (1 - weight) / (1 - rate))
    return each_pair(objective, logits, teacher, batch) * of_pair


def each_pair(
    objective: Objective,
    logits: Float[Tensor, "batch answer vocab"],
    teacher: Float[Tensor, "batch answer vocab"],
    batch: Batch,
) -> Float[Tensor, "batch"]:
    """An objective or metric, also one of the user's, of each pair.

    Raises:
        UserError: it gives something else, such as a mean.
    """
    values = objective(logits, teacher, batch)
    if values.shape != (len(batch),):
        raise UserError(
            f"{getattr(objective, '__name__', 'the objective')} gives a tensor of shape {list(values.shape)} for "
            f"{len(batch)} pairs; let it give each pair's number, without a mean over them"
        )
    return values


def _over_answer(
    per_token: Float[Tensor, "batch answer"], real: Bool[Tensor, "batch answer"]
) -> Float[Tensor, "batch"]:
    return (per_token * real).sum(-1) / real.sum(-1)


@dataclass(frozen=True)
class Outcome:
    """How one model or circuit did on each of some pairs.

    Attributes:
        kl: KL(full || it) in nats.
        logit_diff: answer minus wrong answer, in logits; NaN for pairs without a wrong answer.
        prob_diff: right choices minus wrong ones, summed probabilities; NaN for pairs without choices.
        accuracy: 1 where it says the answer, else 0.
        exact_match: 1 where it says what the full model says, else 0.
        group: number of the sentence (or other item) that pairs share; not given, each pair stands alone.
        log_prob: log-probability of the answer in nats, mean over its tokens; NaN where it was not measured.
        best_right, best_wrong: its best candidates (`best_candidates`); below 0 where there are none.
        margin: by how many logits the right one leads; NaN where there are none.
    """

    kl: Float[Tensor, "pair"]
    logit_diff: Float[Tensor, "pair"]
    prob_diff: Float[Tensor, "pair"]
    accuracy: Float[Tensor, "pair"]
    exact_match: Float[Tensor, "pair"]
    group: Int[Tensor, "pair"] = None  # type: ignore[assignment]
    log_prob: Float[Tensor, "pair"] = None  # type: ignore[assignment]
    best_right: Int[Tensor, "pair"] = None  # type: ignore[assignment]
    best_wrong: Int[Tensor, "pair"] = None  # type: ignore[assignment]
    margin: Float[Tensor, "pair"] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        unknown, none = torch.full_like(self.kl, torch.nan), torch.full((len(self.kl),), -1, device=self.kl.device)
        absent = {"log_prob": unknown, "best_right": none, "best_wrong": none, "margin": unknown}
        absent["group"] = torch.arange(len(self.kl))
        for name, value in absent.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "batch answer vocab"],
        teacher: Float[Tensor, "batch answer vocab"],
        batch: Batch,
    ) -> Outcome:
        """Measure a batch's logits against the full model's log-probabilities."""
        return cls(
            kl_divergence(logits, teacher, batch).cpu(),
            logit_difference(logits, batch).cpu(),
            probability_difference(logits, batch).cpu(),
            says_answer(logits, batch).float().cpu(),
            says(logits, teacher.argmax(-1), batch.answer_mask).float().cpu(),
            batch.group.cpu(),
            log_probability(logits, batch).cpu(),
            *(part.cpu() for part in best_candidates(logits, batch)),
        )

    @classmethod
    def join(cls, parts: list[Outcome]) -> Outcome:
        """Outcomes of consecutive batches as one."""
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    @property
    def metric(self) -> Float[Tensor, "pair"]:
        """What `task_metric` gives each pair."""
        difference = torch.where(self.prob_diff.isnan(), self.logit_diff, self.prob_diff)
        return torch.where(difference.isnan() & (self.best_wrong == ALONE), self.log_prob, difference)

    @property
    def said(self) -> Int[Tensor, "pair"]:
        """The candidate that it says: the right one where that leads, else the wrong one; -1 without candidates."""
        return torch.where(self.margin > 0, self.best_right, self.best_wrong).clamp(min=-1)

    def head(self, count: int) -> Outcome:
        """The first `count` pairs."""
        return self.rows(slice(count))

    def rows(self, index: slice | Int[Tensor, "row"] | Bool[Tensor, "pair"]) -> Outcome:
        """Some pairs."""
        return Outcome(**{f.name: getattr(self, f.name)[index] for f in fields(self)})
