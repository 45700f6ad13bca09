"""The weights that belong to single nodes, as views, and copies of a model whose weights can be changed."""

from __future__ import annotations

import copy
from collections.abc import Collection
from operator import attrgetter

from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.graph.nodes import node_name, place_of, whole_layers
from circuitlit.model.logits import final_norm, unembedder
from circuitlit.model.subject import Subject

READOUT = "logits"


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
    """A copy with weights of its own in which adapters are merged, or gone where they are switched off."""
    model = copy.deepcopy(subject.model)
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "merge"):
            if not module.disable_adapters:
                module.merge()  # type: ignore[operator]
            elif module.merged:
                module.unmerge()  # type: ignore[operator]
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.base_layer)
        elif hasattr(module, "modules_to_save"):
            active = getattr(module, "active_adapters", ["default"])[0]
            own = module.original_module if module.disable_adapters else module.modules_to_save[active]  # type: ignore[index]
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, own)
    return Subject(model, subject.tokenizer, subject.name, dict(subject.provenance))


def slices(subject: Subject, nodes: Collection[str]) -> list[Tensor]:
    """Views of the weights that belong to some nodes of a model without adapters, always in one order."""
    graph, anatomy, model = subject.graph, subject.anatomy, subject.model
    whole, found, group = whole_layers(graph, nodes), [], graph.n_heads // graph.n_kv_heads
    blocks = anatomy.blocks(model)
    for node in sorted(set(nodes)):
        if node == "input":
            inside = {*subject.embed.parameters(), *subject.writes_input.parameters()}
            found += sorted(inside, key=lambda parameter: -parameter.ndim)
            if anatomy.positions is not None:
                found += list(attrgetter(anatomy.positions)(model).parameters())
        elif node == READOUT:
            own = {id(p) for p in subject.embed.parameters()}
            found += [p for m in (final_norm(model), unembedder(model)) for p in m.parameters() if id(p) not in own]
        else:
            layer, head = place_of(node)
            if head is None:
                names = dict.fromkeys([*(anatomy.mlp_chain or (anatomy.mlp,)), *filter(None, [anatomy.mlp_norm])])
                names.pop(anatomy.attn_norm, None)  # one norm for both belongs to the whole layer
                found += [p for name in names for p in blocks[layer].get_submodule(name).parameters()]
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
    attention = block.get_submodule(anatomy.attention)
    modules = [getattr(attention, name) for name in anatomy.projections]
    turned = isinstance(modules[0], nn.Linear)
    weights = [module.weight.t() if turned else module.weight for module in modules]
    out = getattr(attention, anatomy.out)
    found = [(out.weight.t() if turned else out.weight).unflatten(0, (graph.n_heads, -1))[head]]
    numbers = (head, head // (graph.n_heads // graph.n_kv_heads))
    for kind, part in enumerate(anatomy.split(weights, graph)):
        if kind == 0 or keys:
            found.append(part[..., numbers[kind > 0], :])
    own = {module.weight.untyped_storage().data_ptr() for module in (*modules, out)}
    if any(view.untyped_storage().data_ptr() not in own for view in found):
        raise UserError("this model's query heads lie apart in one matrix, so none can be changed alone; take another")
    if all(module.bias is not None for module in modules):
        for kind, part in enumerate(anatomy.split([module.bias for module in modules], graph)):
            if kind == 0 or keys:
                found.append(part[..., numbers[kind > 0], :])
    return found


def _shared(subject: Subject, block: nn.Module) -> list[Tensor]:
    """What all heads of a block share: norms, the attention's own parameters, and the bias of the output."""
    anatomy = subject.anatomy
    attention = block.get_submodule(anatomy.attention)
    norms = [anatomy.ahead(block, name) for name in (anatomy.attn_norm, anatomy.post_norm or "")]
    bias = getattr(attention, anatomy.out).bias
    found: list[Tensor] = [p for norm in norms for p in norm.parameters()]
    found += [parameter for _, parameter in anatomy.further(attention)]
    return found if bias is None else [*found, bias]
