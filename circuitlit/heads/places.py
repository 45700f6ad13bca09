"""Where the names of an IOI prompt stand, found by the tokens' roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.tasks.pair import Batch

NAMES = ("io", "s1", "s2")


@dataclass(frozen=True)
class NamePlaces:
    """Positions of one batch: the indirect object, both mentions of the subject, and the last prompt token."""

    io: Int[Tensor, "batch"]
    s1: Int[Tensor, "batch"]
    s2: Int[Tensor, "batch"]
    end: Int[Tensor, "batch"]

    @classmethod
    def of(cls, batch: Batch, role_names: Sequence[str]) -> NamePlaces:
        """Find each role's token.

        Raises:
            UserError: the task has no such roles, or a prompt where a name is not one token.
        """
        if not set(NAMES) <= set(role_names):
            raise UserError(f"the IOI algorithm needs the token roles {', '.join(NAMES)}; take task=ioi")
        found = []
        for name in NAMES:
            here = batch.roles == role_names.index(name)
            if not bool((here.sum(1) == 1).all()):
                raise UserError(f"role '{name}' must be exactly one token of every prompt; take names of one token")
            found.append(here.long().argmax(1))
        return cls(*found, end=batch.positions[:, 0])

    def mask(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """True at the three names."""
        marked = torch.zeros_like(batch.clean, dtype=torch.bool)
        for places in (self.io, self.s1, self.s2):
            marked.scatter_(1, places[:, None], True)
        return marked

    def swapped(self, batch: Batch) -> Int[Tensor, "batch pos"]:
        """Clean prompts in which the first two names have changed places: the same tokens, the opposite positions."""
        ids = batch.clean.clone()
        rows = torch.arange(len(batch), device=ids.device)
        ids[rows, self.io], ids[rows, self.s1] = batch.clean[rows, self.s1], batch.clean[rows, self.io]
        return ids
