"""What nodes and edges do in a circuit: estimated for all by one gradient, measured for some by ablating them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from torch import Tensor

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.matched import matched_nodes
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.graph import Circuit, Graph, MaskLayout
from circuitlit.graph.layout import sum_by_writer
from circuitlit.graph.nodes import place_of
from circuitlit.graph.select import edges_from, nodes_of
from circuitlit.heads.causal import metric_of_pairs
from circuitlit.heads.explain.explanation import EdgeEffects, NodeEffect
from circuitlit.heads.path_patching import PatchBed
from circuitlit.masked.ablation import Kind
from circuitlit.objective import negative_metric

Without = Callable[[str], Float[Tensor, "pair"]]
LISTED = 2000  # edges whose estimates are kept


def estimated_effects(bench: Workbench, circuit: Circuit, rows: Sequence[int], size: int) -> Float[Tensor, "role edge"]:
    """By how much each of the circuit's edges raises the task's metric, to first order, by token role; 0 for the rest.

    It is the metric's gradient by the masks, at the circuit: what is lost if only this edge is cut, as far as the
    metric is linear in its mask. Summed over the edges out of a node it estimates the node's effect, and the roles say
    at which tokens that arises.

    Args:
        bench: subject, pairs and masked model.
        circuit: of the same model.
        rows: pairs of `bench.data.to_choose_on`.
        size: pairs in a batch.
    """
    pairs, device = bench.data.to_choose_on, bench.subject.device
    layout = MaskLayout(bench.subject.graph, pairs.role_names)
    loss = MaskedLoss(bench.model, layout, negative_metric, capture=False)
    kept = circuit.kept.to(device, torch.float32).expand(layout.copies, -1)
    references, total = bench.fresh_references(), torch.zeros_like(kept)
    for batch in pairs.batches(size, order=rows):
        placed = batch.to(device)
        masks = kept.flatten().clone().requires_grad_(True)
        lost = loss(masks, placed, references.compute(placed))
        total -= torch.autograd.grad(lost, masks)[0].view_as(kept) * len(batch) / len(rows)
    return (total * kept).double().cpu()


def leading_nodes(
    circuit: Circuit, effects: Float[Tensor, "role edge"], heads: int, mlps: int
) -> dict[str, Float[Tensor, "role"]]:
    """The circuit's heads and MLPs with the largest estimated effects, by role; largest first."""
    graph = circuit.graph
    by_node = sum_by_writer(graph, effects)[:, graph.inputs :]
    size = by_node.sum(0).abs() * nodes_of(graph, circuit.reachable)
    order = [graph.nodes[place] for place in size.argsort(descending=True, stable=True).tolist() if size[place] > 0]
    chosen = [name for kind, count in (("a", heads), ("m", mlps)) for name in _of_kind(order, kind)[:count]]
    place = {name: number for number, name in enumerate(graph.nodes)}
    return {name: by_node[:, place[name]] for name in order if name in chosen}


def largest(bed: TestBed, circuit: Circuit, candidates: Sequence[str], heads: int, mlps: int) -> list[str]:
    """Of some nodes those whose ablation within the circuit changes the metric most, on pairs to choose on.

    The gradient finds nodes whose effect is far from linear in their masks too low; among half as many more as are
    wanted they are mostly there.
    """
    inside = bed.run(circuit.kept).metric.mean()
    size = {
        name: float((bed.run(circuit.kept & ~_edges(circuit.graph, name)).metric.mean() - inside).abs())
        for name in candidates
    }
    order = sorted(size, key=lambda name: -size[name])
    return [name for kind, count in (("a", heads), ("m", mlps)) for name in _of_kind(order, kind)[:count]]


def random_nodes(circuit: Circuit, chosen: Sequence[str], seed: int) -> list[str]:
    """Half as many other nodes of the circuit, of the same kinds and, as far as there are any, layers; none twice."""
    drawn = matched_nodes(circuit.graph, chosen, 1, seed, circuit.nodes())[0]
    others = [name for name in drawn if name not in chosen]
    return [name for kind in "am" for name in _half(_of_kind(others, kind), seed)]


def node_effects(bed: TestBed, circuit: Circuit, names: Sequence[str], whole: Without) -> list[NodeEffect]:
    """What ablating each node alone does to the task's metric, within the circuit and in the full model.

    Args:
        bed: the pairs.
        circuit: of the same model.
        names: of the nodes.
        whole: of `whole_model`, on the same pairs.
    """
    inside, made = bed.run(circuit.kept), []
    for name in names:
        small = bed.run(circuit.kept & ~_edges(circuit.graph, name))
        made.append(
            NodeEffect(
                name=name,
                in_circuit=mean_estimate((inside.metric - small.metric).double(), inside.group),
                in_model=mean_estimate((bed.full.metric - whole(name)).double(), inside.group),
            )
        )
    return made


def whole_model(bed: TestBed, kind: Kind) -> Without:
    """The full model's metric without a node, by name: for heads from the first changed block on, which is cheap."""

    def masked(name: str) -> Float[Tensor, "pair"]:
        return bed.run(~_edges(bed.model.graph, name)).metric

    if kind not in ("interchange", "zero"):
        return masked
    try:
        metric = metric_of_pairs(PatchBed.build(bed.model.subject, bed.batches), kind)
    except UserError:
        return masked

    def stock(name: str) -> Float[Tensor, "pair"]:
        layer, head = place_of(name)
        return masked(name) if head is None else metric([(layer, head)])

    return stock


def edge_effects(
    bed: TestBed, circuit: Circuit, effects: Float[Tensor, "role edge"], count: int, seed: int
) -> EdgeEffects:
    """The estimated effects by name, and for the first `count` and as many random edges the measured ones."""
    graph, size = circuit.graph, effects.sum(0)
    there = circuit.reachable.any(0).cpu()
    order = [edge for edge in size.abs().argsort(descending=True, stable=True).tolist() if there[edge]]
    rest = order[count:]
    drawn = [*order[:count], *random.Random(seed).sample(rest, min(count, len(rest)))]
    inside, measured = bed.run(circuit.kept), {}
    for edge in drawn:
        without = circuit.kept & (torch.arange(graph.n_edges) != edge)
        lost = (inside.metric - bed.run(without).metric).double()
        measured[graph.edge_name(edge)] = mean_estimate(lost, inside.group)
    estimates, losses = [float(size[edge]) for edge in drawn], [one.value or 0.0 for one in measured.values()]
    varied = len({*estimates}) > 2 and len({*losses}) > 1
    correlation, p = spearmanr(estimates, losses) if varied else (None, None)
    return EdgeEffects(
        estimate={graph.edge_name(edge): float(f"{size[edge]:.4g}") for edge in order[:LISTED]},
        measured=measured,
        correlation=None if correlation is None else float(correlation),  # type: ignore[arg-type]
        p=None if p is None else float(p),  # type: ignore[arg-type]
    )


def _edges(graph: Graph, name: str) -> Bool[Tensor, "1 edge"]:
    return edges_from(graph, [name])[None]


def _half(names: list[str], seed: int) -> list[str]:
    return sorted(random.Random(seed).sample(names, -(-len(names) // 2)))


def _of_kind(names: Sequence[str], kind: str) -> list[str]:
    return [name for name in names if name[0] == kind]
