"""The stock forward from some block on, with single readers, heads or a layer's attention changed.

What lies ahead of the first change is known, so it is not computed again; nothing is masked, so a block costs what it
costs in the stock model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from circuitlit.heads.attention import Heads, Stream
from circuitlit.heads.roles import Head
from circuitlit.model.anatomy import HeadMap

MLP = -1  # in the place of a head's number
Vectors = Float[Tensor, "batch head pos width"]


@dataclass(frozen=True)
class Seen:
    """What some readers of one block see in place of the stream that runs.

    Attributes:
        places: by kind ("q", "k", "v"), the heads whose vectors are made from `stream`.
        stream: what these heads see, ahead of the block.
        mlp: what the MLP sees, None where it sees what runs.
    """

    places: Mapping[str, list[int]] = field(default_factory=dict)
    stream: Stream | None = None
    mlp: Stream | None = None


@torch.no_grad()
def run_tail(
    heads: Heads,
    first: int,
    stream: Stream,
    seen: Mapping[int, Seen] | None = None,
    replaced: Mapping[Head, Float[Tensor, "#batch #pos width"]] | None = None,
    shift: Stream | None = None,
    where: Bool[Tensor, "batch pos"] | None = None,
) -> Stream:
    """The residual stream ahead of the final norm.

    Args:
        heads: the subject's.
        first: first block to compute; may be the number of blocks.
        stream: residual stream ahead of it.
        seen: by block, readers that see something else.
        replaced: by `(layer, head)`, other results ahead of the output projection; of head -1, other MLP outputs.
        shift: added to what the attention of block `first` writes.
        where: tokens at which results are replaced; None is everywhere.
    """
    by_layer: dict[int, dict[int, Tensor]] = {}
    for (layer, head), result in (replaced or {}).items():
        by_layer.setdefault(layer, {})[head] = result
    for layer in range(first, len(heads.parts)):
        parts, other = heads.parts[layer], (seen or {}).get(layer, Seen())
        results = _results(heads, layer, stream, other)
        own = dict(by_layer.get(layer, {}))
        mlp = own.pop(MLP, None)
        for head, result in own.items():
            results[:, head] = _at(where, result, results[:, head])
        written = results.transpose(1, 2).flatten(2) @ parts.out.flatten(0, 1)
        if parts.out_bias is not None:
            written = written + parts.out_bias
        if shift is not None and layer == first:
            written = written + shift
        after = stream + written
        read = stream if heads.graph.parallel else after
        made = parts.mlp(parts.mlp_norm(read if other.mlp is None else other.mlp))
        stream = after + (made if mlp is None else _at(where, mlp, made))
    return stream


def _at(where: Bool[Tensor, "batch pos"] | None, result: Tensor, otherwise: Tensor) -> Tensor:
    return result if where is None else torch.where(where[..., None], result, otherwise)


def _results(heads: Heads, layer: int, stream: Stream, other: Seen) -> Vectors:
    """Results of a block's heads, some of whose queries, keys and values come from another stream."""
    parts = heads.parts[layer]
    maps = {"q": parts.q, "k": parts.k, "v": parts.v}
    normed = parts.attn_norm(stream)
    vectors = {kind: heads.vectors(layer, kind, normed, map_) for kind, map_ in maps.items()}
    if other.places:
        assert other.stream is not None
        normed = parts.attn_norm(other.stream)
        for kind, places in other.places.items():
            vectors[kind][:, places] = heads.vectors(layer, kind, normed, _some(maps[kind], places))
    q, k, v = vectors.values()
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=parts.scale, enable_gqa=heads.group > 1)


def _some(heads: HeadMap, places: list[int]) -> HeadMap:
    return HeadMap(heads.weight[places], None if heads.bias is None else heads.bias[places])
