"""Which pairs each micro-step sees: a pure function of seed, step and rank, so that runs resume and scale alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor

WINDOW = 16  # micro-batches within which pairs of similar length are put together


@dataclass(frozen=True)
class MicroBatches:
    """An endless iterable of lists of rows; it has no length, so Lightning trains until `max_steps`.

    All rows are permuted anew in each pass and the passes joined to one endless order; micro-batch g of the whole run
    holds its rows `g * batch_size` to `(g + 1) * batch_size`. Rank r takes micro-batch `(step * world + r) * accumulate
    + i` as its i-th of an optimizer step: one process that accumulates twice sees what two processes see.

    Attributes:
        lengths: tokens of each row of the split, at least one row.
        batch_size: rows in each micro-batch.
        seed: equal seeds give equal orders.
        rank: this process, in [0, world).
        world: processes that train together.
        accumulate: micro-steps in one optimizer step.
        start: first micro-step, where a resumed run goes on.
        by_length: in every window of 16 micro-batches of the order, sort the rows by length, cut them into batches and
            shuffle these.
    """

    lengths: Sequence[int]
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    start: int = 0
    by_length: bool = False

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(micro_step) for micro_step in count(self.start))

    def batch(self, micro_step: int) -> list[int]:
        """Rows of this rank's micro-step, counted from the run's beginning."""
        step, i = divmod(micro_step, self.accumulate)
        number = (step * self.world + self.rank) * self.accumulate + i
        if not self.by_length:
            return self._order(number * self.batch_size, self.batch_size)
        window, place = divmod(number, WINDOW)
        rows = self._order(window * WINDOW * self.batch_size, WINDOW * self.batch_size)
        rows.sort(key=self.lengths.__getitem__)  # stable: rows of one length stay in random order
        begin = int(_permutation(WINDOW, self.seed, "window", window)[place]) * self.batch_size
        return rows[begin : begin + self.batch_size]

    def _order(self, begin: int, size: int) -> list[int]:
        """`size` rows of the endless order."""
        n_rows, rows = len(self.lengths), []
        while len(rows) < size:
            number, place = divmod(begin + len(rows), n_rows)
            rows += _permutation(n_rows, self.seed, "pass", number)[place : place + size - len(rows)].tolist()
        return rows


@lru_cache(maxsize=8)
def _permutation(size: int, seed: int, kind: str, number: int) -> Int[Tensor, " size"]:
    digest = hashlib.blake2b(f"{seed}/{kind}/{number}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randperm(size, generator=generator)


def shard(n_rows: int, batch_size: int, rank: int, world: int) -> list[list[int]]:
    """Batches in which one rank evaluates its rows, `rank::world`; every row is on exactly one rank.

    All ranks get equally many batches, because sharded weights (ZeRO-3) make each forward a collective; so batches are
    a little uneven, and one may hold a row more than `batch_size`.

    Raises:
        ValueError: fewer rows than ranks.
    """
    if n_rows < world:
        raise ValueError(f"{n_rows} rows cannot be shared among {world} ranks")
    most = ceil(n_rows / world)
    n_batches = min(ceil(most / batch_size), n_rows // world)
    return [part.tolist() for part in torch.arange(rank, n_rows, world).tensor_split(n_batches)]
