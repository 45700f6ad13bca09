"""Where an architecture reads and writes the residual stream, and its blocks in parts.

`model/families.py` fills in an `Anatomy` for each architecture. Everything else sees `BlockParts`: weights per head in
one canonical shape, and the model's own norm and MLP modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.model.experts import router_of
from circuitlit.model.layouts import Place, Rotate, Split, place
from circuitlit.model.linear import Read, affine


@dataclass(frozen=True)
class HeadMap:
    """An affine map per head, `x[head] @ weight[head] + bias[head]`."""

    weight: Float[Tensor, "head into out"]
    bias: Float[Tensor, "head out"] | None


@dataclass(frozen=True)
class BlockParts:
    """One transformer block, taken apart.

    Attributes:
        q, k, v: maps from the normed residual stream to each head's vectors.
        out: maps from each head's result (scaled by `post_scale`) to the residual stream, without bias.
        out_bias: bias of the attention output, which belongs to no head; None where the model has none.
        attn_norm, mlp_norm: the model's own norms before attention and MLP.
        q_norm, k_norm: norms of single heads' queries and keys (Qwen3), else None.
        mlp: the model's own MLP, with the norm and the factor behind it where there are such.
        scale: factor on query-key products.
        post_scale: factor of a norm behind the attention, which all heads share; None without such a norm.
        softcap: bound on the scores of the attention, None without.
        norms_last: True where `q_norm` and `k_norm` come behind the rotation.
        own: anatomy, attention module and widths of its projections, where it is borrowed.
        router: what chooses among the MLP's experts, if it has some.
    """

    q: HeadMap
    k: HeadMap
    v: HeadMap
    out: Float[Tensor, "head into d"]
    out_bias: Float[Tensor, "d"] | None
    attn_norm: nn.Module
    mlp_norm: nn.Module
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    mlp: nn.Module
    scale: float
    post_scale: PostScale | None = None
    softcap: float | None = None
    norms_last: bool = False
    own: tuple[Anatomy, nn.Module, list[int]] | None = None
    router: nn.Module | None = None


class First(nn.Module):
    """The first of several outputs, where a module gives others beside it (a router's scores)."""

    def forward(self, outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Take it."""
        return outputs[0] if isinstance(outputs, tuple) else outputs


class Times(nn.Module):
    """A fixed factor.

    Args:
        factor: it.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Apply it."""
        return x * self.factor


class PostScale(nn.Module):
    """The factor that an RMS norm behind the attention puts on every head's write: 1 over the RMS of the heads' sum.

    With it a head's own write is defined, `result @ out * gain / RMS(sum of all heads)`, and the heads' writes add up
    to what the norm puts out.

    Args:
        out: the output projection, without bias.
        eps: the norm's.
    """

    def __init__(self, out: nn.Module, eps: float) -> None:
        super().__init__()
        self.out, self.eps = out, eps

    def forward(self, results: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows 1"]:
        """The factor at every token, from the heads' results side by side."""
        return self.of(self.out(results))

    def of(self, total: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
        """The factor, from the heads' sum."""
        wide = total if total.dtype == torch.float64 else total.float()
        return torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps).to(total.dtype)


@dataclass(frozen=True)
class Anatomy:
    """Attribute paths of one architecture, from the causal language model down.

    Attributes:
        layers, final_norm: paths from the model.
        attn_norm, mlp_norm, attention, mlp: paths from a block; the two norms may be one, or empty for none.
        projections: names of the attention's modules whose outputs hold queries, keys and values.
        split: takes these outputs (or weights, or biases) apart into q, k and v, `[*, head, width]` each.
        out: name of the attention's output projection.
        activation: name of the MLP's activation module.
        gated: name of the MLP's map that the activation is multiplied with, None without a gate.
        gate_fused: True where that map makes the activation's input, too.
        mlp: the module whose output is what the MLP writes.
        mlp_chain: the modules from the normed input to that output, one after another; empty for `mlp` alone.
        mlp_overwritten: True where the block adds to that output in place.
        mlp_first: True where that module gives more, and what it writes comes first.
        parallel: True where attention and MLP read the same stream.
        kv_heads: number of key/value heads, where the configuration does not say it as Llama's does.
        head_norms: names of the attention's norms of single heads' queries and keys, where it has such.
        head_norms_last: True where these come behind the rotation.
        post_norm: RMS norm between the attention's output projection and the stream, or None.
        post_gain: what is added to that norm's weight (Gemma: 1).
        embedded: module behind the token embeddings, whose output is what the input writes; None for them.
        embed_factor, write_factor: on the embeddings, and on what attention and MLP write.
        scale: factor on query-key products; None takes the attention's own `scaling`.
        softcap: name of the attention's bound on its scores; None without.
        positions, place: path of learned position embeddings, None with rotary ones, and how they are looked up.
        rotary, rotate: path of the module that makes cosines and sines, and the function that applies them.
        rotary_by_layer: True where that module takes the kind of the layer.
        unrotated: layers without rotation.
        position_writer: path of position embeddings that are a writer of the graph (Tracr), not a constant.
        causal: False where a token attends to later ones too.
        borrowed: True where the model's own attention runs between the projections (`masked.borrowed`), which need not
            be known then: no rotation, scale or norm of heads is read here.
        joint: True where a norm inside the attention is over all heads together.
        routers: True where every MLP is a mixture of experts.
    """

    layers: str
    final_norm: str
    attn_norm: str
    mlp_norm: str
    attention: str
    projections: tuple[str, ...]
    split: Split
    out: str
    activation: str
    gated: str | None = None
    gate_fused: bool = False
    mlp: str = "mlp"
    mlp_chain: tuple[str, ...] = ()
    mlp_overwritten: bool = False
    mlp_first: bool = False
    parallel: bool = False
    kv_heads: int | None = None
    head_norms: tuple[str, str] = ("q_norm", "k_norm")
    head_norms_last: bool = False
    post_norm: str | None = None
    post_gain: float = 0.0
    embedded: str | None = None
    embed_factor: float = 1.0
    write_factor: float = 1.0
    scale: float | None = None
    softcap: str | None = None
    positions: str | None = None
    place: Place = place
    rotary: str | None = None
    rotate: Rotate | None = None
    rotary_by_layer: bool = False
    unrotated: frozenset[int] = frozenset()
    position_writer: str | None = None
    causal: bool = True
    borrowed: bool = False
    joint: bool = False
    routers: bool = False

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks, first to last."""
        return list(attrgetter(self.layers)(model))

    def ahead(self, block: nn.Module, norm: str) -> nn.Module:
        """The norm of that name, or nothing where there is none."""
        return getattr(block, norm) if norm else nn.Identity()

    def further(self, attention: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """The attention's parameters beside those of its projections: norms, sinks."""
        heads = tuple(f"{name}." for name in (*self.projections, self.out))
        return [(name, value) for name, value in attention.named_parameters() if not name.startswith(heads)]

    def first_mlp(self, block: nn.Module) -> nn.Module:
        """The module that takes the MLP's normed input."""
        return block.get_submodule(self.mlp_chain[0] if self.mlp_chain else self.mlp)

    def sees_stream(self, block: nn.Module, mlp: bool = False) -> nn.Module:
        """The module whose first input is the residual stream ahead of a block's attention, or of its MLP."""
        norm = self.mlp_norm if mlp else self.attn_norm
        return getattr(block, norm) if norm else self.first_mlp(block) if mlp else block

    def parts(self, block: nn.Module, graph: Graph, read: Read | None = None) -> BlockParts:
        """One block in canonical shapes: views of the model's weights, adapters folded into a new tensor.

        Args:
            block: of the model.
            graph: the model's.
            read: weight and bias of a linear module; None is `affine`.
        """
        attention: Any = block.get_submodule(self.attention)
        read = read or affine
        maps = [read(getattr(attention, name)) for name in self.projections]
        q, k, v = self._heads([weight for weight, _ in maps], [bias for _, bias in maps], graph)
        weight, bias = read(getattr(attention, self.out))
        if self.folds:
            gain = self.write_gain(block)
            weight, bias = weight * gain, None if bias is None else bias * gain
        q_norm, k_norm = (None if self.borrowed else getattr(attention, name, None) for name in self.head_norms)
        scale = 1.0 if self.borrowed else attention.scaling if self.scale is None else self.scale
        return BlockParts(
            q,
            k,
            v,
            out=weight.unflatten(0, (graph.n_heads, -1)),
            out_bias=bias,
            attn_norm=self.ahead(block, self.attn_norm),
            mlp_norm=self.ahead(block, self.mlp_norm),
            q_norm=q_norm,
            k_norm=k_norm,
            mlp=self.whole_mlp(block),
            scale=float(scale),
            post_scale=self.post_scale(block),
            softcap=None if self.softcap is None else getattr(attention, self.softcap),
            norms_last=self.head_norms_last,
            own=(self, attention, [weight.shape[1] for weight, _ in maps]) if self.borrowed else None,
            router=router_of(block.get_submodule(self.mlp)),
        )

    def whole_mlp(self, block: nn.Module) -> nn.Module:
        """From an MLP's normed input to what it adds to the residual stream."""
        chain = [block.get_submodule(name) for name in self.mlp_chain or (self.mlp,)]
        chain += [First()] if self.mlp_first else []
        chain += [Times(self.write_factor)] if self.write_factor != 1 else []
        return chain[0] if len(chain) == 1 else nn.Sequential(*chain)

    def write_gain(self, block: nn.Module) -> Tensor | float:
        """What a block's attention is multiplied with behind its output projection, a norm's own scale aside."""
        gain = 1.0 if self.post_norm is None else self.post_gain + getattr(block, self.post_norm).weight
        return gain * self.write_factor

    @property
    def folds(self) -> bool:
        """Whether heads' output weights are no views of the model's, but multiplied with a norm's gain or a factor."""
        return self.post_norm is not None or self.write_factor != 1

    def _heads(self, weights: list[Tensor], biases: list[Tensor | None], graph: Graph) -> list[HeadMap]:
        per_head = [weight.movedim(-2, 0) for weight in self.split(weights, graph)]
        if all(bias is None for bias in biases):
            return [HeadMap(weight, None) for weight in per_head]
        full = [w.new_zeros(w.shape[-1]) if b is None else b for w, b in zip(weights, biases, strict=True)]
        return [HeadMap(weight, bias) for weight, bias in zip(per_head, self.split(full, graph), strict=True)]

    def post_scale(self, block: nn.Module) -> PostScale | None:
        """The factor of the norm behind a block's attention, if there is one.

        Raises:
            UserError: a bias ahead of that norm, which belongs to no head.
        """
        if self.post_norm is None:
            return None
        out, norm = getattr(block.get_submodule(self.attention), self.out), getattr(block, self.post_norm)
        if getattr(out, "bias", None) is not None:
            raise UserError("a bias ahead of the norm behind the attention belongs to no head; this model has one")
        return PostScale(out, float(getattr(norm, "eps", None) or norm.variance_epsilon))
