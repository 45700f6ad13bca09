"""A live model is borrowed: what works on it is a model of its own that shares its weights, and nothing else."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict

from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.model.linear import unwrap
from circuitlit.model.logits import unembedder
from circuitlit.model.trusted import patches

log = logging.getLogger(__name__)
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def frozen_view(model: nn.Module, patched: bool = False) -> nn.Module:
    """A model that shares another's weights and has all else for itself: in eval mode, not trainable, without hooks.

    Whatever is done with it (hooks, other modes, a dtype, a device, adapters) leaves the other as it is. When that one
    is trained on, in place as optimizers do it, the view's weights move with it.

    Args:
        model: a Hugging Face causal language model; a PEFT wrapper is kept.
        patched: True lets in modules whose `forward` was replaced, for a check of the model to judge.

    Raises:
        UserError: it is none, or holds something that cannot be copied, or a module whose `forward` was replaced.
    """
    _refuse_others(model, patched)
    known: dict[int, object] = {}  # what `deepcopy` is to take instead of a copy
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                known[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:  # those outside the state dict are written to in forwards (rotary frequencies)
                own = key in module._non_persistent_buffers_set
                known[id(buffer)] = buffer.detach().clone() if own else buffer.detach()
        known |= {id(value): value.detach() for value in module.__dict__.values() if isinstance(value, Tensor)}
        known |= {id(getattr(module, hooks)): OrderedDict() for hooks in HOOKS}
    _refuse_hooked_adapters(model)
    hooked = [name or "the model" for name, module in model.named_modules() if _hooks_of(module)]
    if hooked:
        log.warning("the forward hooks on %s are left out of what is analysed", ", ".join(hooked[:3]))
    try:
        return copy.deepcopy(model, known).eval()
    except (TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"this {type(model).__name__} cannot be borrowed ({reason}); load it anew") from error


def _hooks_of(module: nn.Module) -> list[object]:
    """Hooks on a forward, but for that by which training asks embeddings for a gradient; it changes no value."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [hook for hook in hooks if not getattr(hook, "__name__", "").startswith("make_inputs_require_grad")]


def _refuse_others(model: nn.Module, patched: bool) -> None:
    """Refuse what is no causal language model, and modules that run something else than their class says.

    A masked forward reads weights, so it would miss what such a `forward` does. Accelerate's only move tensors.
    """
    for inner in ("module", "_orig_mod"):  # of parallel wrappers, and of torch.compile
        if hasattr(model, inner):
            raise UserError(f"a {type(model).__name__} wraps the model; give its .{inner}")
    base = unwrap(model)
    unembedder(base)
    changed = [] if patched else list(patches(base))
    if changed:
        raise UserError(f"{changed[0]} has a forward of its own, not its class's; load the model anew, or check_model")


def _refuse_hooked_adapters(model: nn.Module) -> None:
    """Refuse an adapter that acts by hooks, which are left out of a view, and out of a masked forward, too."""
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            inner = getattr(hook, "func", hook)
            if (getattr(inner, "__module__", None) or type(inner).__module__).startswith("peft.tuners."):
                kinds = ", ".join(str(one.peft_type.value) for one in getattr(model, "peft_config", {}).values())
                raise UserError(f"the adapter ({kinds}) acts by hooks, where masks do not reach; take LoRA or IA3")
