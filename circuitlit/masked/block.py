"""One transformer block whose every reader sees its own masked sum of the residual stream's writers."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitlit.graph import Graph
from circuitlit.masked.activation import fewer_launches
from circuitlit.masked.borrowed import OwnAttention, Told
from circuitlit.masked.kernels import fused
from circuitlit.masked.ledger import Ledger, Token
from circuitlit.masked.projection import Again, Projection, Room
from circuitlit.masked.short_attention import LONGEST, Rotary, kernel_attention, rotates_by_halves
from circuitlit.masked.tokens import Tokens, picked
from circuitlit.model.anatomy import BlockParts, HeadMap
from circuitlit.model.experts import reading
from circuitlit.model.norms import recognise
from circuitlit.products import fast_products, frozen_product


class MaskedBlock(nn.Module):
    """A frozen block read and written through a ledger. It owns its weights, as sharding wants it.

    Args:
        parts: the block, taken apart.
        graph: the model's graph.
        layer: which block this is.

    Attributes:
        sharded: True where the weights are there only while this block runs, so that nothing may be kept of them.
        reread: True keeps nothing of what the attention's readers see, by far the most that a block stores; it is
            summed anew in the backward pass.
    """

    q_weight: Tensor
    q_bias: Tensor | None
    k_weight: Tensor
    k_bias: Tensor | None
    v_weight: Tensor
    v_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None

    def __init__(self, parts: BlockParts, graph: Graph, layer: int) -> None:
        super().__init__()
        for name, heads in (("q", parts.q), ("k", parts.k), ("v", parts.v)):
            self._own(f"{name}_weight", heads.weight)
            self._own(f"{name}_bias", heads.bias)
        self._own("out_weight", parts.out)
        self._own("out_bias", parts.out_bias)
        self.attn_norm, self.mlp_norm = parts.attn_norm, parts.mlp_norm
        alike = parts.q.weight.shape[1:] == parts.k.weight.shape[1:] == parts.v.weight.shape[1:]
        self._affine = recognise(parts.attn_norm) if alike else None
        self._mlp_affine = recognise(parts.mlp_norm)
        self._projection: Projection | None = None
        self.sharded = self.reread = False
        self.q_norm, self.k_norm, self.mlp = parts.q_norm, parts.k_norm, parts.mlp
        self.scale = parts.scale
        self.post_scale, self.softcap, self.norms_last = parts.post_scale, parts.softcap, parts.norms_last
        self.n_heads, self.n_kv_heads, self.parallel = graph.n_heads, graph.n_kv_heads, graph.parallel
        self.first_writer = graph.writers_before(layer)
        self.own = None if parts.own is None else OwnAttention(*parts.own, graph)
        self.tail = graph.mlp_readers
        self.router = parts.router if graph.routers else None

    def _own(self, name: str, value: Tensor | None) -> None:
        self.register_parameter(name, None if value is None else nn.Parameter(value, requires_grad=False))

    @property
    def attention_readers(self) -> int:
        """Readers of the attention: q, k and v."""
        return self.n_heads + 2 * self.n_kv_heads

    def forward(
        self,
        ledger: Ledger,
        token: Token,
        row: int,
        ablated: Float[Tensor, "token d"],
        ablated_heads: Float[Tensor, "batch pos width"],
        ablated_mlp: Float[Tensor, "token d"],
        rotary: Rotary | Told | None,
        real: Bool[Tensor, "batch one one pos"] | None = None,
        tokens: Tokens | None = None,
    ) -> tuple[Token, Float[Tensor, "token d"]]:
        """Read, compute and write this block's heads and MLP.

        Args:
            ledger: where writers are entered and readers served; this block's panel is open.
            token: the last ledger call's.
            row: place of this block's first reader in the panel.
            ablated: residual stream of the ablated run ahead of this block.
            ablated_heads: results of the ablated run's heads, before the output projection.
            ablated_mlp: output of the ablated run's MLP.
            rotary: rotary embedding of the batch, None with learned positions; what borrowed attention is told.
            real: tokens that may be attended to; needed where tokens attend to later ones.
            tokens: those that the ledger has; None for all.

        Returns:
            The next token and the ablated residual stream after this block.
        """
        heads, split, first = self.n_heads, self.attention_readers, self.first_writer
        here = picked(ablated, tokens)
        token, seen, mlp_seen = ledger.read(token, here, row, split + self.tail, first, self.parallel, self.tail)
        room = partial(ledger.room, row, split)
        again = ledger.read_again(here, row, split, first) if self.reread else None
        projected = self._project(seen, room, again)
        if tokens is not None:
            projected = self._beside_past(projected, ablated, tokens)
        results = picked(self._attend(projected, ablated_heads, rotary, real).transpose(0, 1), tokens).transpose(0, 1)
        token = self._write_heads(ledger, token, results)
        added = self._put_out(ablated_heads, tokens)
        if not self.parallel:
            token, mlp_seen = ledger.read_on(token, mlp_seen, picked(added, tokens), row + split, first, heads)
        routed = self.tail > 1  # else no slice, whose backward is two more launches
        written = self.write_mlp(mlp_seen[:1], mlp_seen[1:]) if routed else self.write_mlp(mlp_seen)
        token = ledger.write(token, first + heads, written, picked(ablated_mlp, tokens)[None])
        return token, ablated + added + ablated_mlp

    def _write_heads(self, ledger: Ledger, token: Token, results: Float[Tensor, "head token width"]) -> Token:
        """Enter what the heads' results, less the ablated ones, add to the residual stream."""
        return ledger.write_heads(token, self.first_writer, results, self.out_weight)

    def _put_out(self, results: Float[Tensor, "batch pos width"], tokens: Tokens | None) -> Float[Tensor, "token d"]:
        """What heads' results, side by side, add to the residual stream together, the bias with them; 0 if unread."""
        flat, weight = results.reshape(-1, results.shape[-1]), self.out_weight.detach().flatten(0, 1)
        if tokens is None or tokens.source is None:
            return frozen_product(flat, weight, self.out_bias)
        read = tokens.computed()
        put = frozen_product(flat[read], weight, self.out_bias)
        return put.new_zeros(len(flat), put.shape[-1]).index_copy(0, read, put)

    def write_mlp(
        self, x: Float[Tensor, "row token d"], routed: Float[Tensor, "routed token d"] | None = None
    ) -> Float[Tensor, "row token d"]:
        """What the MLP writes. On a GPU torch's own norms and activations stand in for the library's many launches.

        Args:
            x: what it reads.
            routed: what its router reads; None or no rows where it has none.
        """
        norm = self._mlp_affine
        if self.router is not None:
            assert routed is not None and routed.shape == x.shape
            with reading(self.router, self.mlp_norm(routed)):
                return self.mlp(self.mlp_norm(x))
        if not fused(x):
            with fast_products(x):
                return self.mlp(self.mlp_norm(x))
        plain = norm is not None and not (norm.centred or norm.one_more)
        normed = F.rms_norm(x, x.shape[-1:], norm.gain, norm.eps) if plain and norm else self.mlp_norm(x)
        with fewer_launches(self.mlp):
            return self.mlp(normed)

    @property
    def head_width(self) -> int:
        """Width of one head's result."""
        return self.out_weight.shape[1]

    def _attend(
        self,
        projected: Float[Tensor, "readers token out"] | list[Float[Tensor, "head token out"]],
        ablated_heads: Float[Tensor, "batch pos width"],
        rotary: Rotary | Told | None,
        real: Tensor | None,
    ) -> Float[Tensor, "head token out"]:
        """What each head's result is beyond its ablated one."""
        batch, length = ablated_heads.shape[:2]
        if isinstance(projected, Tensor) and not isinstance(rotary, Told) and self._has_kernel(length, rotary, real):
            return kernel_attention(projected, ablated_heads, self.n_heads, self.n_kv_heads, self.scale, rotary)
        if isinstance(projected, Tensor):
            projected = list(projected.split([self.n_heads, self.n_kv_heads, self.n_kv_heads]))
        q, k, v = (x.unflatten(1, (batch, -1)).transpose(0, 1) for x in projected)
        if self.own is not None:
            assert isinstance(rotary, Told)
            result = self.own(q, k, v, rotary).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        else:
            assert not isinstance(rotary, Told)
            q, k = self._normed(q, k, last=False)
            if rotary is not None:
                q, k = rotary.rotate(q, k, rotary.cos, rotary.sin)
            q, k = self._normed(q, k, last=True)
            result = self.attention(q, k, v, real)
        if self.post_scale is not None:
            result = result * self.post_scale(result.transpose(1, 2).flatten(2))[:, None]
        ablated = ablated_heads.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return (result - ablated).transpose(0, 1).flatten(1, 2)

    def results(
        self, stream: Float[Tensor, "batch pos d"], rotary: Rotary | Told | None
    ) -> Float[Tensor, "batch pos width"]:
        """The heads' results, side by side, when all readers see one residual stream."""
        rows, width = stream.shape[0], self.n_heads * self.head_width
        seen = stream.flatten(0, 1).expand(self.attention_readers, -1, -1)
        made = self._attend(self._project(seen, None), stream.new_zeros(*stream.shape[:2], width), rotary, None)
        return made.unflatten(1, (rows, -1)).permute(1, 2, 0, 3).flatten(2)

    def _normed(self, q: Tensor, k: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Queries and keys through the norms of single heads, if these stand at this place."""
        if self.q_norm is None or self.k_norm is None or last != self.norms_last:
            return q, k
        return self.q_norm(q), self.k_norm(k)

    def _beside_past(
        self,
        projected: Float[Tensor, "readers live out"] | list[Float[Tensor, "head live out"]],
        ablated: Float[Tensor, "token d"],
        tokens: Tokens,
    ) -> list[Float[Tensor, "head token out"]]:
        """Queries, keys and values of all tokens: what is new, among the ablated run's."""
        if isinstance(projected, Tensor):
            projected = list(projected.split([self.n_heads, self.n_kv_heads, self.n_kv_heads]))
        past = self.attn_norm(ablated[tokens.past])
        keys, values = (
            frozen_product(past, weight.permute(1, 0, 2).flatten(1), None if bias is None else bias.flatten())
            .unflatten(-1, (self.n_kv_heads, -1))
            .transpose(0, 1)
            for weight, bias in ((self.k_weight, self.k_bias), (self.v_weight, self.v_bias))
        )
        return [tokens.spread(projected[0]), tokens.spread(projected[1], keys), tokens.spread(projected[2], values)]

    def _has_kernel(self, length: int, rotary: Rotary | None, real: Tensor | None) -> bool:
        """Whether this block's attention is one of those that a kernel computes."""
        plain = self.q_norm is None and self.softcap is None and self.post_scale is None and real is None
        turns = rotary is None or rotates_by_halves(rotary.rotate)
        return plain and turns and length <= LONGEST and fused(self.out_weight)

    def attention(
        self,
        q: Float[Tensor, "one head pos width"],
        k: Float[Tensor, "one kv pos width"],
        v: Float[Tensor, "one kv pos width"],
        real: Bool[Tensor, "#one #head one_row pos"] | None = None,
    ) -> Float[Tensor, "one head pos width"]:
        """Causal attention, or attention to all real tokens where these are given.

        The first two axes may be any, with as many key heads as query heads or a divisor of it.
        """
        grouped = q.shape[1] != k.shape[1]
        if self.softcap is not None:
            return self._capped_attention(q, k, v)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=real, is_causal=real is None, scale=self.scale, enable_gqa=grouped
        )

    def _capped_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention whose scores are bounded (Gemma 2); fused kernels lack it."""
        assert self.softcap is not None
        group, length = q.shape[1] // k.shape[1], q.shape[2]
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = self.softcap * torch.tanh(q @ k.transpose(2, 3) * self.scale / self.softcap)
        later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1) @ v

    def positioned(
        self, kind: str, vectors: Float[Tensor, "head rows pos width"], rotary: Rotary | None
    ) -> Float[Tensor, "head rows pos width"]:
        """Queries or keys, normed and rotated where the architecture does so; values as they are."""
        if kind == "v":
            return vectors
        norm = self.q_norm if kind == "q" else self.k_norm
        if norm is not None and not self.norms_last:
            vectors = norm(vectors)
        if rotary is not None:
            vectors = rotary.rotate(vectors, vectors, rotary.cos, rotary.sin)[0]
        return norm(vectors) if norm is not None and self.norms_last else vectors

    def scaled(self, results: Float[Tensor, "head rows pos width"]) -> Float[Tensor, "head rows pos width"]:
        """All heads' results in the scale in which they are written."""
        if self.post_scale is None:
            return results
        return results * self.post_scale(results.permute(1, 2, 0, 3).flatten(2))[None]

    @property
    def maps(self) -> dict[str, HeadMap]:
        """The maps to queries, keys and values."""
        return {
            "q": HeadMap(self.q_weight, self.q_bias),
            "k": HeadMap(self.k_weight, self.k_bias),
            "v": HeadMap(self.v_weight, self.v_bias),
        }

    def _project(
        self, seen: Float[Tensor, "readers token d"], room: Room | None, again: Again | None = None
    ) -> Float[Tensor, "readers token out"] | list[Float[Tensor, "head token out"]]:
        """Queries, keys and values of what the readers see, in one tensor where they are made together."""
        weights, biases = [self.q_weight, self.k_weight, self.v_weight], [self.q_bias, self.k_bias, self.v_bias]
        if self._affine is not None:
            if self.sharded:  # the weights are there for this call only
                return Projection(self._affine, weights, biases, keep=False)(seen, room, again)
            if self._projection is None:
                self._projection = Projection(self._affine, weights, biases)
            return self._projection(seen, room, again)
        sizes = [self.n_heads, self.n_kv_heads, self.n_kv_heads]
        parts = zip(self.attn_norm(seen).split(sizes), weights, biases, strict=True)
        return [torch.bmm(x, w) if b is None else torch.baddbmm(b[:, None], x, w) for x, w, b in parts]
