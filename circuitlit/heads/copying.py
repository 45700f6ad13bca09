"""Copying scores: whether a head that attends to a token raises (or lowers) that token's own logit."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.heads.attention import Heads, run_streams
from circuitlit.heads.path_patching import PatchBed
from circuitlit.heads.places import NamePlaces
from circuitlit.heads.roles import Head
from circuitlit.model.logits import final_norm, unembedder


def copying_of_pairs(
    bed: PatchBed, places: Sequence[NamePlaces], only: Collection[Head] | None = None
) -> dict[str, Float[Tensor, "layer head"]]:
    """Copying of the names where the task has them, else of every token of the prompts; see `copying_scores`."""
    sums: dict[str, Tensor] = {}
    total = sum(len(batch) for batch in bed.batches)
    for number, batch in enumerate(bed.batches):
        where = torch.arange(batch.clean.shape[1], device=batch.clean.device) < batch.lengths[:, None]
        if places:
            where = places[number].mask(batch)
        for name, grid in copying_scores(bed.heads, batch.clean, where, only=only).items():
            sums[name] = sums.get(name, torch.zeros_like(grid)) + grid * len(batch) / total
    return sums


@torch.no_grad()
def copying_scores(
    heads: Heads,
    ids: Int[Tensor, "batch pos"],
    places: Bool[Tensor, "batch pos"],
    top: int = 5,
    only: Collection[Head] | None = None,
) -> dict[str, Float[Tensor, "layer head"]]:
    """Share of marked tokens, from 0 to 1, that are among the `top` logits of a head's output when it attends to them.

    A head reads the residual stream after block 0 (its own attention norm applied) at a marked token; its output alone
    goes through the final norm and the unembedding. `copying` counts the token among the highest logits,
    `negative_copying` among the highest of the negated output. The head's value bias counts, as in the source.

    Args:
        heads: the subject's.
        ids: prompts, padded on the right.
        places: tokens to test: names for name movers, any tokens for general copying.
        top: how many of the highest logits count.
        only: heads that are scored, NaN for all others; None takes all.

    Source: Wang et al. (arXiv 2211.00593) section 3.1, copy score of name movers, there with names and top 5.
    """
    subject, graph = heads.subject, heads.graph
    after = run_streams(subject, ids)[1][places]
    tokens = ids[places][:, None]
    odd = all(getattr(m, "bias", None) is None for m in (final_norm(subject.model), unembedder(subject.model)))
    scores = {name: torch.full((graph.n_layers, graph.n_heads), torch.nan) for name in ("copying", "negative_copying")}
    for layer, parts in enumerate(heads.parts):
        wanted = [head for head in range(graph.n_heads) if only is None or (layer, head) in only]
        values = heads.values(layer, parts.attn_norm(after)) if wanted else after[:0]
        for head in wanted:
            written = values[head] @ parts.out[head]
            logits = subject.read_out(written).float()
            negated = -logits if odd else subject.read_out(-written).float()
            for name, said in (("copying", logits), ("negative_copying", negated)):
                rank = (said >= said.gather(1, tokens)).sum(1)  # ties count against the token
                scores[name][layer, head] = (rank <= top).float().mean()
    return scores
