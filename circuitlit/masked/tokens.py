"""Which tokens of a batch are computed: on a CPU and in held runs, all others are left out, with the same result.

Behind its last answer position a prompt is never read. Ahead of the first token in which the corrupted prompt differs,
both runs are one, so that no writer puts out anything beyond its ablated output, whatever the masks. Such a token is
seen by later ones through its keys and values alone, which those of the ablated run are. What all prompts begin with,
such as a century whose years are weighed, is computed in the first prompt alone.
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
        source: of each token the one whose vectors it has, where prompts begin alike; None where each has its own.
    """

    live: Int[Tensor, "live"]
    past: Int[Tensor, "past"]
    total: int
    source: Int[Tensor, "token"] | None = None

    def place_of(self, tokens: Int[Tensor, "kept"]) -> Int[Tensor, "kept"]:
        """Where live tokens are among the live ones."""
        return torch.searchsorted(self.live, tokens)

    def sources(self, tokens: Int[Tensor, "kept"]) -> Int[Tensor, "kept"]:
        """The tokens whose vectors some tokens have."""
        return tokens if self.source is None else self.source[tokens]

    def computed(self) -> Int[Tensor, "known"]:
        """All tokens that others have their vectors of."""
        return torch.cat([self.live, self.past])

    def spread(
        self, vectors: Float[Tensor, "head live width"], past: Float[Tensor, "head past width"] | None = None
    ) -> Float[Tensor, "head token width"]:
        """The live tokens' vectors among those of all tokens; 0 where nothing is known, nor needed."""
        heads, _, width = vectors.shape
        spread = vectors.new_zeros(heads, self.total, width).index_copy(1, self.live, vectors)
        spread = spread if past is None or not len(self.past) else spread.index_copy(1, self.past, past)
        return spread if self.source is None else spread[:, self.source]


def picked(values: Shaped[Tensor, "token *more"], tokens: Tokens | None) -> Shaped[Tensor, "live *more"]:
    """What the live tokens have; of all without a choice."""
    return values if tokens is None else values[tokens.live]


def needed_tokens(
    length: int, positions: Int[Tensor, "batch answer"], shared: Int[Tensor, "batch"] | None, alike: int = 0
) -> Tokens | None:
    """The tokens to compute; None for all of them.

    Args:
        length: of the padded prompts.
        positions: where logits are wanted.
        shared: of each prompt, tokens at its start on which the ablated run is the clean one; None for none.
        alike: tokens at the start that all prompts have in common, clean and corrupted ones.
    """
    places = torch.arange(length, device=positions.device)
    wanted = positions.new_zeros(len(positions), length, dtype=torch.bool).scatter_(1, positions, True)
    ahead = torch.zeros_like(wanted) if shared is None else places < shared[:, None]
    upto = positions.max(1, keepdim=True).values
    own, source = torch.ones_like(wanted), None
    if alike:
        own[1:, :alike], upto[0] = False, upto[0].clamp(min=alike - 1)
        wanted[0] |= (wanted & ~own).any(0)
        source = torch.arange(own.numel(), device=own.device).view_as(own).where(own, places).flatten()
    live = ((places <= upto) & ~ahead | wanted) & own
    if bool(live.all()):
        return None
    find = [part.flatten().nonzero()[:, 0] for part in (live, ahead & own & ~live)]
    return Tokens(find[0], find[1], live.numel(), source)
