"""What all ways to tune share: the answers' log-probabilities, the optimizer, checkpoints of what is trained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.finetune.allocation import allocate_ranks, allocation_state, orthogonality, restore_allocation
from circuitlit.finetune.examples import Preference
from circuitlit.model.logits import logits_at
from circuitlit.tasks import Batch


@dataclass(frozen=True)
class Optimisation:
    """AdamW with a linear warm-up and a linear decay to nought.

    Attributes:
        steps: optimizer steps in all.
        lr: peak learning rate.
        warmup: share of the steps until the peak.
        weight_decay: of matrices; vectors (norms, biases) have none.
    """

    steps: int
    lr: float
    warmup: float = 0.1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise UserError(f"tune.steps={self.steps} is not a whole number of at least 1")
        if not self.weight_decay >= 0:
            raise UserError(f"tune.weight_decay={self.weight_decay} is below 0")
        if not 0 < self.lr < math.inf or not 0 <= self.warmup < 1:
            raise UserError(f"tune.lr={self.lr} must be above 0 and tune.warmup={self.warmup} a share below 1")

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at a step; never 0 before the end."""
        rising = max(1, round(self.warmup * self.steps))
        return min((step + 1) / rising, max(0.0, (self.steps - step) / max(1, self.steps - rising)))


def answer_logits(
    model: nn.Module, ids: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch answer"]
) -> Float[Tensor, "batch answer vocab"]:
    """Logits where answers are predicted, in float32; rows are padded on the right, so causality hides pads."""
    return logits_at(model, ids, positions).float()


def answer_log_probs(model: nn.Module, batch: Batch) -> Float[Tensor, "batch answer"]:
    """Log-probability of every answer token given what is before it, in nats; 0 in the padding."""
    log_probs = answer_logits(model, batch.clean, batch.positions).log_softmax(-1)
    return log_probs.gather(-1, batch.answer[..., None])[..., 0] * batch.answer_mask


class Tuner(LightningModule, ABC):
    """Trains the trainable parameters of a causal language model.

    The model stays in eval mode, so its own dropout is off: a run resumes exactly, and at the reference weights the
    policy is the reference. The dropout of an adapter, if set, is on.

    Args:
        model: a Hugging Face model, or one with PEFT adapters on it.
        optimisation: steps and learning rate.
        seed: of whatever is drawn at random.
    """

    def __init__(self, model: nn.Module, optimisation: Optimisation, seed: int = 0) -> None:
        super().__init__()
        self.model, self.optimisation, self.seed = model, optimisation, seed
        self.strict_loading = False  # checkpoints hold what is trained only

    @property
    def is_adapted(self) -> bool:
        """True where adapters are trained, which can be switched off."""
        return hasattr(self.model, "disable_adapter")

    @abstractmethod
    def figures(self, batch: Preference, micro_batch: int) -> dict[str, Float[Tensor, ""]]:
        """The loss under "loss", and whatever else is to be seen."""

    def training_step(self, batch: Preference, batch_idx: int) -> Float[Tensor, ""]:
        """Loss of one micro-batch."""
        figures = self.figures(batch, batch_idx)
        rows = len(batch.chosen)
        self.log_dict({f"train/{name}": value.detach() for name, value in figures.items()}, batch_size=rows)
        return figures["loss"] + orthogonality(self.model)

    def optimizer_step(self, *args: Any, **more: Any) -> None:
        """Let AdaLoRA move its ranks after each step, while the gradients are still there and before any callback."""
        super().optimizer_step(*args, **more)
        allocate_ranks(self.model, self.trainer.global_step + 1)

    def configure_optimizers(self) -> Any:
        """AdamW on all that is trainable."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.optimisation.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.optimisation.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.optimisation.factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def _trained(self) -> set[str]:
        return {f"model.{name}" for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def _identity(self) -> dict[str, Any]:
        return {"objective": type(self).__name__, "seed": self.seed, "steps": self.optimisation.steps}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out."""
        trained = self._trained
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["tuner"] = {**self._identity, "allocation": allocation_state(self.model)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: it is of another run.
        """
        saved = dict(checkpoint.get("tuner", {}))
        allocation = saved.pop("allocation", None)
        if saved != self._identity or set(checkpoint["state_dict"]) != self._trained:
            raise UserError(
                "ckpt_path is of a run with another objective, seed, length or adapter; resume with its own"
            )
        restore_allocation(self.model, allocation)
