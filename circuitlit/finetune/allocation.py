"""What AdaLoRA does beside the optimizer's steps: its penalty, its moves of ranks, and what it remembers of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:  # who measures a tuned model needs none of it
    from peft import AdaLoraModel


def _adalora_of(model: nn.Module) -> AdaLoraModel | None:
    tuner: Any = getattr(model, "base_model", None)
    return tuner if hasattr(tuner, "rankallocator") else None


def orthogonality(model: nn.Module) -> Float[Tensor, ""] | float:
    """AdaLoRA's penalty on P and Q, mean over matrices; 0 for other models.

    Source: Zhang et al., arXiv 2303.10512, equation 4; PEFT takes the norm instead of its square, and so do we.
    """
    tuner = _adalora_of(model)
    if tuner is None:
        return 0.0
    grams = [p @ p.T for n, p in model.named_parameters() if "lora_A" in n]
    grams += [p.T @ p for n, p in model.named_parameters() if "lora_B" in n]
    away = [torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
    return tuner.peft_config[tuner.trainable_adapter_name].orth_reg_weight * torch.stack(away).mean()  # type: ignore[attr-defined]


@torch.no_grad()
def allocate_ranks(model: nn.Module, step: int) -> None:
    """AdaLoRA's move of ranks after an optimizer step; nothing for other models."""
    tuner = _adalora_of(model)
    if tuner is not None:
        tuner.update_and_allocate(step)


def allocation_state(model: nn.Module) -> dict[str, Any] | None:
    """What AdaLoRA remembers between steps."""
    tuner = _adalora_of(model)
    if tuner is None:
        return None
    kept = {name: getattr(tuner.rankallocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
    return kept | {"rank_pattern": tuner.peft_config[tuner.trainable_adapter_name].rank_pattern}  # type: ignore[attr-defined]


def restore_allocation(model: nn.Module, state: dict[str, Any] | None) -> None:
    """Give AdaLoRA its memory back."""
    tuner = _adalora_of(model)
    if tuner is None or state is None:
        return
    tuner.peft_config[tuner.trainable_adapter_name].rank_pattern = state["rank_pattern"]  # type: ignore[attr-defined]
    for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        setattr(tuner.rankallocator, name, state[name])
