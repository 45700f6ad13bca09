"""Supervised fine-tuning: say the answer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from circuitlit.finetune.examples import Preference
from circuitlit.finetune.tuner import Tuner, answer_log_probs


class SupervisedTuner(Tuner):
    """Cross-entropy of the chosen answers, in nats, mean over the answer tokens of a batch; prompts bear no loss."""

    def figures(self, batch: Preference, micro_batch: int) -> dict[str, Float[Tensor, ""]]:
        """The loss."""
        chosen = batch.chosen
        return {"loss": -answer_log_probs(self.model, chosen).sum() / chosen.answer_mask.sum()}
