"""Where a model that is not read rightly first differs, and what mends it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.evaluate.check.identities import Prompts, apart, recorded, stream_steps
from circuitlit.masked import MaskedModel
from circuitlit.masked.block import MaskedBlock
from circuitlit.masked.borrowed import Told
from circuitlit.masked.short_attention import Rotary
from circuitlit.model import Subject
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.layouts import Split, by_group, in_turn, rotation

Turn = Rotary | Told | None
ROTATIONS = {"by halves": "llama", "of neighbours (interleaved)": "cohere", "of a part, by halves": "gpt_neox"}


@torch.no_grad()
def first_difference(subject: Subject, prompts: Prompts, tolerance: float) -> tuple[str | None, str | None]:
    """The first place at which the model does not do what is read off it, and the one change that mends it there.

    First the residual stream, whose writes may lack a factor; then each layer's heads on the stock run's own stream.

    Returns:
        Place and remedy; None for a place where every part alone does as it should, and for an unknown remedy.
    """
    for place, gained, parts in stream_steps(subject, prompts.clean):
        if apart(torch.stack(list(parts.values())).sum(0), gained) > tolerance:
            return place, _factor(gained, parts, tolerance)
    writes, reads = recorded(subject, prompts.clean)
    model, batch, length = MaskedModel(subject), *prompts.clean.shape
    turns = model.turns(prompts.clean, reads.attention[0].flatten(0, 1))
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, MaskedBlock)
        stream, found = reads.attention[layer], writes.heads[layer]
        if apart(block.results(stream, turns[layer]), found) > tolerance:
            return f"layer {layer}, heads' results", _other(subject, layer, stream, found, turns[layer], tolerance)
        mlp_seen = reads.mlp[layer].reshape(1, batch * length, -1)
        if apart(block.write_mlp(mlp_seen)[0], writes.mlps[layer].flatten(0, 1)) > tolerance:
            return f"layer {layer}, the MLP", None
    hidden = subject.hidden(prompts.clean)
    if apart(subject.unembed(hidden), subject.model(prompts.clean, use_cache=False).logits) > tolerance:
        return "the logits", None
    return None, None


def _factor(gained: Tensor, parts: dict[str, Tensor], tolerance: float) -> str | None:
    """Factors on the writes that make them what the stream gains, by least squares, if there are such."""
    writes = torch.stack([part.double().flatten() for part in parts.values()], 1)
    goal = gained.double().flatten()
    factors = torch.linalg.lstsq(writes, goal[:, None]).solution[:, 0]
    if not apart(writes @ factors, goal) <= tolerance:
        return None
    named = zip(parts, factors.tolist(), strict=True)
    return " and ".join(f"{name} ×{factor:.4g}" for name, factor in named if abs(factor - 1) > 1e-3)


def _other(subject: Subject, layer: int, stream: Tensor, found: Tensor, turn: Turn, tolerance: float) -> str | None:
    """The one change to the anatomy with which a layer's heads give what they gave in the stock run."""
    block = subject.anatomy.blocks(subject.model)[layer]
    for name, anatomy, rotary in _changes(subject, turn):
        try:
            made = MaskedBlock(anatomy.parts(block, subject.graph), subject.graph, layer).results(stream, rotary)
        except (RuntimeError, ValueError, TypeError, AttributeError, UserError):
            continue  # a layout that these shapes do not have
        if made.shape == found.shape and apart(made, found) <= tolerance:
            return name
    return None


def _changes(subject: Subject, turn: Turn) -> Iterator[tuple[str, Anatomy, Turn]]:
    """Names of changes, each with the anatomy and the rotation that it makes."""
    anatomy, heads, width = subject.anatomy, subject.graph.n_heads, subject.model.config.hidden_size
    if isinstance(turn, Rotary):
        yield "no rotation in this layer", anatomy, None
        for name, family in ROTATIONS.items():
            yield f"a rotation {name}", anatomy, replace(turn, rotate=rotation(family))
    for order in list(permutations(range(3)))[1:]:
        named = ", ".join("qkv"[place] for place in order)
        yield f"queries, keys and values taken as {named}", replace(anatomy, split=_ordered(anatomy.split, order)), turn
    for name, split in (("group by group", by_group), ("in turn", in_turn)):
        yield f"queries, keys and values {name}", replace(anatomy, split=split), turn
    for scale in (1.0, (width // heads) ** -0.5, 1 / (width // heads), width**-0.5):
        yield f"{scale:.4g} as the factor on scores", replace(anatomy, scale=scale), turn
    yield "norms of queries and keys elsewhere", replace(anatomy, head_norms_last=not anatomy.head_norms_last), turn
    yield "no norms of queries and keys", replace(anatomy, head_norms=("", "")), turn


def _ordered(split: Split, order: tuple[int, ...]) -> Callable:
    def other(outputs, graph):
        parts = split(outputs, graph)
        return tuple(parts[place] for place in order)

    return other
