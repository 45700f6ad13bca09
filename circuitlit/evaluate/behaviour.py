"""How well the full model does a task: asked before any circuit is sought."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from circuitlit.evaluate.statistics import Estimate, mean_estimate
from circuitlit.model import Subject
from circuitlit.objective import Outcome
from circuitlit.tasks.pair import Batch


@dataclass(frozen=True)
class Behaviour:
    """The full model on clean and corrupted prompts of the same pairs.

    Attributes:
        n_pairs: pairs measured.
        accuracy: share of clean prompts after which it says the answer, or one of the right choices.
        metric: the task's metric on clean prompts: logit difference, or probability difference where pairs have
            choices; without wrong answers the answer's log-probability.
        corrupted_accuracy: share of corrupted prompts after which it says the clean prompt's answer; near `accuracy`
            means that the corruption leaves the behaviour's cause in place.
        corrupted_metric: the task's metric on corrupted prompts.
        corrupted_kl: KL(clean || corrupted) in nats: what a circuit can explain at most. Like the other two it is None
            where there are no corrupted prompts.
    """

    n_pairs: int
    accuracy: Estimate
    metric: Estimate
    corrupted_accuracy: Estimate | None
    corrupted_metric: Estimate | None
    corrupted_kl: Estimate | None

    @classmethod
    @torch.no_grad()
    def measure(cls, subject: Subject, batches: Iterable[Batch]) -> Behaviour:
        """Run the model on both prompts of each pair."""
        clean, corrupted = [], []
        for batch in batches:
            placed = batch.to(subject.device)
            logits = subject.logits(placed.clean, placed.positions)
            teacher = logits.float().log_softmax(-1)
            clean.append(Outcome.of(logits, teacher, placed))
            if placed.has_corrupted:
                corrupted.append(Outcome.of(subject.logits(placed.corrupted, placed.positions), teacher, placed))
        full, other = Outcome.join(clean), Outcome.join(corrupted) if corrupted else None
        return cls(
            n_pairs=len(full.kl),
            accuracy=mean_estimate(full.accuracy, full.group),
            metric=mean_estimate(full.metric, full.group),
            corrupted_accuracy=other and mean_estimate(other.accuracy, full.group),
            corrupted_metric=other and mean_estimate(other.metric, full.group),
            corrupted_kl=other and mean_estimate(other.kl, full.group),
        )

    def verdict(self, min_accuracy: float) -> str | None:
        """Why no circuit should be sought, or None.

        Args:
            min_accuracy: smallest share of right answers; 0 lets every model pass.
        """
        if self.accuracy.value is None or self.accuracy.value >= min_accuracy:
            return None
        return (
            f"the model does not do the task: accuracy {self.accuracy} on {self.n_pairs} pairs, {min_accuracy:g} "
            "is asked for; task.min_accuracy=0 searches anyway"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types for result.json."""
        return asdict(self)
