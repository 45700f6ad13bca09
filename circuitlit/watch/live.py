"""A model in training: what may be read of it, and how everything stays as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from circuitlit.errors import UserError
from circuitlit.model import Subject
from circuitlit.model.linear import unwrap
from circuitlit.model.load import load_subject
from circuitlit.surroundings import as_it_was

AFTERWARDS = "or watch its checkpoints afterwards: python -m circuitlit watch checkpoints=FOLDER"
TRAINERS = ("accelerate.", "trl.", "torch.")  # whose code may stand for a whole model's forward


@contextmanager
def beside_training(device: torch.device) -> Iterator[None]:
    """Compute with gradients and without autocast; random numbers and global settings stay as they were."""
    with as_it_was(), torch.autocast(device.type, enabled=False), torch.enable_grad():
        yield


def whole_model(model: nn.Module) -> nn.Module:
    """The model without parallel and compiled wrappers, its PEFT wrapper kept.

    Raises:
        UserError: its weights are not whole in this process.
    """
    refuse_sharded(model)
    while True:
        inner = next((getattr(model, name) for name in ("module", "_orig_mod") if hasattr(model, name)), None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def refuse_sharded(model: nn.Module) -> None:
    """Refuse weights that are shared out over processes or devices.

    Raises:
        UserError: they are; what shares them out is named.
    """
    how = None
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        how = "FSDP"
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            how = "FSDP or tensor parallelism"
        elif hasattr(parameter, "ds_id"):
            how = "DeepSpeed's ZeRO-3"
    if how is not None:
        raise UserError(
            f"{how} has shared this model's weights out, and a watch reads whole ones; train with DDP or "
            f"ZeRO-1 or -2, {AFTERWARDS}"
        )
    places = {parameter.device for parameter in model.parameters()}
    if len(places) > 1:
        raise UserError(
            f"this model's weights lie on {len(places)} devices, and a watch reads those of one; train with "
            f"DDP, {AFTERWARDS}"
        )


def subject_of(model: nn.Module, tokenizer: Any, name: str | None = None) -> Subject:
    """A frozen view that shares the weights of a model in training, as the library has it.

    Trainers put a `forward` of their own on the model as a whole: Accelerate's casts, TRL's computes the loss without
    the logits. The view, whose residual stream is read, has none of them.
    """
    model = whole_model(model)
    with ExitStack() as back:
        for one in {id(one): one for one in (model, unwrap(model))}.values():
            if _origin(one.__dict__.get("forward")).startswith(TRAINERS):
                back.callback(one.__dict__.__setitem__, "forward", one.__dict__.pop("forward"))
        known = str(getattr(unwrap(model), "name_or_path", "") or "")
        return load_subject(model, tokenizer, name=name or Path(known).name or None)


def _origin(forward: Any) -> str:
    """Module of the code that a `forward` runs, whatever it says of itself; empty without one."""
    return getattr(getattr(forward, "__func__", forward), "__globals__", {}).get("__name__", "")


def language_model(module: nn.Module, where: str | None = None) -> nn.Module:
    """The Hugging Face model in somebody's module.

    Args:
        module: a LightningModule, say.
        where: attribute that holds it, dots within; None looks for the only one.

    Raises:
        UserError: there is none, or there are several.
    """
    if where is not None:
        try:
            return module.get_submodule(where)
        except AttributeError as error:
            raise UserError(f"model={where}: the {type(module).__name__} has no such module") from error
    found = dict(_outermost(module))
    if len(found) != 1:
        names = f"has several ({', '.join(found)})" if found else "holds none"
        raise UserError(f"a watch needs one Hugging Face model, the {type(module).__name__} {names}; give model=NAME")
    return next(iter(found.values()))


def _outermost(module: nn.Module, name: str = "") -> Iterable[tuple[str, nn.Module]]:
    if isinstance(module, PreTrainedModel | PeftModel):
        yield name, module
        return
    for child, inner in module.named_children():
        yield from _outermost(inner, f"{name}.{child}".strip("."))
