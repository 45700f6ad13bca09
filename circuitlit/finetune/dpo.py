"""Direct preference optimisation: the answer rather than the wrong answer, compared with a reference model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.finetune.examples import Examples, Preference
from circuitlit.finetune.tuner import Tuner, answer_log_probs

NO_REJECTED = "some examples have no wrong answer to compare with; give them one or use tune=sft"


def preference_log_probs(model: nn.Module, batch: Preference) -> Float[Tensor, "batch side"]:
    """Log-probabilities of the whole chosen (first) and rejected (second) answers, in nats.

    Raises:
        UserError: examples without a rejected answer.
    """
    if batch.rejected is None:
        raise UserError(NO_REJECTED)
    sides = [answer_log_probs(model, side).sum(-1) for side in (batch.chosen, batch.rejected)]
    return torch.stack(sides, -1)


@torch.no_grad()
def reference_log_probs(
    model: nn.Module, examples: Examples, batch_size: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "example side"]:
    """Log-probabilities of a whole split under the model as it is now, row by row, for full tuning.

    Raises:
        UserError: examples without a rejected answer.
    """
    rows = range(len(examples))
    parts = []
    for start in range(0, len(rows), batch_size):
        chosen, rejected = examples.collate(rows[start : start + batch_size])
        batch = Preference(chosen.to(device), rejected and rejected.to(device))
        parts.append(preference_log_probs(model, batch).cpu())
    return torch.cat(parts)


class PreferenceTuner(Tuner):
    """Minus the log-likelihood of preferring chosen over rejected; log 2 where the policy is the reference.

    Args:
        model, optimisation, seed: as in `Tuner`.
        beta: strength of the tie to the reference, above 0; towards 0 the loss is log 2 everywhere.
        reference: of `reference_log_probs` on the training split; None switches the adapters off instead.

    Source: Rafailov et al., arXiv 2305.18290, equation 7.
    """

    def __init__(self, *args: Any, beta: float = 0.1, reference: Tensor | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        if not beta > 0:
            raise UserError(f"tune.build.beta={beta} is not above 0; raise it")
        if reference is None and not self.is_adapted:
            raise ValueError("a fully tuned model needs reference log-probabilities: pass reference_log_probs(...)")
        self.beta, self.reference = beta, reference

    def figures(self, batch: Preference, micro_batch: int) -> dict[str, Float[Tensor, ""]]:
        """Loss, the margin between the implicit rewards, and how often it is above 0."""
        policy = preference_log_probs(self.model, batch)
        gain = policy - self._reference(batch)
        margin = self.beta * (gain[:, 0] - gain[:, 1])
        return {
            "loss": -F.logsigmoid(margin).mean(),
            "margin": margin.mean(),
            "preferred": (margin > 0).float().mean(),
            "chosen_gain": gain[:, 0].mean(),
        }

    @torch.no_grad()
    def _reference(self, batch: Preference) -> Float[Tensor, "batch side"]:
        if self.reference is not None:
            return self.reference[batch.chosen.index.cpu()].to(batch.chosen.clean.device)
        with self.model.disable_adapter():  # type: ignore[operator]
            return preference_log_probs(self.model, batch)
