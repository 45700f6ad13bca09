"""Which experts a circuit's edges come from: of every MLP that writes a kept edge, each expert's share of its norm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.tasks.pair import Batch

SHARED = "shared"


@dataclass(frozen=True)
class ExpertShares:
    """The experts behind the kept edges out of one MLP.

    Attributes:
        node: the MLP, as a writer.
        edges: kept edges out of it; all carry the same sum of experts.
        router_edges: kept edges into its router.
        shares: of each expert the summed norms of what it writes, weighed by the router, over those of all experts, on
            real tokens of clean prompts; they add up to 1. Experts that no token was sent to are left out; `shared` is
            what is written beside the routed ones.
    """

    node: str
    edges: int
    router_edges: int
    shares: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def expert_shares(subject: Subject, batches: Iterable[Batch], circuit: Circuit) -> list[dict[str, Any]] | None:
    """Shares for every MLP with a kept edge out of it or into its router; None without routers.

    Args:
        subject: the model.
        batches: some pairs, on the model's device.
        circuit: whose edges are asked about.
    """
    graph, kept = circuit.graph, circuit.kept.any(0)
    if not graph.routers:
        return None
    out = torch.bincount(graph.writer_of[kept], minlength=graph.n_writers)
    into = torch.bincount(graph.reader_of[kept], minlength=graph.n_readers)
    layers = range(graph.n_layers)
    writers = [graph.writers_before(layer) + graph.n_heads for layer in layers]
    edges = [(int(out[writers[layer]]), int(into[graph.mlp_row(layer) + 1])) for layer in layers]
    asked = [layer for layer in layers if any(edges[layer])]
    norms = _norms(subject, batches, asked)
    found = []
    for layer in asked:
        whole = sum(norms[layer].values())
        shares = {name: norm / whole for name, norm in sorted(norms[layer].items(), key=lambda one: -one[1]) if norm}
        found.append(asdict(ExpertShares(f"m{layer}", *edges[layer], shares)))
    return found


def _norms(subject: Subject, batches: Iterable[Batch], layers: list[int]) -> dict[int, dict[str, float]]:
    """Of every expert of some layers, the norms of what it writes, summed over tokens."""
    anatomy = subject.anatomy
    norms: dict[int, dict[str, float]] = {layer: defaultdict(float) for layer in layers}
    blocks = anatomy.blocks(subject.model)
    real: list[Tensor] = []

    def watch(layer: int, hooks: ExitStack) -> None:
        mlp, routed = blocks[layer].get_submodule(anatomy.mlp), []

        def of_experts(module: nn.Module, args: tuple, output: Tensor) -> None:
            routed.append(output)
            x, index, weights = args[0][real[-1]], args[1][real[-1]], args[2][real[-1]]
            for expert in index.unique().tolist():
                rows, places = (index == expert).nonzero(as_tuple=True)
                alone = index[rows, places][:, None], weights[rows, places][:, None]
                norms[layer][f"e{expert}"] += float(module.forward(x[rows], *alone).float().norm(dim=-1).sum())

        def of_all(_module: nn.Module, _args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
            whole = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)
            beside = (whole - routed.pop().flatten(0, -2))[real[-1]].float()
            if float(beside.norm()) > 1e-3 * float(whole.float().norm()):  # more than rounding
                norms[layer][SHARED] += float(beside.norm(dim=-1).sum())

        hooks.callback(mlp.get_submodule("experts").register_forward_hook(of_experts).remove)
        hooks.callback(mlp.register_forward_hook(of_all).remove)

    with ExitStack() as hooks:
        for layer in layers:
            watch(layer, hooks)
        for batch in batches:
            places = torch.arange(batch.clean.shape[1], device=batch.clean.device)
            real.append((places < batch.lengths[:, None]).flatten().nonzero()[:, 0])
            subject.hidden(batch.clean)
    return norms
