"""Anatomies guessed from the names of a model's modules; `check` tries them and takes one, or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from circuitlit.errors import UserError
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.bases import BEHIND
from circuitlit.model.families import ANATOMIES, GUESSED
from circuitlit.model.layouts import by_group, in_quarters, in_turn, separate
from circuitlit.model.refused import REFUSED, UNREAD, refusal
from circuitlit.model.trusted import key_of, record_of

ATTENTION = ("self_attn", "self_attention", "attention", "attn")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
AHEAD = ("input_layernorm", "ln_1", "norm_1", "ln1", "norm1", "attention_norm", "attn_norm", "self_attn_layer_norm")
BETWEEN = ("pre_feedforward_layernorm", "pre_mlp_layernorm", "post_attention_layernorm", "ln_2", "norm_2", "ln2")
BETWEEN = (*BETWEEN, "norm2", "ffn_norm", "mlp_norm", "final_layer_norm")
OUT = ("o_proj", "out_proj", "c_proj", "wo", "dense", "proj")
LAST = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "final_norm")
APART = (("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"), ("query", "key", "value"), ("q", "k", "v"))
FUSED = ("qkv_proj", "query_key_value", "Wqkv", "wqkv", "c_attn", "qkv")


def guesses(model: PreTrainedModel) -> Iterator[Anatomy]:
    """Anatomies that a model's names allow, the likeliest first; attention is borrowed in all.

    Raises:
        UserError: its modules have other names than those of any usual decoder.
    """
    lists = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.ModuleList) and len(one)]
    path, blocks = max(
        ((name, one) for name, one in lists if _named(one[0], ATTENTION)), key=lambda at: len(at[1]), default=("", None)
    )
    block = None if blocks is None else blocks[0]
    parent = path.rpartition(".")[0]
    attention = None if block is None else getattr(block, _named(block, ATTENTION))
    last = _named(model.get_submodule(parent), LAST)
    if block is None or attention is None or not (last and _named(block, MLP) and _named(attention, OUT)):
        raise UserError(f"the modules of a {type(model).__name__} have no names that tell where blocks read and write")
    apart = next((names for names in APART if all(hasattr(attention, name) for name in names)), None)
    one = _named(attention, FUSED)
    if apart is None and not one:
        raise UserError(f"the attention of a {type(model).__name__} has no projections of a known name")
    ahead, second = _named(block, AHEAD), _named(block, BETWEEN)
    layouts = [(apart, separate)] if apart else [((one,), split) for split in (in_turn, by_group, in_quarters)]
    for (projections, split), parallel in product(layouts, (False, True) if second else (True,)):
        row = Anatomy(
            layers=path,
            final_norm=f"{parent}.{last}".lstrip("."),
            attn_norm=ahead,
            mlp_norm=second or ahead,
            attention=_named(block, ATTENTION),
            projections=projections,
            split=split,
            out=_named(attention, OUT),
            activation="act_fn",
            mlp=_named(block, MLP),
            parallel=parallel,
            borrowed=True,
        )
        yield row if ahead else replace(row, **BEHIND)


def take_guess(model: PreTrainedModel, cache: Path) -> None:
    """Give a model type without a row the guess that a check of this model took, or else the first one, unchecked.

    Raises:
        UserError: the type is refused for a reason that no guess mends, or its names tell nothing.
    """
    kind = model.config.model_type
    if kind in ANATOMIES and kind not in GUESSED:
        return
    if REFUSED.get(kind, UNREAD) != UNREAD:
        raise UserError(refusal(kind))
    record = record_of(cache, key_of(model))
    found = json.loads(record.read_text())["guess"] if record.is_file() else {"number": 0, "changes": {}}
    ANATOMIES[kind] = replace(list(guesses(model))[found["number"]], **found["changes"])
    GUESSED.add(kind)


def _named(module: nn.Module, names: tuple[str, ...]) -> str:
    """The first of some names that a module has; empty for none."""
    return next((name for name in names if isinstance(getattr(module, name, None), nn.Module)), "")
