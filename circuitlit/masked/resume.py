"""A masked run held open: variants that differ at one reader cost only what follows from it.

What every reader sees and every writer adds is kept. A variant changes one reader's row of masks, so it changes what
its own heads or MLP write, and from there on only readers that keep an edge from a changed writer:

    x'_r = x_r + sum_{w changed} z_rw (y'_w - y_w)

Readers upstream of the change, and those downstream that hear nothing of it, are not computed again, nor are tokens in
which no change can be heard (`tokens.py`). Variants run together as further rows of a batch. No gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked.ablation import Ablated
from circuitlit.masked.block import MaskedBlock
from circuitlit.masked.changes import Changes, replaced
from circuitlit.masked.forward import MaskedModel
from circuitlit.masked.short_attention import Rotary
from circuitlit.masked.tokens import Tokens, needed_tokens, picked

KINDS = ("q", "k", "v")


@dataclass
class _Layer:
    """What one block holds; but for the vectors, of the live tokens alone.

    Attributes:
        seen: input of every attention reader; a view of one stream as long as all readers see the same.
        mlp_seen: input of the MLP, and of its router.
        vectors: queries, keys (both rotated) and values of all heads, by kind.
        results: the heads' results ahead of the output projection, in the scale in which they are written.
        mlp: output of the MLP.
    """

    seen: Float[Tensor, "reader token d"]
    mlp_seen: Float[Tensor, "mlp token d"]
    vectors: dict[str, Float[Tensor, "head batch pos width"]]
    results: Float[Tensor, "head token width"]
    mlp: Float[Tensor, "token d"]


class HeldRun:
    """The masked model's run on one batch under masks of 0 and 1, open to changes.

    Args:
        model: the masked forward.
        ids: clean prompts, padded on the right.
        ablated: outputs of all writers where their edges are cut.
        positions: where logits are wanted.
        masks: to begin with; None keeps all edges.
        shared: of each prompt, tokens at its start on which `ablated` is this model's run of the same tokens; they cost
            next to nothing.

    Attributes:
        masks: as they are held, on the host, where it is decided what has to be computed again.
    """

    def __init__(
        self,
        model: MaskedModel,
        ids: Int[Tensor, "batch pos"],
        ablated: Ablated,
        positions: Int[Tensor, "batch answer"],
        masks: Float[Tensor, "reader writer"] | None = None,
        shared: Int[Tensor, "batch"] | None = None,
    ) -> None:
        model.check_length(ids.shape[1])
        if model.subject.anatomy.borrowed:
            raise UserError(
                "this model's attention runs as its own code, of which no single head can be run again, as this method "
                "does; take another, such as mask_gradients or eap_ig"
            )
        self.model, self.graph, self.positions = model, model.graph, positions
        self.batch, self.length = ids.shape
        self.answer_tokens = (positions + self.length * torch.arange(self.batch, device=ids.device)[:, None]).flatten()
        embedded = model.subject.embedded(ids).flatten(0, 1)
        every = scatter_edges(self.graph, torch.ones(1, self.graph.n_edges, dtype=embedded.dtype))[0]
        self.masks = every if masks is None else masks.to(every).clone()
        self.deltas = embedded.new_empty(self.graph.n_writers, *embedded.shape)
        self._tokens: Tokens | None = None
        self._rotary = self._rotaries(embedded)
        real = model.real_tokens(ids)
        self._real = None if real is None else real.transpose(0, 1)  # heads come first here
        self._room = embedded.new_empty(0)
        tokens = needed_tokens(self.length, positions, shared) if model.leaves_out_tokens() else None
        with torch.no_grad():
            self._start(embedded, ablated, cut=masks is not None, tokens=tokens)
        if tokens is not None:
            self.deltas, self.answer_tokens = self.deltas[:, tokens.live], tokens.place_of(self.answer_tokens)
            self._tokens, self._rotary = tokens, self._rotaries(embedded, tokens)

    def _rotaries(self, like: Float[Tensor, "token d"], tokens: Tokens | None = None) -> list[Rotary | None]:
        """Each block's cosines and sines of all tokens, one after another, or of the live ones."""
        places = picked(torch.arange(self.length, device=like.device).repeat(self.batch), tokens)
        made = self.model.rotary(like, self.length)
        return [None if one is None else Rotary(one.rotate, one.cos[:, places], one.sin[:, places]) for one in made]

    def _start(self, embedded: Float[Tensor, "token d"], ablated: Ablated, cut: bool, tokens: Tokens | None) -> None:
        """Run the model block by block; without cut edges all readers at one depth see the same stream."""

        def live(rows: Float[Tensor, "row token _"]) -> Float[Tensor, "row live _"]:
            return rows if tokens is None else rows[:, tokens.live]

        fixed = self.model.position_embeddings(self.batch, self.length)
        stream = (ablated.embed.flatten(0, 1) if cut else embedded) + fixed  # the ablated run's, where edges are cut
        self.deltas[0] = embedded - ablated.embed.flatten(0, 1)
        if self.graph.inputs > 1:
            written, without = self.model.written_positions(self.batch, self.length), ablated.positions.flatten(0, 2)
            self.deltas[1] = written - without
            stream = stream + (without if cut else written)

        def hears(rows: Float[Tensor, "reader writer"], writers: int) -> Float[Tensor, "seen token d"]:
            if not cut:
                return stream[None]
            sums = rows[:, :writers].to(stream.device) @ self.deltas[:writers].flatten(1)
            return stream + sums.unflatten(1, stream.shape)

        self._layers: list[_Layer] = []
        for layer, block in enumerate(self._blocks):
            first, heads = self.graph.writers_before(layer), self.graph.n_heads
            rows, split = self.masks[self.graph.reader_rows(layer)], block.attention_readers
            seen = hears(rows[:split], first)
            normed, vectors, offset = block.attn_norm(seen), {}, 0
            for kind, count in self._heads.items():
                inputs = normed[offset : offset + count] if cut else normed
                made = self._project(block, kind, inputs, range(count), layer, variants=1)
                vectors[kind] = made.unflatten(2, (self.batch, -1))[:, 0]
                offset += count
            group = heads // self.graph.n_kv_heads
            key, value = (vectors[kind].repeat_interleave(group, 0) for kind in "kv")
            results = block.scaled(block.attention(vectors["q"], key, value, self._real))
            without = ablated.heads[:, layer].unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)
            self.deltas[first : first + heads] = torch.bmm((results - without).flatten(1, 2), block.out_weight)
            mlp_seen = hears(rows[split:], first) if block.parallel else None
            stream = stream + torch.bmm((without if cut else results).flatten(1, 2), block.out_weight).sum(0)
            if block.out_bias is not None:
                stream = stream + block.out_bias
            if mlp_seen is None:
                mlp_seen = hears(rows[split:], first + heads)
            mlp_seen, results = mlp_seen.expand(self.graph.mlp_readers, -1, -1), live(results.flatten(1, 2))
            mlp = block.write_mlp(mlp_seen[:1], mlp_seen[1:])[0]
            self.deltas[first + heads] = mlp - ablated.mlps[:, layer].flatten(0, 1)
            self._layers.append(
                _Layer(live(seen).expand(split, -1, -1), live(mlp_seen), vectors, results, live(mlp[None])[0])
            )
            stream = stream + (ablated.mlps[:, layer].flatten(0, 1) if cut else mlp)
        self._final = hears(self.masks[-1:], self.graph.n_writers)[0][self.answer_tokens]

    @torch.no_grad()
    def logits(
        self, reader: int | None = None, rows: Float[Tensor, "variant writer"] | None = None
    ) -> Float[Tensor, "variant batch answer vocab"]:
        """Logits at the answer positions, of the held masks or with other masks on the edges into one reader.

        Args:
            reader: whose masks vary; None for the run as it is held.
            rows: its masks in each variant.
        """
        if reader is None or rows is None:
            final = self._final[None]
        else:
            final = self._final + self._propagate(reader, rows, keep=False)
        normed = self.model.final_norm(final)
        return self.model.subject.unembed(normed).unflatten(1, tuple(self.positions.shape))

    @torch.no_grad()
    def commit(self, reader: int, row: Float[Tensor, "writer"]) -> None:
        """Hold other masks on the edges into one reader from now on."""
        self._final = self._final + self._propagate(reader, row[None], keep=True)[0]
        self.masks[reader] = row

    @cached_property
    def _blocks(self) -> list[MaskedBlock]:
        return list(self.model.blocks)  # type: ignore[arg-type]

    @cached_property
    def _heads(self) -> dict[str, int]:
        """Heads of each kind."""
        return {"q": self.graph.n_heads, "k": self.graph.n_kv_heads, "v": self.graph.n_kv_heads}

    def _propagate(
        self, reader: int, rows: Float[Tensor, "variant writer"], keep: bool
    ) -> Float[Tensor, "variant answer d"]:
        """Change of the last reader's input at the answer tokens; `keep` writes all changes into the run."""
        graph, variants = self.graph, len(rows)
        start, place = divmod(reader, graph.readers_per_layer)
        moved = self._moved(reader, rows)
        if start == graph.n_layers:
            return moved
        changes = Changes(self._workspace(variants))
        for layer in range(start, graph.n_layers):
            block, held = self._blocks[layer], self._layers[layer]
            first = graph.reader_rows(layer).start
            split = block.attention_readers
            if layer == start:
                readers, unique, shift = ([place], [0], moved[None]) if place < split else ([], [], moved[None])
            else:
                readers, unique, shift = changes.reach(self.masks, range(first, first + split))
            if readers:
                self._attend(layer, readers, unique, shift, changes, keep)
            if layer == start and place >= split:
                readers, unique, shift = [place - split], [0], moved[None]
            else:
                readers, unique, shift = changes.reach(
                    self.masks, range(first + split, first + graph.readers_per_layer)
                )
            if readers:
                seen = held.mlp_seen[:, None].expand(-1, variants, -1, -1).clone()
                seen[readers] += shift[unique]
                output = block.write_mlp(seen[0], seen[1] if graph.routers else None)
                changes.add([graph.writers_before(layer) + graph.n_heads], (output - held.mlp)[None])
                if keep:
                    held.mlp_seen, held.mlp = seen[:, 0], output[0]
        if keep:
            self.deltas[changes.writers] += changes.all()[:, 0]
        return changes.at(self.masks[-1], self.answer_tokens)

    def _moved(self, reader: int, rows: Float[Tensor, "variant writer"]) -> Float[Tensor, "variant token d"]:
        """Change of the varied reader's own input."""
        difference = rows.to(self.masks) - self.masks[reader]
        touched = difference.any(0).nonzero().flatten().tolist()
        span = slice(touched[0], touched[-1] + 1) if touched else slice(0, 1)
        deltas = self.deltas[span]
        if reader == self.graph.n_readers - 1:
            deltas = deltas[:, self.answer_tokens]
        return (difference[:, span].to(deltas.device) @ deltas.flatten(1)).unflatten(1, deltas.shape[1:])

    def _attend(
        self,
        layer: int,
        readers: list[int],
        unique: list[int],
        shift: Float[Tensor, "input variant token d"],
        changes: Changes,
        keep: bool,
    ) -> None:
        """Compute again the heads of which some readers see a changed input.

        Args:
            layer: which block.
            readers: those readers, counted within the block.
            unique: for each, which of the distinct changed inputs it sees.
            shift: the distinct changes.
            changes: where the heads' changes are entered.
            keep: hold what is computed.
        """
        graph, block, held = self.graph, self._blocks[layer], self._layers[layer]
        variants = shift.shape[1]
        representatives = [readers[unique.index(number)] for number in range(len(shift))]
        seen = held.seen[representatives, None] + shift
        normed = block.attn_norm(seen).flatten(1, 2)
        group, offset, new = graph.n_heads // graph.n_kv_heads, 0, {}
        for kind, count in self._heads.items():
            mine = [number for number, reader in enumerate(readers) if offset <= reader < offset + count]
            heads = [readers[number] - offset for number in mine]
            which = sorted({unique[number] for number in mine})
            if heads:
                inputs = normed[which] if len(which) == 1 else normed[[unique[number] for number in mine]]
                new[kind] = (heads, self._project(block, kind, inputs, heads, layer, variants))
            offset += count
        wanted = set(new["q"][0]) if "q" in new else set()
        for kind in "kv":
            wanted |= {head for kv in new.get(kind, ([],))[0] for head in range(kv * group, (kv + 1) * group)}
        heads = sorted(wanted) if block.post_scale is None else list(range(graph.n_heads))
        vectors = {}
        for kind in KINDS:
            places = heads if kind == "q" else [head // group for head in heads]
            moved = new.get(kind, ([], None))
            vectors[kind] = replaced(held.vectors[kind], places, *moved, variants=variants, tokens=self._tokens)
        real = None if self._real is None else self._real.repeat(1, variants, 1, 1)
        results = block.scaled(block.attention(vectors["q"], vectors["k"], vectors["v"], real))
        results = results.reshape(len(heads), variants, -1, results.shape[-1])
        results = results if self._tokens is None else results[:, :, self._tokens.live]
        difference = results - held.results[heads, None]
        first = graph.writers_before(layer)
        weight = block.out_weight if len(heads) == graph.n_heads else block.out_weight[heads]
        added = torch.bmm(difference.flatten(1, 2), weight)
        changes.add([first + head for head in heads], added.unflatten(1, (variants, -1)))
        if keep:
            if not held.seen.stride(0):
                held.seen = held.seen.clone()
            held.seen[readers] = seen[unique, 0]
            held.results[heads] = results[:, 0]
            for kind, (places, values) in new.items():
                held.vectors[kind][places] = replaced(held.vectors[kind], places, places, values, 1, self._tokens)

    def _project(
        self,
        block: MaskedBlock,
        kind: str,
        normed: Float[Tensor, "input rows d"],
        heads: Sequence[int],
        layer: int,
        variants: int,
    ) -> Float[Tensor, "head variant token width"]:
        """Vectors of some heads, from one input for all or one for each; its rows are each variant's tokens."""
        every = len(heads) == self._heads[kind]
        weight, bias = block.maps[kind].weight, block.maps[kind].bias
        if not every:
            weight, bias = weight[list(heads)], None if bias is None else bias[list(heads)]
        if len(normed) == 1:
            joint = normed[0] @ weight.permute(1, 0, 2).flatten(1)
            out = joint.unflatten(1, (len(weight), -1)).transpose(0, 1)
        else:
            out = torch.bmm(normed, weight)
        if bias is not None:
            out = out + bias[:, None]
        return block.positioned(kind, out.unflatten(1, (variants, -1)), self._rotary[layer])

    def _workspace(self, variants: int) -> Float[Tensor, "writer variant token d"]:
        """Room for the changes of all writers, kept between calls."""
        size = self.deltas.numel() * variants
        if len(self._room) < size:
            self._room = self.deltas.new_empty(size)
        return self._room[:size].view(len(self.deltas), variants, *self.deltas.shape[1:])
