"""Edge attribution patching with gradients integrated over activations, one group of writers at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.masked_loss import MaskedLoss
from circuitlit.discover.method import Traits, declares
from circuitlit.discover.methods.eap_ig import path_points
from circuitlit.discover.reader_gradients import Each, ablation_moves, contract, mean_scores, trace
from circuitlit.graph import EdgeScores
from circuitlit.masked import Ablated, Reference, References, run_writers
from circuitlit.tasks.pair import Batch

Group = tuple[Literal["input", "heads", "mlp"], int]


@declares(Traits(mean_of_pairs=True, gives_pairs=True))
def eap_ig_activations(
    loss: MaskedLoss,
    references: References,
    batches: Iterable[Batch],
    steps: int = 5,
    rule: str = "midpoint",
    own_paths: bool = False,
    each: Each | None = None,
) -> EdgeScores:
    """EAP with the mean of the gradients as one group of writers after another goes from ablated to clean.

    The groups are the input, the heads of one layer together, and each MLP. On a group's path its outputs are set to
    points between ablated and clean, and the rest of the model runs as it does. Costs `steps` forwards and backwards
    for each of `2 * layers + 1` groups.

    The code of EAP-IG differs in two ways. It interpolates to zero where the ablation is zero or a mean, here the path
    ends at what the ablation puts in. And a group that is set to a value passes no gradient to its own inputs there,
    so that edges into it lose that path's term; here the gradient passes on through the group's own Jacobian.

    Args:
        loss: the objective; KL works, since its gradient is not zero along the paths.
        references: teacher and ablated writers.
        batches: training pairs, each seen once.
        steps: points on each path.
        rule: as in `eap_ig`.
        own_paths: False scores every edge by the mean over all groups' paths, as EAP-IG does. True scores an edge by
            the path of its writer's group alone; as the steps grow, the scores out of each group then add up to
            `loss(group ablated) - loss(clean)`.
        each: is given every batch's pairs and their own scores, for resamples of the pairs.

    Returns:
        Scores in the loss's unit, mean over examples; ranked by magnitude.

    Raises:
        UserError: a setting out of its range.

    Source: "EAP-IG (activations)" of MIB (arXiv 2504.13151); with own paths, the per-node integral of Marks et al.
    (arXiv 2403.19647) section 2, for edges.
    """
    points = path_points(steps, rule)
    groups: list[Group] = [("input", 0)]
    for layer in range(loss.layout.graph.n_layers):
        groups.append(("heads", layer))
        groups.append(("mlp", layer))

    def of_batch(batch: Batch, reference: Reference) -> Float[Tensor, "*pair copies edge"]:
        clean = run_writers(loss.model.subject, batch.clean)
        moves = ablation_moves(clean, reference.ablated)
        if own_paths:
            terms = [
                contract(
                    loss,
                    group_gradients(loss, batch, reference, g, clean, moves, points),
                    only(moves, g),
                    batch,
                    each is not None,
                )
                for g in groups
            ]
            return torch.stack(terms).sum(0)
        mean: Tensor | None = None
        for group in groups:
            gradients = group_gradients(loss, batch, reference, group, clean, moves, points) / len(groups)
            mean = gradients if mean is None else mean.add_(gradients)
        assert mean is not None
        return contract(loss, mean, moves, batch, each is not None)

    return mean_scores(
        loss, references, batches, of_batch, "eap_ig_activations", each, steps=steps, rule=rule, own_paths=own_paths
    )


def group_gradients(
    loss: MaskedLoss,
    batch: Batch,
    reference: Reference,
    group: Group,
    clean: Ablated,
    moves: Ablated,
    points: Sequence[float],
) -> Float[Tensor, "reader token d"]:
    """Mean gradient at every reader along one group's path; `points` are the clean run's shares."""
    kind, layer = group
    total: Tensor | None = None
    for point in points:
        move = 1 - point
        embed = clean.embed + move * moves.embed if kind == "input" else None
        heads = {layer: clean.heads[:, layer] + move * moves.heads[:, layer]} if kind == "heads" else None
        mlps = {layer: clean.mlps[:, layer] + move * moves.mlps[:, layer]} if kind == "mlp" else None
        gradients = trace(loss, batch, reference.teacher, embed, heads, mlps).gradients
        total = gradients if total is None else total.add_(gradients)
    assert total is not None
    return total.div_(len(points))


def only(moves: Ablated, group: Group) -> Ablated:
    """The moves of one group of writers, zero for all others."""
    kind, layer = group
    kept = Ablated(*(torch.zeros_like(part) for part in vars(moves).values()))
    if kind == "input":
        kept.embed = moves.embed
    elif kind == "heads":
        kept.heads[:, layer] = moves.heads[:, layer]
    else:
        kept.mlps[:, layer] = moves.mlps[:, layer]
    return kept
