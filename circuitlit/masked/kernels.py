"""Mixing writers into readers: the two products that an edge mask costs (edges x tokens x width each)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def mix(
    out: Float[Tensor, "reader token d"],
    masks: Float[Tensor, "copies reader writer"],
    deltas: Float[Tensor, "writer token d"],
    groups: list[Int[Tensor, "_"]] | None = None,
    add: bool = True,
) -> None:
    """Add `sum_w masks[r, w] * deltas[w]` to every reader, in place.

    Args:
        out: contiguous; receives the sum.
        masks: one matrix for all tokens, or one for each group of tokens.
        deltas: contiguous.
        groups: token indices of each copy of the masks; None for a single copy.
        add: False writes the sum over what is there.
    """
    if groups is None:
        out.flatten(1).addmm_(masks[0], deltas.flatten(1), beta=1 if add else 0)
        return
    if not add:
        out.zero_()
    for matrix, tokens in zip(masks, groups, strict=True):
        part = matrix @ deltas[:, tokens].flatten(1)
        out.index_add_(1, tokens, part.view(len(matrix), len(tokens), -1))


def mix_backward(
    grad_out: Float[Tensor, "reader token d"],
    masks: Float[Tensor, "copies reader writer"],
    deltas: Float[Tensor, "writer token d"],
    grad_deltas: Float[Tensor, "writer token d"],
    groups: list[Int[Tensor, "_"]] | None = None,
) -> Float[Tensor, "copies reader writer"]:
    """Gradient of `mix` for the masks; the gradient for the deltas is added to `grad_deltas` in place."""
    if groups is None:
        grad = grad_out.flatten(1)
        grad_deltas.flatten(1).addmm_(masks[0].t(), grad)
        return (grad @ deltas.flatten(1).t())[None]
    grad_masks = masks.new_empty(masks.shape)
    for copy, tokens in enumerate(groups):
        grad = grad_out[:, tokens].flatten(1)
        part = masks[copy].t() @ grad
        grad_deltas.index_add_(1, tokens, part.view(len(part), len(tokens), -1))
        grad_masks[copy] = grad @ deltas[:, tokens].flatten(1).t()
    return grad_masks
