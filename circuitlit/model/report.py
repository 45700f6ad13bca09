"""What a library says when it loads weights, read and put in one sentence: nothing is left at random in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from circuitlit.errors import UserError

OLD_BUFFERS = r"\.(attn|attention|self_attn)\.(masked_)?bias$|rotary_emb\.inv_freq$"  # of older versions' checkpoints


@contextmanager
def translated(where: str | Path) -> Iterator[None]:
    """Make one sentence of whatever goes wrong inside: use it around a library's loader alone.

    Args:
        where: the folder, file or name that is loaded.

    Raises:
        UserError: something went wrong.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{where} needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:
        raise UserError(
            f"{where} could not be loaded ({first_line(error)}); give a Hugging Face name with a hub at hand, or a "
            "folder that save_pretrained wrote"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, without its final stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if not line.endswith(":")), lines[0] if lines else "")
    return f"no entry {said}" if isinstance(error, KeyError) else said.rstrip(".:") or type(error).__name__


def load_whole(where: str, folder: str | Path, **how: Any) -> PreTrainedModel:
    """A model whose every weight comes from its files.

    Args:
        where: what is loaded, for messages.
        folder: or name on the hub.
        how: for `from_pretrained`.

    Raises:
        UserError: it cannot be loaded, or its files do not fill it exactly.
    """
    load: Any = AutoModelForCausalLM.from_pretrained
    with translated(where):  # other shapes are refused below, by name
        model, found = load(folder, output_loading_info=True, ignore_mismatched_sizes=True, **how)
    refuse_incomplete(where, model, **found)
    return model


def refuse_incomplete(
    where: str | Path,
    model: PreTrainedModel,
    missing_keys: Iterable[str],
    unexpected_keys: Iterable[str],
    mismatched_keys: Iterable[tuple[str, Any, Any]] = (),
    **_others: Any,
) -> None:
    """Refuse a checkpoint that does not fill a model exactly; tied weights and buffers aside.

    Args:
        where: the checkpoint's name.
        model: what was filled.
        missing_keys, unexpected_keys, mismatched_keys: transformers' loading report.

    Raises:
        UserError: something is missing, left over or of another shape.
    """
    for key, stored, wanted in sorted(mismatched_keys, key=lambda one: one[0]):
        raise UserError(f"{where}: {key} has the shape {list(stored)}, config.json says {list(wanted)}")
    if missing := sorted(missing_keys):
        raise UserError(
            f"{where} has no weights for {named(missing)}, which would be random; save the whole model there"
        )
    if surplus := sorted(key for key in unexpected_keys if not _is_buffer(key, model)):
        raise UserError(f"{where} holds {named(surplus)}, which the model of its config.json has no place for")


def _is_buffer(key: str, model: PreTrainedModel) -> bool:
    known = model._keys_to_ignore_on_load_unexpected or ()
    return any(key.endswith(name) for name, _ in model.named_buffers()) or any(
        re.search(pattern, key) for pattern in (OLD_BUFFERS, *known)
    )


def named(keys: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def refuse_not_finite(where: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that are not numbers, or infinite.

    Raises:
        UserError: there are such weights; the first is named.
    """
    for name, values in tensors:
        if not values.is_floating_point() or not values.numel() or values.is_meta:
            continue
        if not bool(torch.stack(torch.aminmax(values.detach())).isfinite().all()):
            raise UserError(f"{where}: {name} holds NaN or infinite values; take an earlier checkpoint")


def parameters(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Names and values of all that is saved with a model."""
    return model.state_dict(keep_vars=True).items()
