"""Adapters: read whole or not at all, and refused where they do more than change weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.model.borrow import frozen_view
from circuitlit.model.families import anatomy_of
from circuitlit.model.files import check_folder
from circuitlit.model.linear import refuse_curved, unwrap
from circuitlit.model.report import first_line, named
from circuitlit.surroundings import as_it_was

if TYPE_CHECKING:  # half a second, and most models have no adapter
    from peft import PeftModel

LENGTH = 8  # tokens of the probe's rows
NAME = "default"


def load_adapter(model: nn.Module, adapter: str) -> PeftModel:
    """A model with a PEFT adapter on it, unmerged.

    Args:
        model: what the adapter was trained on.
        adapter: its folder or hub name.

    Raises:
        UserError: there is none, it does not fit the model, or its weights are not those that its configuration names.
    """
    from peft import PeftConfig, PeftModel, PeftModelForCausalLM, TaskType

    if has_adapters(model):
        raise UserError(
            f"the model has an adapter already, beside which '{adapter}' is not loaded; merge it, or leave one"
        )
    folder = Path(os.path.expanduser(adapter))
    if "/" not in adapter and not folder.is_dir():
        raise UserError(f"adapter '{adapter}' is neither a folder nor a hub name like owner/name; name a PEFT folder")
    if folder.is_dir():
        _check_files(folder)
        adapter = str(folder)
    try:
        config = PeftConfig.from_pretrained(adapter)
        config.inference_mode = True
        kind = PeftModelForCausalLM if config.task_type == TaskType.CAUSAL_LM else PeftModel
        with as_it_was():  # PEFT draws weights first
            wrapped = kind(model, config, NAME)  # type: ignore[arg-type]
        found = wrapped.load_adapter(adapter, NAME)  # not `from_pretrained`, which keeps this report to itself
    except Exception as error:
        raise UserError(
            f"adapter '{adapter}' could not be loaded ({first_line(error)}); name the folder of a PEFT adapter that "
            "was trained on this model"
        ) from error
    if missing := _alone(wrapped, found.missing_keys):
        raise UserError(f"adapter '{adapter}' has no weights for {named(missing)}; save it again")
    if found.unexpected_keys and not config.is_prompt_learning:  # a prompt is always said to be unexpected
        raise UserError(f"adapter '{adapter}' holds {named(found.unexpected_keys)}, which this model has no place for")
    return wrapped


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put anything in the place of a model's own modules."""
    return any(hasattr(module, "base_layer") or hasattr(module, "modules_to_save") for module in model.modules())


def _alone(wrapped: PeftModel, missing: list[str]) -> list[str]:
    """Those missing weights that no other name stands for (VB-LoRA's layers share their bank)."""
    weights = wrapped.state_dict(keep_vars=True)
    there = {id(value) for name, value in weights.items() if name not in missing}
    return [name for name in missing if id(weights.get(name)) not in there]


def _check_files(folder: Path) -> None:
    from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

    if not (folder / "adapter_config.json").is_file():
        inside = sorted(file.parent.name for file in folder.glob("*/adapter_config.json"))
        hint = f"name one of the folders in it: {', '.join(inside[:5])}" if inside else "name a PEFT folder"
        raise UserError(f"adapter '{folder}' has no adapter_config.json; {hint}")
    if not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise UserError(f"adapter '{folder}' has no {SAFETENSORS_WEIGHTS_NAME}; save it again")
    check_folder(folder)


@torch.no_grad()
def check_adapters(wrapped: PeftModel) -> None:
    """Refuse an adapter that acts outside the weights, or by which a projection is no affine map any more.

    One batch goes through PEFT's own forward and through the model inside, which is all that is analysed.

    Args:
        wrapped: with its adapters, in eval mode; nothing is changed.

    Raises:
        UserError: the two differ; the adapter's type is named.
    """
    base = unwrap(wrapped)
    kinds = sorted(
        {str(getattr(config.peft_type, "value", config.peft_type)) for config in wrapped.peft_config.values()}
    )
    what = f"the adapter ({', '.join(kinds)})"
    ids = _probe(wrapped).to(base.device)
    try:
        theirs = wrapped(input_ids=ids, use_cache=False).logits
    except Exception as error:
        raise UserError(f"{what} needs more than token ids ({first_line(error)}); take LoRA or IA3") from error
    ours = base(input_ids=ids, use_cache=False).logits
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=0, atol=_tolerance(ours)):
        raise UserError(f"{what} acts outside the model's weights, where masks do not reach; take LoRA or IA3")
    anatomy = anatomy_of(base.config)
    for block in anatomy.blocks(base):
        attention = block.get_submodule(anatomy.attention)
        for name in (*anatomy.projections, anatomy.out):
            if not hasattr(attention, name):
                raise UserError(f"{what} puts a {type(attention).__name__} in the attention's place; take LoRA or IA3")
            refuse_curved(getattr(attention, name))


def _tolerance(logits: Tensor) -> float:
    """Rounding: 32 units in the last place of the largest logit."""
    return 32 * torch.finfo(logits.dtype).eps * max(1.0, float(logits.abs().max()))


def check_fresh_adapters(wrapped: PeftModel) -> None:
    """As `check_adapters`, of adapters that are not trained yet and so may change nothing: with random weights.

    Raises:
        UserError: as there.
    """
    view, draw = frozen_view(wrapped), torch.Generator().manual_seed(0)
    for own, copied in zip(wrapped.parameters(), view.parameters(), strict=True):
        if own.requires_grad:
            noise = torch.randn(own.shape, generator=draw).to(own.device, own.dtype)
            copied.data = own.detach() + 0.1 * noise
    check_adapters(view)  # type: ignore[arg-type]


def _probe(wrapped: PeftModel) -> Int[Tensor, "row pos"]:
    """Random tokens; a row holds those that switch an adapter on (aLoRA), where there are such."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = int(unwrap(wrapped).config.vocab_size)
    ids = torch.randint(vocabulary, (2, LENGTH), generator=draw)
    configs: list[Any] = list(wrapped.peft_config.values())
    for switch in (getattr(config, "alora_invocation_tokens", None) for config in configs):
        if switch:
            ids = torch.cat([ids, torch.tensor(switch).expand(2, -1), ids[:, :2]], 1)
    return ids
