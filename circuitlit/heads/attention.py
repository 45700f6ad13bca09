"""Heads taken apart: attention patterns and what heads write, recomputed from the recorded residual stream.

The stock forward may use any attention kernel, so nothing is asked of it but the residual stream ahead of each block;
patterns are recomputed layer by layer with the anatomy's weights, and only one layer's are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.model import BlockParts, Subject
from circuitlit.model.anatomy import HeadMap
from circuitlit.model.families import layer_kinds
from circuitlit.model.logits import final_norm

Stream = Float[Tensor, "batch pos d"]


@contextmanager
def record_streams(subject: Subject) -> Iterator[list[Stream]]:
    """Record the residual stream ahead of every block and, last, ahead of the final norm, in one stock forward."""
    streams: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple) -> None:
        streams.append(args[0])

    anatomy = subject.anatomy
    norms = [anatomy.sees_stream(block) for block in anatomy.blocks(subject.model)]
    with ExitStack() as hooks:
        for norm in (*norms, final_norm(subject.model)):
            hooks.callback(norm.register_forward_pre_hook(keep).remove)
        yield streams


@torch.no_grad()
def run_streams(subject: Subject, ids: Int[Tensor, "batch pos"]) -> list[Stream]:
    """The residual streams of a stock forward: ahead of each block, then ahead of the final norm.

    Raises:
        UserError: a prompt that the model does not take.
    """
    with record_streams(subject) as streams:
        subject.hidden(ids)
    return streams


class Heads:
    """All heads of a subject, with query heads' own copies of grouped keys and values.

    Args:
        subject: the frozen model.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject, self.graph = subject, subject.graph
        if subject.anatomy.borrowed:
            raise UserError("this model's attention runs as its own code, which head scores do not see; take another")
        if self.graph.coupled or self.graph.inputs > 1:
            raise UserError(
                "head scores are not defined where a norm stands behind the attention (Gemma), nor for compiled "
                "programs (Tracr); take another model"
            )
        anatomy = subject.anatomy
        self.parts: list[BlockParts] = [anatomy.parts(block, self.graph) for block in anatomy.blocks(subject.model)]
        if any(parts.softcap is not None for parts in self.parts):
            raise UserError("this model bounds the scores of its attention, which head scores leave out; take another")
        self.group = self.graph.n_heads // self.graph.n_kv_heads

    @torch.no_grad()
    def pattern(
        self, layer: int, stream: Stream, queries_from: Stream | None = None
    ) -> Float[Tensor, "batch head pos key"]:
        """Attention of a layer's heads; rows are probabilities over earlier positions and the own one.

        Args:
            layer: the block.
            stream: residual stream ahead of it.
            queries_from: another stream for the queries, where only they are patched.
        """
        parts, length = self.parts[layer], stream.shape[1]
        q = self.vectors(layer, "q", parts.attn_norm(stream if queries_from is None else queries_from), parts.q)
        k = self.vectors(layer, "k", parts.attn_norm(stream), parts.k)
        scores = q @ k.repeat_interleave(self.group, 1).transpose(-1, -2) * parts.scale
        future = torch.ones(length, length, dtype=torch.bool, device=stream.device).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    def vectors(self, layer: int, kind: str, normed: Stream, heads: HeadMap) -> Float[Tensor, "batch head pos width"]:
        """Queries, keys (both normed and rotated where the architecture does so) or values as attention uses them.

        Args:
            layer: the block.
            kind: "q", "k" or "v".
            normed: residual stream after the block's norm.
            heads: the block's map of that kind, or that of some of its heads.
        """
        made = torch.einsum("bpd,hdo->bhpo", normed, heads.weight)
        if heads.bias is not None:
            made = made + heads.bias[:, None]
        if kind == "v":
            return made
        parts, anatomy = self.parts[layer], self.subject.anatomy
        norm = parts.q_norm if kind == "q" else parts.k_norm
        if norm is not None and not parts.norms_last:
            made = norm(made)
        if anatomy.rotary is not None and anatomy.rotate is not None and layer not in anatomy.unrotated:
            places = torch.arange(normed.shape[1], device=normed.device)[None]
            own = [layer_kinds(self.subject.model.config)[layer]] if anatomy.rotary_by_layer else []
            turns = attrgetter(anatomy.rotary)(self.subject.model)(normed, places, *own)
            made = anatomy.rotate(made, made, *turns)[0]
        return norm(made) if norm is not None and parts.norms_last else made

    @torch.no_grad()
    def values(self, layer: int, normed: Float[Tensor, "*rows d"]) -> Float[Tensor, "head *rows out"]:
        """Value vectors that each query head reads, from normed residual vectors."""
        heads = self.parts[layer].v
        projected = torch.einsum("...d,hdo->h...o", normed, heads.weight)
        if heads.bias is not None:
            projected = projected + heads.bias.view(len(heads.bias), *[1] * (normed.ndim - 1), -1)
        return projected.repeat_interleave(self.group, 0)

    @torch.no_grad()
    def written(self, layer: int, normed: Float[Tensor, "*rows d"], head: int) -> Float[Tensor, "*rows d"]:
        """What a head adds to the stream when it attends only to a given normed residual vector (its OV circuit)."""
        return self.values(layer, normed)[head] @ self.parts[layer].out[head]

    def patterns(self, ids: Int[Tensor, "batch pos"]) -> Iterator[Float[Tensor, "batch head pos key"]]:
        """Attention of the stock forward, layer by layer."""
        for layer, stream in enumerate(run_streams(self.subject, ids)[:-1]):
            yield self.pattern(layer, stream)


@contextmanager
def heads_replaced(
    subject: Subject, results: dict[tuple[int, int], Float[Tensor, "#batch #pos width"]]
) -> Iterator[None]:
    """Give some heads other results (ahead of the output projection) in the stock forwards of this block.

    Args:
        subject: the frozen model.
        results: of each `(layer, head)`.
    """
    anatomy, n_heads = subject.anatomy, subject.graph.n_heads
    by_layer: dict[int, dict[int, Tensor]] = {}
    for (layer, head), result in results.items():
        by_layer.setdefault(layer, {})[head] = result

    def hook_for(changed: dict[int, Tensor]):
        def hook(_module: nn.Module, args: tuple) -> tuple:
            split = args[0].unflatten(-1, (n_heads, -1)).clone()
            for head, result in changed.items():
                split[..., head, :] = result
            return (split.flatten(-2), *args[1:])

        return hook

    with ExitStack() as hooks:
        blocks = anatomy.blocks(subject.model)
        for layer, changed in by_layer.items():
            out = getattr(blocks[layer].get_submodule(anatomy.attention), anatomy.out)
            hooks.callback(out.register_forward_pre_hook(hook_for(changed)).remove)
        yield
