"""What tuning did to a model's answers on pairs that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate, paired_difference
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.evaluate.testing import paired_p
from circuitlit.finetune.tuner import answer_logits
from circuitlit.objective import Outcome
from circuitlit.tasks import EncodedPairs

Score = Literal["accuracy", "metric"]
LEVEL = 0.05


class HeldOut:
    """Held-out pairs and what the model said of them before it was tuned.

    Args:
        model: the model as it is before tuning; later ones are compared with it.
        pairs: at least one; the base model's log-probabilities of all their answers are kept in memory.
        batch_size: pairs that run together.
        device: where the model is.

    Attributes:
        base: outcome of the model before tuning (KL 0 by definition).
    """

    def __init__(
        self, model: nn.Module, pairs: EncodedPairs, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self._batches = [batch.to(device) for batch in pairs.batches(batch_size)]
        with torch.no_grad():
            self._teacher = [
                answer_logits(model, batch.clean, batch.positions).log_softmax(-1).cpu() for batch in self._batches
            ]
        self.base = self.measure(model)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> Outcome:
        """Outcome of a model, pair by pair; `kl` is KL(base || it) and `exact_match` agreement with the base."""
        parts = []
        with without_dropout(model):
            for batch, teacher in zip(self._batches, self._teacher, strict=True):
                logits = answer_logits(model, batch.clean, batch.positions)
                parts.append(Outcome.of(logits, teacher.to(logits.device), batch))
        return Outcome.join(parts)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Means of a model's outcome, for curves."""
        outcome = self.measure(model)
        means = {name: float(getattr(outcome, name).mean()) for name in ("accuracy", "metric", "kl")}
        return {name: value for name, value in means.items() if value == value}


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, an adapter's dropout included, and afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class BehaviourChange:
    """Base against tuned on the same pairs, with both 95 % intervals.

    Attributes:
        n_pairs: how many.
        accuracy_base, accuracy_tuned: share of pairs on which each says the answer.
        accuracy_change: tuned minus base.
        gained, lost: pairs that only the tuned, only the base model gets right.
        accuracy_p: two-sided test of `accuracy_change`: McNemar's exact test of `gained` against `lost` where pairs
            stand alone, t on the groups' means where they share sentences; 1 is no evidence of a change.
        metric_base, metric_tuned, metric_change: the same for the task's metric (logit or probability difference); do
            not exist without wrong answers.
        kl: KL(base || tuned) at the answers, nats.

    Source: McNemar, Psychometrika 12 (1947), for pairs that stand alone.
    """

    n_pairs: int
    accuracy_base: Estimate
    accuracy_tuned: Estimate
    accuracy_change: Estimate
    gained: int
    lost: int
    accuracy_p: float
    metric_base: Estimate
    metric_tuned: Estimate
    metric_change: Estimate
    kl: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    def shortfall(self, score: Score) -> str | None:
        """Why the score did not rise significantly, or None.

        Raises:
            UserError: there is no metric.
        """
        change = self.metric_change
        if score == "accuracy":
            rises = self.gained > self.lost and self.accuracy_p < LEVEL
            if rises and self.accuracy_change.agrees:
                return None
            reason = (
                f"held-out accuracy went from {self.accuracy_base.value:.3f} to {self.accuracy_tuned.value:.3f}, "
                f"{'but its mean over sentences fell' if rises else 'which is no significant rise'} "
                f"(p = {self.accuracy_p:.2g})"
            )
            rose = change.bounds is not None and change.bounds[0] > 0 and change.agrees
            return f"{reason}; the metric rose by {change}, tune.score=metric judges by that" if rose else reason
        if change.bounds is None:
            raise UserError("tune.score=metric needs pairs with wrong answers; use tune.score=accuracy")
        if change.bounds[0] > 0 and change.agrees:
            return None
        return f"the held-out metric changed by {change}, which is no significant rise"


def behaviour_change(base: Outcome, tuned: Outcome) -> BehaviourChange:
    """Compare two models' outcomes on the same pairs."""
    gained = int(((tuned.accuracy == 1) & (base.accuracy == 0)).sum())
    lost = int(((tuned.accuracy == 0) & (base.accuracy == 1)).sum())
    return BehaviourChange(
        n_pairs=len(base.accuracy),
        accuracy_base=mean_estimate(base.accuracy, base.group),
        accuracy_tuned=mean_estimate(tuned.accuracy, base.group),
        accuracy_change=paired_difference(tuned.accuracy, base.accuracy, base.group),
        gained=gained,
        lost=lost,
        accuracy_p=_accuracy_p(gained, lost, tuned.accuracy - base.accuracy, base.group),
        metric_base=mean_estimate(base.metric, base.group),
        metric_tuned=mean_estimate(tuned.metric, base.group),
        metric_change=paired_difference(tuned.metric, base.metric, base.group),
        kl=mean_estimate(tuned.kl, base.group),
    )


def _accuracy_p(gained: int, lost: int, change: Float[Tensor, "pair"], groups: Int[Tensor, "pair"]) -> float:
    """McNemar's exact test where every pair stands alone, else a paired test on the groups."""
    if len(groups.unique()) < len(groups):
        return paired_p(change, groups)
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
