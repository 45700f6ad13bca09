"""What writers put out beyond a held run, and who hears it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlit.masked.tokens import Tokens


class Changes:
    """Writers that put out something else than in the held run, in the order in which they were computed."""

    def __init__(self, room: Float[Tensor, "writer variant token d"]) -> None:
        self._room = room
        self.writers: list[int] = []

    def add(self, writers: list[int], change: Float[Tensor, "_ variant token d"]) -> None:
        """Enter some writers' changes."""
        self._room[len(self.writers) : len(self.writers) + len(writers)] = change
        self.writers += writers

    def all(self) -> Float[Tensor, "_ variant token d"]:
        """The changes, one row a changed writer."""
        return self._room[: len(self.writers)]

    def reach(
        self, masks: Float[Tensor, "reader writer"], readers: range
    ) -> tuple[list[int], list[int], Float[Tensor, "input variant token d"]]:
        """Which readers hear a change (counted from the first of `readers`), and what they hear.

        Returns:
            The readers; for each the number of its distinct input; the distinct inputs' changes. Two readers share an
            input where all their masks agree.
        """
        block = masks[readers.start : readers.stop]
        heard = block[:, self.writers].any(1).nonzero().flatten()
        if not len(heard):
            return [], [], self._room[:0]
        rows, inverse = block[heard].unique(dim=0, return_inverse=True)
        change = rows[:, self.writers].to(self._room.device) @ self.all().flatten(1)
        return heard.tolist(), inverse.tolist(), change.unflatten(1, self._room.shape[1:])

    def at(self, row: Float[Tensor, "writer"], tokens: Int[Tensor, "kept"]) -> Float[Tensor, "variant kept d"]:
        """What one reader hears at some tokens."""
        return torch.einsum("w,wvtd->vtd", row[self.writers].to(self._room.device), self.all()[:, :, tokens])


def replaced(
    held: Float[Tensor, "head batch pos width"],
    wanted: list[int],
    heads: list[int],
    new: Float[Tensor, "_ variant token width"] | None,
    variants: int,
    tokens: Tokens | None,
) -> Float[Tensor, "_ rows pos width"]:
    """Vectors of the wanted heads for every variant: new ones where there are any, else the held ones.

    Args:
        held: of all heads.
        wanted: heads, some of them perhaps more than once.
        heads: those of the new vectors.
        new: of the live tokens.
        variants: how many.
        tokens: which ones are live; None for all.
    """
    if new is not None and heads == wanted and tokens is None:
        return new.unflatten(2, held.shape[1:3]).flatten(1, 2)
    out = held[wanted].flatten(1, 2)[:, None].repeat(1, variants, 1, 1)
    if new is not None:
        source = {head: number for number, head in enumerate(heads)}
        places = [number for number, head in enumerate(wanted) if head in source]
        found = new[[source[wanted[number]] for number in places]]
        out[places] = found if tokens is None else out[places].index_copy(2, tokens.live, found)
    return out.unflatten(2, held.shape[1:3]).flatten(1, 2)
