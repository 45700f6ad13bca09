"""Pairs as token ids: ragged rows, and the batches made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlit.tasks.pair import Batch


class Row(NamedTuple):
    """Token ids of one pair.

    Attributes:
        clean: clean prompt and all answer tokens but the last.
        corrupted: corrupted prompt and the same answer tokens; as long as `clean`.
        answer: all answer tokens.
        end: position of the last prompt token, which predicts the first answer token.
        contrast: first answer token at which answer and wrong answer differ; 0 without a wrong answer.
        wrong: token of the wrong answer there, -1 without one.
        roles: role of every token of `clean`; forced answer tokens are "other", 0.
        choices: right and wrong tokens at the first answer position, where the pair names several.
        signs: +1 for each right one of `choices`, -1 for each wrong one.
    """

    clean: tuple[int, ...]  # tuples: a hundred thousand rows of lists keep the garbage collector busy
    corrupted: tuple[int, ...]
    answer: tuple[int, ...]
    end: int
    contrast: int
    wrong: int
    roles: tuple[int, ...]
    choices: tuple[int, ...] = ()
    signs: tuple[int, ...] = ()


@dataclass(frozen=True)
class EncodedPairs:
    """The pairs of one split as token ids, ragged.

    Attributes:
        rows: one for each pair, in the split's order.
        role_names: names of the roles in `rows`, from "other" to "end".
    """

    rows: list[Row]
    role_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Tokens in each row."""
        return [len(row.clean) for row in self.rows]

    def collate(self, indices: Sequence[int], pad_to: int | None = None, multiple: int = 1) -> Batch:
        """Some pairs as one batch, padded on the right with token 0.

        Args:
            indices: pairs to take, at least one; their order is kept.
            pad_to: tokens in every row of the batch; None is the longest row taken. With a number given there are also
                as many columns of answers and choices as the split's longest row has, so that all batches have one
                shape.
            multiple: without `pad_to`, tokens are rounded up to a multiple of this, but not above the split's longest
                row, and answers and choices are padded as with it; 1 rounds nothing.

        Raises:
            ValueError: no index, or a row longer than `pad_to`.
        """
        if not indices:
            raise ValueError("a batch needs at least one pair")
        rows = [self.rows[i] for i in indices]
        width = pad_to if pad_to is not None else max(len(row.clean) for row in rows)
        if pad_to is None and multiple > 1:
            width = min(-(-width // multiple) * multiple, max(self.lengths))
        like = rows if pad_to is None and multiple == 1 else self.rows
        columns = max(len(row.answer) for row in like)
        choices = max(len(row.choices) for row in like)
        mask = torch.arange(columns) < torch.tensor([len(row.answer) for row in rows])[:, None]
        end = torch.tensor([row.end for row in rows])
        return Batch(
            index=torch.tensor(list(indices)),
            clean=_pad([row.clean for row in rows], width),
            corrupted=_pad([row.corrupted for row in rows], width),
            lengths=torch.tensor([len(row.clean) for row in rows]),
            positions=(end[:, None] + torch.arange(columns)) * mask,
            answer=_pad([row.answer for row in rows], columns),
            answer_mask=mask,
            contrast=torch.tensor([row.contrast for row in rows]),
            wrong=torch.tensor([row.wrong for row in rows]),
            roles=_pad([row.roles for row in rows], width),
            choices=_pad([row.choices for row in rows], choices),
            signs=_pad([row.signs for row in rows], choices),
        )

    def batches(self, size: int, pad_to: int | None = None, order: Sequence[int] | None = None) -> Iterator[Batch]:
        """The pairs as consecutive batches.

        Args:
            size: pairs in a batch; the last one may have fewer.
            pad_to: as in `collate`.
            order: pairs to take, in this order; None takes all as they stand.
        """
        rows = range(len(self)) if order is None else order
        for start in range(0, len(rows), size):
            yield self.collate(rows[start : start + size], pad_to)

    def by_length(self) -> list[int]:
        """The pairs in order of their lengths, so that batches need little padding."""
        return sorted(range(len(self)), key=self.lengths.__getitem__)


def _pad(rows: Sequence[Sequence[int]], width: int) -> Int[Tensor, "row width"]:
    if max(map(len, rows)) > width:
        raise ValueError(f"a row has {max(map(len, rows))} tokens, more than the {width} to pad to")
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
