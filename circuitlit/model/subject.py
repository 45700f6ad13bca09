"""The frozen model under study."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuitlit.graph import Graph
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.families import anatomy_of, final_softcap, graph_of
from circuitlit.model.weights import WeightSource

MULTIPLE = 8


@dataclass
class Subject:
    """A frozen causal language model with its tokenizer, anatomy and graph.

    Attributes:
        model: the Hugging Face model, in eval mode, no parameter trainable; adapters stay unmerged inside it.
        tokenizer: its tokenizer; None for models built from a bare configuration.
        name: short name for run directories and tables.
        provenance: where the weights come from (source, revision, file hash, adapter): plain types.
        true_edges: the edges that the model is known to use, where it was built so (Tracr).
        source: what the weights are to be read from, where the model has only their shapes yet; None once it has them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None = None
    name: str = "model"
    provenance: dict[str, Any] = field(default_factory=dict)
    true_edges: Bool[Tensor, "edge"] | None = None
    source: WeightSource | None = None

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        self.anatomy: Anatomy = anatomy_of(self.model.config)
        self.graph: Graph = graph_of(self.model.config)

    @property
    def embed(self) -> nn.Module:
        """Token embeddings."""
        return self.model.get_input_embeddings()

    def positions(self, length: int) -> Float[Tensor, "pos d"]:
        """Position embeddings, where they are a writer of the graph."""
        path = self.anatomy.position_writer
        assert path is not None
        return attrgetter(path)(self.model)(torch.arange(length, device=self.device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def hidden(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d"]:
        """Final normed residual stream of the stock forward. Rows are padded on the right, so causality hides pads."""
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def unembed(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of normed residual vectors."""
        head = self.model.get_output_embeddings()
        assert head is not None
        logits = unembedded(hidden, head) if uneven(hidden, head) else head(hidden)
        cap = final_softcap(self.model.config)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def logits(
        self, ids: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch answer"]
    ) -> Float[Tensor, "batch answer vocab"]:
        """Stock logits at some positions only."""
        return self.unembed(take_positions(self.hidden(ids), positions))


def uneven(hidden: Tensor, head: nn.Module) -> bool:
    """Whether a GPU's fast products refuse the logits' rows: in half precision these must be multiples of 16 bytes."""
    plain = type(head) is nn.Linear and head.bias is None and not head._forward_pre_hooks
    return hidden.is_cuda and hidden.element_size() == 2 and plain and len(head.weight) % MULTIPLE > 0  # type: ignore[arg-type]


def unembedded(hidden: Float[Tensor, "*rows d"], head: nn.Module) -> Float[Tensor, "*rows vocab"]:
    """The logits by two products, of the tokens up to a multiple of 8 and of the few others."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    even = len(weight) // MULTIPLE * MULTIPLE
    most, rest = F.linear(hidden, weight[:even]), F.linear(hidden, weight[even:])
    if most.requires_grad:
        most.register_hook(torch.Tensor.contiguous)  # of a row's gradient it would get a part, uneven again
    return torch.cat([most, rest], -1)


def take_positions(
    stream: Float[Tensor, "batch pos d"], positions: Int[Tensor, "batch answer"]
) -> Float[Tensor, "batch answer d"]:
    """The vectors at each row's own positions."""
    return torch.take_along_dim(stream, positions[..., None], 1)
