"""Which tokens of a batch have to be computed: on a CPU all others are left out, with the same result.

Behind its last answer position a prompt is never read. Ahead of the first token in which the corrupted prompt differs,
both runs are one, so that no writer puts out anything beyond its ablated output, whatever the masks. Such a token is
seen by later ones through its keys and values alone, which those of the ablated run are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Some tokens of a padded batch, by their places among all of it.

    Attributes:
        live: those that are computed.
        past: those whose keys and values are the ablated run's.
        total: tokens of the batch, padding included.
    """

    live: Int[Tensor, "live"]
    past: Int[Tensor, "past"]
    total: int

    def place_of(self, tokens: Int[Tensor, "kept"]) -> Int[Tensor, "kept"]:
        """Where live tokens are among the live ones."""
        return torch.searchsorted(self.live, tokens)

    def spread(
        self, vectors: Float[Tensor, "head live width"], past: Float[Tensor, "head past width"] | None = None
    ) -> Float[Tensor, "head token width"]:
        """The live tokens' vectors among those of all tokens; 0 where nothing is known, nor needed."""
        heads, _, width = vectors.shape
        spread = vectors.new_zeros(heads, self.total, width).index_copy(1, self.live, vectors)
        return spread if past is None or not len(self.past) else spread.index_copy(1, self.past, past)


def picked(values: Shaped[Tensor, "token *more"], tokens: Tokens | None) -> Shaped[Tensor, "live *more"]:
    """What the live tokens have; of all without a choice."""
    return values if tokens is None else values[tokens.live]


def needed_tokens(
    length: int, positions: Int[Tensor, "batch answer"], shared: Int[Tensor, "batch"] | None
) -> Tokens | None:
    """The tokens to compute; None for all of them.

    Args:
        length: of the padded prompts.
        positions: where logits are wanted.
        shared: of each prompt, tokens at its start on which the ablated run is the clean one; None for none.
    """
    places = torch.arange(length, device=positions.device)
    wanted = positions.new_zeros(len(positions), length, dtype=torch.bool).scatter_(1, positions, True)
    ahead = torch.zeros_like(wanted) if shared is None else places < shared[:, None]
    live = (places <= positions.max(1, keepdim=True).values) & ~ahead | wanted
    if bool(live.all()):
        return None
    find = [part.flatten().nonzero()[:, 0] for part in (live, ahead & ~live)]
    return Tokens(find[0], find[1], live.numel())
