"""How attention is laid out: where a fused projection has its heads, how positions are looked up or turned in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor, nn

from circuitlit.graph import Graph

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Split = Callable[[Sequence[Tensor], Graph], tuple[Tensor, Tensor, Tensor]]
Place = Callable[[nn.Module, Tensor], Tensor]


@functools.cache
def rotation(family: str) -> Rotate:
    """A family's own way to apply cosines and sines; its module is read when it is first used."""

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return import_module(f"transformers.models.{family}.modeling_{family}").apply_rotary_pos_emb(q, k, cos, sin)

    return rotate


def columns(split: Split, widths: Sequence[int], graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Where queries, keys and values lie in the projections' outputs laid side by side: `[head, width]` each.

    Args:
        split: takes the outputs apart.
        widths: of the outputs.
        graph: the model's.
    """
    return split(torch.arange(sum(widths)).split(list(widths)), graph)


def separate(outputs: Sequence[Tensor], graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Llama: a matrix each."""
    q, k, v = outputs
    heads, kv_heads = graph.n_heads, graph.n_kv_heads
    return q.unflatten(-1, (heads, -1)), k.unflatten(-1, (kv_heads, -1)), v.unflatten(-1, (kv_heads, -1))


def in_turn(outputs: Sequence[Tensor], graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """GPT-2, Phi-3: one matrix, first all queries, then all keys, then all values."""
    sizes = [graph.n_heads, graph.n_kv_heads, graph.n_kv_heads]
    q, k, v = outputs[0].unflatten(-1, (sum(sizes), -1)).split(sizes, -2)
    return q, k, v


def by_group(outputs: Sequence[Tensor], graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """GPT-NeoX, Falcon: one matrix; with each key and value, and ahead of them, the queries that share them."""
    group = graph.n_heads // graph.n_kv_heads
    q, k, v = outputs[0].unflatten(-1, (graph.n_kv_heads, group + 2, -1)).split([group, 1, 1], -2)
    return q.flatten(-3, -2), k.squeeze(-2), v.squeeze(-2)


def in_quarters(outputs: Sequence[Tensor], graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """CodeGen: one matrix of four parts, each with its queries, then its values, then its keys."""
    parts = outputs[0].unflatten(-1, (4, 3, graph.n_heads // 4, -1))
    q, v, k = (parts.select(-3, kind).flatten(-3, -2) for kind in range(3))
    return q, k, v


def place(table: nn.Module, places: Tensor) -> Tensor:
    """Position embeddings of a table of rows."""
    return table(places)


def place_opt(table: nn.Module, places: Tensor) -> Tensor:
    """OPT's position embeddings, whose module takes the places twice."""
    return table(places, position_ids=places)  # adds OPT's offset of 2 itself


def place_xglm(table: nn.Module, places: Tensor) -> Tensor:
    """XGLM's position embeddings, whose module takes rows of places."""
    return table(places.view(1, -1)).view(*places.shape, -1)
