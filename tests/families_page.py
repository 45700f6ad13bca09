"""Writes the tables of circuitlit/model/README.md from tiny models of all families: `python tests/families_page.py`."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from conftest import CONFIGS
from families import FAMILIES
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from circuitlit.masked.short_attention import rotates_by_halves
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.families import anatomy_of, attention_window, final_softcap, graph_of, logit_factor
from circuitlit.model.norms import recognise
from circuitlit.model.refused import REFUSED
from circuitlit.model.weights import empty_model

PAGE = Path(__file__).parent.parent / "circuitlit" / "model" / "README.md"
MARKER = "<!-- Everything below is written by tests/families_page.py. -->"


def norms(block: nn.Module, row: Anatomy) -> str:
    """Which norms a block has, and where."""
    known = recognise(getattr(block, row.attn_norm or row.post_norm or ""))
    kind = "LN without weights" if known is None else ("LN" if known.centred else "RMS") + " 1+w" * known.one_more
    said = {
        "one for both": row.attn_norm == row.mlp_norm,
        "behind alone": row.post_norm is not None and not row.attn_norm,
        "behind, too": row.post_norm is not None and bool(row.attn_norm),
        "of all heads together": row.joint,
        "of heads": not row.joint and hasattr(block.get_submodule(row.attention), row.head_norms[0]),
        "behind the rotation": row.head_norms_last,
    }
    return ", ".join([kind, *(word for word, there in said.items() if there)])


def positions(config: PretrainedConfig, block: nn.Module, model: nn.Module, row: Anatomy) -> str:
    """How a model knows positions."""
    if row.borrowed:
        return "the model's own"
    if row.rotary is None or row.rotate is None:
        return "learned" if len(list(attrgetter(row.positions or "")(model).parameters())) else "sinusoid"
    kinds = [next(iter(config.layer_types))] if row.rotary_by_layer else []
    turned = attrgetter(row.rotary)(model)(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.long), *kinds)
    head = row.parts(block, graph_of(config)).q.weight.shape[-1]
    words = ["by halves" if rotates_by_halves(row.rotate) else "interleaved"]
    words += ["of a part of each head"] if turned[0].shape[-1] < head else []
    words += ["another for each kind of layer"] if row.rotary_by_layer else []
    words += ["not in all layers"] if row.unrotated else []
    return f"rotation {', '.join(words)}"


def further(config: PretrainedConfig, model: nn.Module, row: Anatomy) -> str:
    """What else a family may have."""
    said = {
        "attention borrowed": row.borrowed,
        "norm on embeddings": row.embedded is not None,
        "q, k, v in one matrix": len(row.projections) == 1,
        "experts": any("experts" in name for name, _ in model.named_modules()) and not row.routers,
        "experts, routers": row.routers,
        "factors": row.embed_factor != 1 or row.write_factor != 1 or logit_factor(config) != 1,
        "bound on scores": row.softcap is not None,
        "bound on logits": final_softcap(config) is not None,
        "windows": attention_window(config) is not None,
    }
    return ", ".join(word for word, there in said.items() if there)


def row_of(name: str, numbers: dict[str, Any]) -> str:
    """A line of the table."""
    family, _, variant = name.replace("_sequential", ":sequential").partition(":")
    config = AutoConfig.for_model(family, **numbers)
    model, row = empty_model(config, torch.float32), anatomy_of(config)
    block = row.blocks(model)[-1]
    columns = [
        f"`{family}`{f' ({variant})' if variant else ''}",
        "parallel" if row.parallel else "one after the other",
        norms(block, row),
        positions(config, block, model, row),
        further(config, model, row),
    ]
    return f"| {' | '.join(columns)} |"


def page() -> str:
    """The whole page."""
    families = {**CONFIGS, **FAMILIES}
    lines = [
        "## Model types that can be masked",
        "",
        "| model type | attention and MLP | norms | positions | further |",
        "| --- | --- | --- | --- | --- |",
        *(row_of(name, families[name]) for name in sorted(families)),
        "",
        "## Model types that are refused, and why",
        "",
        "| reason | model types |",
        "| --- | --- |",
    ]
    for reason in dict.fromkeys(REFUSED.values()):
        types = ", ".join(f"`{name}`" for name, why in REFUSED.items() if why == reason)
        lines.append(f"| {reason} | {types} |")
    return PAGE.read_text().partition(MARKER)[0] + MARKER + "\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
