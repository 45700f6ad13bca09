"""From settings to PEFT adapters, for every architecture that the anatomy knows."""

from __future__ import annotations

import re
from collections.abc import Callable

from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuitlit.errors import UserError
from circuitlit.model.adapters import check_fresh_adapters

AdapterConfig = LoraConfig | IA3Config  # AdaLoRA's is one of LoRA
ConfigOf = Callable[[PreTrainedModel, int], AdapterConfig]


def lora(
    model: PreTrainedModel,
    steps: int,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: list[str] | str | None = None,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
) -> LoraConfig:
    """Low-rank adapters: `W + alpha / r * B A`.

    Args:
        model: what they go on.
        steps: not used; every adapter takes them.
        r: rank.
        alpha: scale.
        dropout: on the adapters' inputs.
        target_modules: names of linear modules, or one regular expression; None takes all but the readout.
        rank_pattern, alpha_pattern: other ranks and scales for modules whose names end in a regular expression's match,
            such as `{"layers.[0-3].mlp.up_proj": 32}`; the first match counts.

    Source: Hu et al., arXiv 2106.09685.
    """
    return LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=target_modules or "all-linear",
        rank_pattern=dict(rank_pattern or {}),
        alpha_pattern=dict(alpha_pattern or {}),
        fan_in_fan_out=_is_transposed(model),
        task_type="CAUSAL_LM",
    )


def adalora(
    model: PreTrainedModel,
    steps: int,
    init_r: int = 12,
    target_r: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: list[str] | str | None = None,
    warmup: float = 0.1,
    final: float = 0.3,
    every: int = 1,
    orthogonality: float = 0.5,
) -> AdaLoraConfig:
    """Adapters `P diag(E) Q` whose ranks move to where they matter.

    Args:
        model: what they go on.
        steps: optimizer steps of the training.
        init_r, target_r: mean rank at the start and at the end.
        alpha: scale.
        dropout: on the adapters' inputs.
        target_modules: as for `lora`.
        warmup, final: shares of the steps before the first and after the last move.
        every: steps between two moves.
        orthogonality: weight of the penalty that keeps P and Q orthogonal.

    Source: Zhang et al., arXiv 2303.10512.

    Raises:
        UserError: too few steps for a move.
    """
    if warmup + final >= 1 or round(warmup * steps) >= steps - round(final * steps):
        raise UserError(f"adapter=adalora has no step left to move ranks in {steps} steps; lower its warmup and final")
    return AdaLoraConfig(
        init_r=init_r,
        target_r=target_r,
        tinit=round(warmup * steps),
        tfinal=round(final * steps),
        deltaT=every,
        total_step=steps,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=target_modules or "all-linear",
        orth_reg_weight=orthogonality,
        fan_in_fan_out=_is_transposed(model),
        task_type="CAUSAL_LM",
    )


def ia3(
    model: PreTrainedModel,
    steps: int,
    target_modules: list[str] | str | None = None,
    feedforward_modules: list[str] | None = None,
) -> IA3Config:
    """One factor for each key, value and MLP activation: `diag(l) W`, and `W diag(l)` in the MLP.

    Args:
        model: what they go on.
        steps: not used; every adapter takes them.
        target_modules: names of linear modules; None takes what PEFT knows of the architecture: keys, values (together
            with queries where these are one module) and an MLP's module.
        feedforward_modules: those of them whose inputs, not outputs, are scaled; None takes PEFT's.

    Source: Liu et al., arXiv 2205.05638, section 3.3.

    Raises:
        UserError: only one of the two is given.
    """
    if (target_modules is None) != (feedforward_modules is None):
        raise UserError(
            "adapter.build: target_modules and feedforward_modules of ia3 go together; give both or neither"
        )
    return IA3Config(
        target_modules=target_modules,
        feedforward_modules=feedforward_modules,
        fan_in_fan_out=_is_transposed(model),
        task_type="CAUSAL_LM",
    )


def adapted(model: PreTrainedModel, config: AdapterConfig, revision: str | None = None) -> PeftModel:
    """The model with fresh adapters on it, which alone are trainable; at first they change nothing.

    Their folder names the model and its revision on the hub.

    Raises:
        UserError: no module, or none for one of the patterns, or no layer that an adapter can go on, or an adapter that
            acts outside the weights.
    """
    try:
        wrapped = get_peft_model(model, config, revision=revision)
    except ValueError as error:
        raise UserError(f"adapter.build.target_modules fits this model ill ({str(error).splitlines()[0]})") from error
    names = [name for name, module in wrapped.named_modules() if hasattr(module, "lora_A")]
    check_fresh_adapters(wrapped)  # type: ignore[arg-type]
    patterns: list[str] = []
    if isinstance(config, LoraConfig) and not isinstance(config, AdaLoraConfig):
        patterns = [*(config.rank_pattern or {}), *(config.alpha_pattern or {})]
    for pattern in patterns:
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            raise UserError(f"no adapted module has a name that ends in '{pattern}'; correct the pattern")
    return wrapped  # type: ignore[return-value]


def _is_transposed(model: nn.Module) -> bool:
    """True for GPT-2, whose weights are stored input first."""
    return any(isinstance(module, Conv1D) for module in model.modules())
