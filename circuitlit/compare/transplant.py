"""Nodes of one model put into another: what they write (cross-model activation patching), or their weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.compare.writes import Writers, known_nodes, node_name, place_of, whole_layers
from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.model import Subject
from circuitlit.model.logits import final_norm, take_positions, unembedder

log = logging.getLogger(__name__)
READOUT = "logits"


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
        UserError: the models have different graphs.

    Source: cross-model activation patching, Prakash et al. (arXiv 2402.14811) section 5.
    """

    def __init__(self, host: Subject, donor: Subject) -> None:
        if host.graph != donor.graph:
            raise UserError("nodes can be moved only between models of one graph; name two of one architecture")
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


def withheld(graph: Graph, nodes: Collection[str]) -> list[str]:
    """Key/value heads (`a3.kv0`) of which some query heads are among the nodes, but not all."""
    group = graph.n_heads // graph.n_kv_heads
    found = []
    for layer in range(graph.n_layers):
        for head in range(graph.n_kv_heads):
            inside = [node_name(layer, head * group + i) in nodes for i in range(group)]
            if any(inside) and not all(inside):
                found.append(f"a{layer}.kv{head}")
    return found


def plain_copy(subject: Subject) -> Subject:
    """A copy with weights of its own in which adapters are merged."""
    model = copy.deepcopy(subject.model)
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge()  # type: ignore[operator]
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.base_layer)
        elif hasattr(module, "modules_to_save"):
            active = getattr(module, "active_adapters", ["default"])[0]
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.modules_to_save[active])  # type: ignore[index]
    return Subject(model, subject.tokenizer, subject.name, dict(subject.provenance))


def slices(subject: Subject, nodes: Collection[str]) -> list[Tensor]:
    """Views of the weights that belong to some nodes of a model without adapters, always in one order."""
    graph, anatomy, model = subject.graph, subject.anatomy, subject.model
    whole, found, group = whole_layers(graph, nodes), [], graph.n_heads // graph.n_kv_heads
    blocks = anatomy.blocks(model)
    for node in sorted(set(nodes)):
        if node == "input":
            found += list(subject.embed.parameters())
            if anatomy.positions is not None:
                found += list(attrgetter(anatomy.positions)(model).parameters())
        elif node == READOUT:
            own = {id(p) for p in subject.embed.parameters()}
            found += [p for m in (final_norm(model), unembedder(model)) for p in m.parameters() if id(p) not in own]
        else:
            layer, head = place_of(node)
            if head is None:
                names = dict.fromkeys([*(anatomy.mlp_chain or (anatomy.mlp,)), anatomy.mlp_norm])
                found += [p for name in names for p in getattr(blocks[layer], name).parameters()]
            else:
                found += _head(subject, blocks[layer], head, head % group == 0 and _all(layer, head, group, nodes))
    for layer in whole:
        found += _shared(subject, blocks[layer])
    return found


def _all(layer: int, head: int, group: int, nodes: Collection[str]) -> bool:
    return all(node_name(layer, head + i) in nodes for i in range(group))


def _head(subject: Subject, block: nn.Module, head: int, keys: bool) -> list[Tensor]:
    """A head's slices of queries and output, and with `keys` those of its group's keys and values."""
    graph, anatomy = subject.graph, subject.anatomy
    attention = getattr(block, anatomy.attention)
    modules = [getattr(attention, name) for name in anatomy.projections]
    turned = isinstance(modules[0], nn.Linear)
    weights = [module.weight.t() if turned else module.weight for module in modules]
    out = getattr(attention, anatomy.out)
    found = [(out.weight.t() if turned else out.weight).unflatten(0, (graph.n_heads, -1))[head]]
    numbers = (head, head // (graph.n_heads // graph.n_kv_heads))
    for kind, part in enumerate(anatomy.split(weights, graph)):
        if kind == 0 or keys:
            found.append(part[..., numbers[kind > 0], :])
    if all(module.bias is not None for module in modules):
        for kind, part in enumerate(anatomy.split([module.bias for module in modules], graph)):
            if kind == 0 or keys:
                found.append(part[..., numbers[kind > 0], :])
    return found


def _shared(subject: Subject, block: nn.Module) -> list[Tensor]:
    """What all heads of a block share: norms, and the bias of the output."""
    anatomy = subject.anatomy
    attention = getattr(block, anatomy.attention)
    norms = [getattr(block, anatomy.attn_norm), getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)]
    norms += [] if anatomy.post_norm is None else [getattr(block, anatomy.post_norm)]
    bias = getattr(attention, anatomy.out).bias
    found = [p for norm in norms if norm is not None for p in norm.parameters()]
    return found if bias is None else [*found, bias]
