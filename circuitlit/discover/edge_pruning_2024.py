"""Edge Pruning as published in 2024, for comparison: sampled sparsity, learned multipliers, two binarisations.

Differences to our own learner, each of them the published code's: the sparsity in the loss is that of the sampled
gates; it is driven by two multipliers under gradient ascent, which like the masks decay towards 0 and share the
gradient clipping; the target may exceed 1; every writer has a node mask; the soft masks are binarised by a quota of
zeros in each tensor and then by one threshold. Ours alone is the graph: one input writer, and only edges that exist
have masks.

Source: Bhaskar et al., "Finding Transformer Circuits with Edge Pruning" (arXiv 2406.16778), section 3 and code.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitlit.discover.gates import HardConcrete, logistic_noise, mixed
from circuitlit.discover.learn import MaskLearner
from circuitlit.discover.overflow import Overflow
from circuitlit.graph import EdgeScores
from circuitlit.tasks.pair import Batch

INITIAL = (10.0, 0.01)  # mean and standard deviation of the first log-alphas
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
BISECTIONS = 40


class EdgePruning2024(MaskLearner):
    """The published recipe; needs masks on edges and nodes, and hard-concrete gates.

    Arguments are those of `MaskLearner`; of the schedule `steps`, `lr`, `lr_warmup`, `start_sparsity` and `warmup`
    count, and all ramps are linear. `initial` and `constraint_gradient` are not used.

    Args:
        edge_target: sparsity that the multipliers drive edges to; may exceed 1.
        node_target: the same for nodes; None leaves the nodes' multipliers out, as the published scripts do.
        lr_multiplier: learning rate of the multipliers.
    """

    def __init__(
        self,
        *args: Any,
        edge_target: float = 1.02,
        node_target: float | None = None,
        lr_multiplier: float = 0.8,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.loss.layout.sites != "both" or not isinstance(self.gates, HardConcrete):
            raise ValueError("the published recipe has hard-concrete gates on edges and on nodes: mask.sites=both")
        self.edge_target, self.node_target, self.lr_multiplier = edge_target, node_target, lr_multiplier
        generator = torch.Generator().manual_seed(mixed(self.seed))
        mean, deviation = INITIAL
        size = self.loss.layout.size
        self.log_alpha = nn.Parameter(mean + deviation * torch.randn(size, generator=generator))
        self.overflow = Overflow([self.log_alpha])
        self.multipliers = nn.Parameter(torch.zeros(4))  # linear and quadratic, of edges and of nodes
        self.multipliers.register_hook(torch.neg)  # a minimiser's ascent

    def masked_loss(self, batch: Batch, step: int, micro_batch: int) -> Float[Tensor, ""]:
        """The objective under sampled gates and the Lagrangian of their sampled sparsity."""
        noise = logistic_noise(self.log_alpha.numel(), self.seed, step, micro_batch, self.device)
        gates = self.gates.sample(self.log_alpha, noise)
        value = self.loss(gates, batch, self.references(batch))
        edges = self.loss.layout.n_edge_masks
        value = value + self._penalty(gates[:edges], self.edge_target, step, self.multipliers[:2])
        if self.node_target is not None:
            value = value + self._penalty(gates[edges:], self.node_target, step, self.multipliers[2:])
        return value

    @torch.no_grad()
    def trained_masks(self) -> Float[Tensor, "copies edge"]:
        """Masks of all edges as the last step draws them."""
        noise = logistic_noise(self.log_alpha.numel(), self.seed, self.schedule.steps - 1, 0, self.device)
        return self.loss.layout.edges(self.gates.sample(self.log_alpha, noise))

    def _penalty(self, gates: Tensor, target: float, step: int, multipliers: Tensor) -> Tensor:
        progress = min(1.0, step / max(1.0, self.schedule.warmup * self.schedule.steps))
        start = self.schedule.start_sparsity or 0.0
        excess = (1 - gates.mean()) - (start + (target - start) * progress)
        return multipliers[0] * excess + multipliers[1] * excess**2

    def lr_factor(self, step: int) -> float:
        """Linear rise, then linear fall to 0."""
        warm, steps = self.schedule.lr_warmup, self.schedule.steps
        if step < warm:
            return step / warm
        return max(0.0, (steps - step) / max(1, steps - warm))

    def configure_optimizers(self) -> Any:
        """AdamW with weight decay on masks and multipliers."""
        groups = [
            {"params": [self.log_alpha], "lr": self.schedule.lr},
            {"params": [self.multipliers], "lr": self.lr_multiplier},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip the norm of all gradients together."""
        torch.nn.utils.clip_grad_norm_([self.log_alpha, self.multipliers], MAX_GRAD_NORM)

    def scores(self) -> EdgeScores:
        """Soft masks after the quota, an edge's times its writer's; `details` say how many the threshold keeps."""
        layout = self.loss.layout
        flat = self.log_alpha.detach().cpu()
        edges, nodes = flat[: layout.n_edge_masks], flat[layout.n_edge_masks :]
        of_readers, of_writers = self._tensors()
        soft_edges, soft_nodes = self._quota(edges, of_readers), self._quota(nodes, of_writers)
        kept = layout.edges(torch.cat([_threshold(soft_edges), _threshold(soft_nodes)]).float()) > 0
        values = layout.edges(torch.cat([soft_edges, soft_nodes]))
        details: dict[str, object] = {
            "steps": self.schedule.steps,
            "edge_target": self.edge_target,
            "published_count": int(kept.sum()),
        }
        name = "edge_pruning_2024"
        return EdgeScores(layout.graph, values, name, layout.roles, details=details, kind="share", unit="soft mask")

    def _tensors(self) -> tuple[Tensor, Tensor]:
        """Which of the published code's tensors each edge mask and each node mask lies in.

        Edges have one for each layer's q, k, v and MLP readers and one for the logits; nodes one for the input, one for
        each layer's heads and one for its MLP.
        """
        graph, copies = self.loss.layout.graph, self.loss.layout.copies
        heads, groups = graph.n_heads, graph.n_kv_heads
        layers = range(graph.n_layers)
        block = torch.tensor([0] * heads + [1] * groups + [2] * groups + [3])
        readers = torch.cat([*(block + 4 * layer for layer in layers), torch.tensor([4 * graph.n_layers])])
        block = torch.tensor([1] * heads + [2])
        writers = torch.cat([torch.tensor([0]), *(block + 2 * layer for layer in layers)])
        return readers[graph.reader_of].repeat(copies), writers.repeat(copies)

    def _quota(self, log_alpha: Float[Tensor, "mask"], tensor: Tensor) -> Float[Tensor, "mask"]:
        """Soft masks, of each tensor as many set to 0, the smallest, as gates are expected to be closed."""
        assert isinstance(self.gates, HardConcrete)
        soft = torch.sigmoid(log_alpha / self.gates.temperature * 0.8)
        closed = 1 - self.gates.open_probability(log_alpha).clamp(1e-6, 1 - 1e-6)
        for name in tensor.unique():
            members = (tensor == name).nonzero().flatten()
            quota = int(closed[members].sum().round())
            soft[members[soft[members].argsort(stable=True)[:quota]]] = 0
        return soft


def _threshold(soft: Float[Tensor, "mask"]) -> Bool[Tensor, "mask"]:
    """The masks above one threshold such that as many are kept as the soft masks add up to."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if float((soft > middle).float().mean()) > float(soft.mean()):
            low = middle
        else:
            high = middle
    return soft > (low + high) / 2
