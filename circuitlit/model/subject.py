"""The frozen model under study."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from circuitlit.graph import Graph
from circuitlit.model.adapters import check_adapters
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.borrow import frozen_view
from circuitlit.model.families import anatomy_of, graph_of
from circuitlit.model.linear import unwrap
from circuitlit.model.logits import final_hidden, logits_at, read_out, unembed
from circuitlit.model.weights import WeightSource


@dataclass
class Subject:
    """A frozen causal language model with its tokenizer, anatomy and graph.

    The model that is given is borrowed and stays as it is, in its mode and trainable: `model` is a view that shares its
    weights alone. Adapters stay unmerged inside it.

    Attributes:
        model: the Hugging Face model, in eval mode, no parameter trainable; one with a PEFT wrapper may be given.
        tokenizer: its tokenizer; None for models built from a bare configuration.
        name: short name for run directories and tables.
        provenance: where the weights come from (source, revision, file hash, adapter): plain types.
        true_edges: the edges that the model is known to use, where it was built so (Tracr).
        source: what the weights are to be read from, where the model has only their shapes yet; None once it has them.
        checked: True lets in modules whose `forward` was replaced; `load_subject` sees to it that a check has passed.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    name: str = "model"
    provenance: dict[str, Any] = field(default_factory=dict)
    true_edges: Bool[Tensor, "edge"] | None = field(default=None, repr=False)
    source: WeightSource | None = field(default=None, repr=False)
    checked: bool = False

    def __post_init__(self) -> None:
        self.model = _borrowed(self.model, self.checked)
        self.anatomy: Anatomy = anatomy_of(self.model.config)
        self.graph: Graph = graph_of(self.model.config)
        self.anatomy.post_scale(self.anatomy.blocks(self.model)[0])  # refuses a bias that is no head's
        if self.anatomy.softcap is not None and self.model.config._attn_implementation == "sdpa":
            self.model.set_attn_implementation("eager")  # PyTorch's kernel leaves out the cap on the scores

    @property
    def embed(self) -> nn.Module:
        """The module of token embeddings, ahead of the model's factor on them (Granite)."""
        return self.model.get_input_embeddings()

    @property
    def writes_input(self) -> nn.Module:
        """The module whose output, times the factor, is what the input writes: the embeddings, or a norm on them."""
        return self.embed if self.anatomy.embedded is None else self.model.get_submodule(self.anatomy.embedded)

    def embedded(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows d"]:
        """What the input writes: token embeddings times the model's factor."""
        made, factor = self.embed(ids), self.anatomy.embed_factor
        made = made if self.anatomy.embedded is None else self.writes_input(made)
        return made if factor == 1 else made * factor

    @property
    def captures(self) -> bool:
        """Whether a CUDA graph can hold the model: which experts run, and on how many tokens, differs by the batch.

        Borrowed attention may do what no graph holds; Falcon's own picks heads by a list, which is copied to the GPU.
        """
        experts = any(name.endswith(".experts") for name, _ in self.model.named_modules())
        return not (experts or self.anatomy.borrowed or self.model.config.model_type == "falcon")

    def positions(self, length: int) -> Float[Tensor, "pos d"]:
        """Position embeddings, where they are a writer of the graph."""
        path = self.anatomy.position_writer
        assert path is not None
        return attrgetter(path)(self.model)(torch.arange(length, device=self.device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def origin(self) -> dict[str, Any]:
        """Name and provenance, for results."""
        return {"name": self.name, **self.provenance}

    def hidden(self, ids: Int[Tensor, "batch pos"], before: Cache | None = None) -> Float[Tensor, "batch pos d"]:
        """Final normed residual stream of the stock forward. Rows are padded on the right, so causality hides pads."""
        return final_hidden(self.model, ids, before)

    def unembed(self, normed: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of normed residual vectors."""
        return unembed(self.model, normed)

    def read_out(
        self, stream: Float[Tensor, "*rows d"], tokens: Int[Tensor, "token"] | None = None
    ) -> Float[Tensor, "*rows said"]:
        """Logits (of some tokens) of residual vectors ahead of the final norm."""
        return read_out(self.model, stream, tokens)

    def logits(
        self, ids: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch answer"]
    ) -> Float[Tensor, "batch answer vocab"]:
        """Stock logits at some positions only."""
        return logits_at(self.model, ids, positions)


def _borrowed(model: nn.Module, patched: bool) -> PreTrainedModel:
    """A frozen view of a causal language model, without its PEFT wrapper, whose adapters are checked."""
    view = frozen_view(model, patched)
    inner = unwrap(view)
    if inner is not view:
        check_adapters(view)  # type: ignore[arg-type]
    return inner
