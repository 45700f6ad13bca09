"""Topology of a decoder-only transformer: who writes to the residual stream, who reads it, and every edge between.

Names are those of EAP-IG and MIB. Writers: `input` (and `pos`), `a{l}.h{h}`, `m{l}`. Readers: `a{l}.h{h}<q|k|v>`,
`m{l}`, `logits`. With grouped-query attention the k and v readers are per key/value head. Of a mixture of experts the
router is a reader of its own, `m{l}<router>`; experts write together, as `m{l}`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

INPUTS = ("input", "pos")  # names of the inputs: token embeddings, and position embeddings where they are a writer


@dataclass(frozen=True)
class Graph:
    """All edges of one architecture, in a fixed order.

    Writers are ordered by depth: the inputs, then for each layer its heads and its MLP. Readers too: for each layer the
    q readers of all heads, the k readers, the v readers, the MLP and its router, if it has one; last the logits. A
    reader sees a prefix of the writers, so the edges of one reader are consecutive, and reader after reader they make
    up the flat edge order.

    Attributes:
        n_layers: transformer blocks.
        n_heads: query heads in a block.
        n_kv_heads: key/value heads in a block; equals `n_heads` without grouped-query attention.
        parallel: True where attention and MLP of a block read the same stream (GPT-NeoX), so that the MLP does not see
            the heads of its own block.
        coupled: True where a norm behind the attention scales the writes of all heads of a block by one factor
            (Gemma 2 and 3), so that whatever a head reads shapes what all of them write.
        inputs: 1 for the token embeddings alone; 2 where position embeddings are a writer too (Tracr).
        routers: True where every MLP is a mixture of experts, whose router is a reader beside it.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    coupled: bool = False
    inputs: int = 1
    routers: bool = False

    def __post_init__(self) -> None:
        numbers = (self.n_layers, self.n_heads, self.n_kv_heads)
        if min(numbers) < 1 or self.n_heads % self.n_kv_heads or self.inputs not in (1, 2):
            raise ValueError(f"not a transformer's shape: {self!r}")

    def __str__(self) -> str:
        kind = "parallel blocks" if self.parallel else "layers"
        coupled = ", coupled by a norm" if self.coupled else ""
        more = (", two inputs" if self.inputs > 1 else "") + (", routers" if self.routers else "")
        return f"{self.n_layers} {kind} x {self.n_heads} heads ({self.n_kv_heads} key/value{coupled}{more})"

    @property
    def readers_per_layer(self) -> int:
        """Readers in a block: q heads, k heads, v heads, one MLP and its router, if it has one."""
        return self.attention_readers + self.mlp_readers

    @property
    def attention_readers(self) -> int:
        """Readers of a block's attention: q heads, k heads, v heads."""
        return self.n_heads + 2 * self.n_kv_heads

    @property
    def mlp_readers(self) -> int:
        """Readers of a block's MLP: 1, or with a router 2."""
        return 1 + self.routers

    @property
    def writers_per_layer(self) -> int:
        """Writers in a block: its heads and one MLP."""
        return self.n_heads + 1

    @property
    def n_writers(self) -> int:
        """Writers in the model, the inputs included."""
        return self.inputs + self.n_layers * self.writers_per_layer

    @property
    def n_readers(self) -> int:
        """Readers in the model, the logits included."""
        return self.n_layers * self.readers_per_layer + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for files; `routers` only where there are some, so that other files stay as they were."""
        content = asdict(self)
        return content if self.routers else {key: value for key, value in content.items() if key != "routers"}

    @cached_property
    def visible(self) -> Int[Tensor, "reader"]:
        """How many writers each reader sees: always the first ones."""
        counts = []
        for layer in range(self.n_layers):
            before = self.writers_before(layer)
            counts += [before] * self.attention_readers
            counts += [before if self.parallel else before + self.n_heads] * self.mlp_readers
        return torch.tensor([*counts, self.n_writers])

    @cached_property
    def n_edges(self) -> int:
        """Edges in the graph: GPT-2 small has 32,491."""
        return int(self.visible.sum())

    @cached_property
    def offsets(self) -> Int[Tensor, "reader"]:
        """Index of each reader's first edge."""
        return self.visible.cumsum(0) - self.visible

    @cached_property
    def reader_of(self) -> Int[Tensor, "edge"]:
        """Reader of every edge."""
        return torch.repeat_interleave(torch.arange(self.n_readers), self.visible)

    @cached_property
    def writer_of(self) -> Int[Tensor, "edge"]:
        """Writer of every edge."""
        return torch.arange(self.n_edges) - self.offsets[self.reader_of]

    @cached_property
    def dense_index(self) -> Int[Tensor, "edge"]:
        """Place of every edge in a flattened `[n_readers, n_writers]` matrix."""
        return self.reader_of * self.n_writers + self.writer_of

    @torch.inference_mode(False)  # what was looked up in a validation is used in training, too
    def placed(self, name: str, device: torch.device) -> Int[Tensor, "_"]:
        """`dense_index`, `writer_of` or `reader_of` on a device, copied there once (a captured step cannot copy)."""
        key = (name, device)
        if key not in self._copies:
            known = getattr(self, name)
            self._copies[key] = (known.clone() if known.is_inference() else known).to(device)
        return self._copies[key]

    @cached_property
    def _copies(self) -> dict[tuple[str, torch.device], Tensor]:
        return {}

    def writers_before(self, layer: int) -> int:
        """Writers ahead of a block: those that its attention sees."""
        return self.inputs + layer * self.writers_per_layer

    def reader_rows(self, layer: int) -> slice:
        """The readers of one block, those of the MLP last."""
        start = layer * self.readers_per_layer
        return slice(start, start + self.readers_per_layer)

    def mlp_row(self, layer: int) -> int:
        """The place of a block's MLP among the readers."""
        return layer * self.readers_per_layer + self.attention_readers

    @cached_property
    def writers(self) -> list[str]:
        """Names of the writers."""
        names: list[str] = [*INPUTS[: self.inputs]]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)] + [f"m{layer}"]
        return names

    @cached_property
    def nodes(self) -> list[str]:
        """Names of the nodes: heads and MLPs, the writers without the inputs."""
        return self.writers[self.inputs :]

    def place(self, writer: int) -> tuple[int, int | None] | None:
        """Layer and head of a writer; the head is None for an MLP, all is None for an input."""
        if writer < self.inputs:
            return None
        layer, head = divmod(writer - self.inputs, self.writers_per_layer)
        return layer, head if head < self.n_heads else None

    def by_head(self, values: Shaped[Tensor, "writer"]) -> Shaped[Tensor, "layer head"]:
        """What writers have, of the heads alone."""
        return values[self.inputs :].unflatten(0, (self.n_layers, self.writers_per_layer))[:, :-1]

    @cached_property
    def readers(self) -> list[str]:
        """Names of the readers."""
        names = []
        for layer in range(self.n_layers):
            for kind, heads in (("q", self.n_heads), ("k", self.n_kv_heads), ("v", self.n_kv_heads)):
                names += [f"a{layer}.h{head}<{kind}>" for head in range(heads)]
            names += [f"m{layer}", f"m{layer}<router>"][: self.mlp_readers]
        return [*names, "logits"]

    @cached_property
    def writers_of_reader(self) -> list[range]:
        """The writers whose output each reader shapes: heads of a key/value group, an MLP; none for the logits.

        Where heads are coupled, each of their readers shapes all heads of the block.
        """
        group = self.n_heads // self.n_kv_heads
        fed = []
        for layer in range(self.n_layers):
            first = self.writers_before(layer)
            if self.coupled:
                fed += [range(first, first + self.n_heads)] * self.attention_readers
            else:
                fed += [range(first + head, first + head + 1) for head in range(self.n_heads)]
                for _kind in "kv":
                    fed += [range(first + head * group, first + (head + 1) * group) for head in range(self.n_kv_heads)]
            fed += [range(first + self.n_heads, first + self.n_heads + 1)] * self.mlp_readers
        return [*fed, range(0)]

    def edge_name(self, edge: int) -> str:
        """Name of an edge: `a0.h1->m3`, `input->a2.h0<q>`."""
        return f"{self.writers[int(self.writer_of[edge])]}->{self.readers[int(self.reader_of[edge])]}"

    def edge_index(self, name: str) -> int:
        """Index of a named edge.

        Raises:
            KeyError: no such edge in this graph.
        """
        match = re.fullmatch(r"(\S+)->(\S+)", name)
        if match:
            writer, reader = self._places
            source, target = writer.get(match[1]), reader.get(match[2])
            if source is not None and target is not None and source < int(self.visible[target]):
                return int(self.offsets[target]) + source
        raise KeyError(f"no edge '{name}' in a graph of {self.n_layers} layers x {self.n_heads} heads")

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, int]]:
        return {n: i for i, n in enumerate(self.writers)}, {n: i for i, n in enumerate(self.readers)}
