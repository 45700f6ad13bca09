"""Ranks by layer: a fixed number of LoRA parameters, more of them where a layer matters more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor

from circuitlit.finetune.adapters import adapted
from circuitlit.finetune.examples import Preference
from circuitlit.finetune.sft import SupervisedTuner
from circuitlit.finetune.tuner import Optimisation
from circuitlit.model import Subject
from circuitlit.model.anatomy import Anatomy

MOST = 4  # largest rank, in mean ranks


def spread_ranks(shares: Float[Tensor, "layer"] | Sequence[float], mean: int) -> list[int]:
    """Whole ranks of at least 1 and at most `MOST` times the mean, in proportion to the shares.

    All layers have modules of the same sizes, so the trainable parameters are those of uniform ranks, exactly.

    Args:
        shares: of each layer, not negative; all 0 gives uniform ranks.
        mean: mean rank, at least 1.
    """
    weights = torch.as_tensor(shares, dtype=torch.float64).clamp(min=0)
    count = len(weights)
    if float(weights.sum()) <= 0:
        return [mean] * count
    ranks, left = torch.ones(count, dtype=torch.long), count * (mean - 1)
    while left:  # what a full layer cannot take goes to the others
        room = ranks < MOST * mean
        open_weights = torch.where(room, weights.clamp(min=1e-12), 0.0)
        wanted = left * open_weights / open_weights.sum()
        whole = torch.minimum(wanted.floor().long(), MOST * mean - ranks)
        if int(whole.sum()) == 0:  # the largest remainders, one each
            best = torch.where(room, wanted - wanted.floor(), -1.0).argsort(descending=True, stable=True)
            whole[best[: min(left, int(room.sum()))]] = 1
        ranks += whole
        left -= int(whole.sum())
    return ranks.tolist()


def rank_patterns(anatomy: Anatomy, ranks: Sequence[int], scale: float) -> tuple[dict[str, int], dict[str, float]]:
    """PEFT's patterns of ranks and alphas for ranks by layer.

    Args:
        anatomy: of the model whose layers they are.
        ranks: of each layer.
        scale: alpha over rank, the same everywhere, so that a rank is no learning rate.
    """
    layers = anatomy.layers.replace(".", r"\.")
    names = [rf"{layers}\.{layer}\..*" for layer in range(len(ranks))]
    return dict(zip(names, ranks, strict=True)), {n: scale * r for n, r in zip(names, ranks, strict=True)}


def gradient_probe(subject: Subject, batches: Iterable[Preference], config: LoraConfig) -> Float[Tensor, "layer"]:
    """Each layer's share of the squared gradient that fresh adapters get from a few training batches.

    The model is left as it was. A short form of the probes of arXiv 2608.24482, which tune for 1 % of the data first.
    """
    model = adapted(subject.model, config)
    try:
        tuner = SupervisedTuner(model, Optimisation(1, 1.0))
        for number, batch in enumerate(batches):
            tuner.figures(Preference(batch.chosen.to(subject.device), None), number)["loss"].backward()
        total = torch.zeros(subject.graph.n_layers, dtype=torch.float64)
        prefix = f"{subject.anatomy.layers}."
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and prefix in name:
                total[int(name.split(prefix)[1].split(".")[0])] += float(parameter.grad.double().square().sum())
    finally:
        model.unload()  # type: ignore[operator]
        subject.model.requires_grad_(False)
    return total / total.sum() if float(total.sum()) > 0 else total
