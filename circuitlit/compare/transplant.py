"""Nodes of one model put into another: what they write (cross-model activation patching), or their weights."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.compare.weights import check_same_vocabulary
from circuitlit.compare.writes import Writers
from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.graph.nodes import known_nodes, whole_layers
from circuitlit.model import Subject
from circuitlit.model.logits import final_norm, take_positions
from circuitlit.model.slices import READOUT, plain_copy, slices, withheld

log = logging.getLogger(__name__)


def everything(graph: Graph) -> list[str]:
    """All that can be transplanted: the input, every head and MLP, and `logits`, the readout."""
    return ["input", *graph.nodes, READOUT]


class Transplant:
    """Puts nodes of a donor into a host; both keep their own weights when it is done.

    What belongs to no single node goes with the set that fills its place: position embeddings with `input`, the
    attention's output bias, norm and head norms with all heads of a layer, an MLP's norm with the MLP, final norm and
    unembedding with `logits` (an unembedding tied to the embedding goes with `input` where weights are moved).

    Args:
        host: the model that receives.
        donor: the model that gives; of the same graph.

    Raises:
        UserError: the models have different graphs or vocabularies.

    Source: cross-model activation patching, Prakash et al. (arXiv 2402.14811) section 5.
    """

    def __init__(self, host: Subject, donor: Subject) -> None:
        if host.graph != donor.graph:
            raise UserError("nodes can be moved only between models of one graph; name two of one architecture")
        check_same_vocabulary(host, donor, "tuned")
        self.host, self.donor, self.graph = host, donor, host.graph
        self._writers = Writers(host), Writers(donor)
        self._plain: tuple[Subject, Subject] | None = None
        self._warned = False

    @torch.no_grad()
    def logits(
        self, nodes: Collection[str], ids: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch answer"] | None
    ) -> Float[Tensor, "batch answer vocab"]:
        """The host's logits with the nodes writing what they write in the donor on the same prompts.

        Args:
            nodes: of `everything`.
            ids: prompts, padded on the right.
            positions: where logits are wanted; None is everywhere.
        """
        known_nodes(self.graph, nodes, (READOUT,))
        written = self._writers[1].record(ids)
        moved = [node for node in nodes if node != READOUT]
        moved += [f"a{layer}.bias" for layer in whole_layers(self.graph, nodes)]
        moved += ["positions"] if "input" in nodes else []
        host, donor = self.host, self.donor
        norm, other = (final_norm(s.model) for s in (host, donor))
        readout = READOUT in nodes

        def replace(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return other(args[0]) if readout else output

        hook = norm.register_forward_hook(replace)
        try:
            with self._writers[0].changed(moved, lambda node, _own: written(node)):
                hidden = host.hidden(ids)
        finally:
            hook.remove()
        chosen = hidden if positions is None else take_positions(hidden, positions)
        return (donor if readout else host).unembed(chosen)

    @contextmanager
    @torch.no_grad()
    def weights(self, nodes: Collection[str]) -> Iterator[Subject]:
        """A copy of the host with the donor's weights in some nodes, valid inside the block.

        Keys and values of grouped-query attention belong to all heads of their group: unless the whole group is among
        the nodes they stay the host's, with a warning the first time; `withheld` names them.
        """
        known_nodes(self.graph, nodes, (READOUT,))
        if self._plain is None:
            self._plain = plain_copy(self.host), plain_copy(self.donor)
        left = withheld(self.graph, nodes)
        if left:
            message = "keys and values stay as they are, for only a part of their heads is moved: %s"
            log.log(logging.INFO if self._warned else logging.WARNING, message, " ".join(left))
            self._warned = True
        host, donor = (slices(subject, nodes) for subject in self._plain)
        kept = [target.clone() for target in host]
        try:
            for target, source in zip(host, donor, strict=True):
                target.copy_(source)
            yield self._plain[0]
        finally:
            for target, own in zip(host, kept, strict=True):
                target.copy_(own)
