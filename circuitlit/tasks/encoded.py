"""Pairs as token ids: ragged rows, and the batches made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlit.tasks.pair import Batch

TABLES = ("clean", "corrupted", "answer", "roles", "choices", "signs")
PACKED = 2**24  # padded tokens of a split that is kept as tensors


class Row(NamedTuple):
    """Token ids of one pair.

    Attributes:
        clean: clean prompt and all answer tokens but the last.
        corrupted: corrupted prompt and the same answer tokens, as long as `clean`; `clean` itself where there is none.
        answer: all answer tokens.
        end: position of the last prompt token, which predicts the first answer token.
        contrast: first answer token at which answer and wrong answer differ; 0 without a wrong answer.
        wrong: token of the wrong answer there, below 0 without one, as in `Batch`.
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
class _Packed:
    """Rows as padded tables, token ids in 32 bits."""

    clean: Int[Tensor, "row pos"]
    corrupted: Int[Tensor, "row pos"]
    answer: Int[Tensor, "row answer"]
    roles: Int[Tensor, "row pos"]
    choices: Int[Tensor, "row choice"]
    signs: Int[Tensor, "row choice"]
    lengths: Int[Tensor, "row"]
    answers: Int[Tensor, "row"]
    choice_counts: Int[Tensor, "row"]
    end: Int[Tensor, "row"]
    contrast: Int[Tensor, "row"]
    wrong: Int[Tensor, "row"]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Packed:
        """Pack rows."""
        return cls(
            *(_pad([getattr(row, name) for row in rows]) for name in TABLES),
            *(torch.tensor([len(getattr(row, name)) for row in rows]) for name in ("clean", "answer", "choices")),
            *(torch.tensor([getattr(row, name) for row in rows]) for name in ("end", "contrast", "wrong")),
        )


@dataclass(frozen=True)
class EncodedPairs:
    """The pairs of one split as token ids, ragged.

    Attributes:
        rows: one for each pair, in the split's order.
        role_names: names of the roles in `rows`, from "other" to "end".
        groups: number of the sentence (or other item) that each pair shares with others; empty where each stands alone.
        numbers: of each pair in the split that `some` took it from, which its batches are indexed by; empty in a split.
    """

    rows: list[Row]
    role_names: tuple[str, ...]
    groups: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def some(self, taken: Sequence[int]) -> EncodedPairs:
        """Some of the pairs; what is kept of the split by number serves their batches, too."""
        rows, groups = [self.rows[i] for i in taken], tuple(self.groups[i] for i in taken) if self.groups else ()
        numbers = tuple(self.numbers[i] for i in taken) if self.numbers else tuple(taken)
        return EncodedPairs(rows, self.role_names, groups, numbers)

    @cached_property
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
        taken = torch.tensor(list(indices))
        rows = self._packed if self._packed is not None else _Packed.of([self.rows[i] for i in indices])
        places = taken if self._packed is not None else torch.arange(len(taken))
        lengths, answers = rows.lengths[places], rows.answers[places]
        longest = int(lengths.max())
        width = longest if pad_to is None else pad_to
        if longest > width:
            raise ValueError(f"a row has {longest} tokens, more than the {width} to pad to")
        columns, choices = int(answers.max()), int(rows.choice_counts[places].max())
        if pad_to is not None or multiple > 1:
            most = self._widest
            columns, choices = most[1:]
            if pad_to is None:
                width = min(-(-width // multiple) * multiple, most[0])
        mask = torch.arange(columns) < answers[:, None]

        def cut(table: Int[Tensor, "row column"], size: int) -> Int[Tensor, "taken size"]:
            part = table[:, :size][places].long()
            short = size - part.shape[1]
            return torch.nn.functional.pad(part, (0, short)) if short else part

        numbers = torch.tensor([self.numbers[i] for i in indices]) if self.numbers else taken
        return Batch(
            index=numbers,
            group=torch.tensor([self.groups[i] for i in indices]) if self.groups else numbers.clone(),
            clean=cut(rows.clean, width),
            corrupted=cut(rows.corrupted, width),
            lengths=lengths,
            positions=(rows.end[places][:, None] + torch.arange(columns)) * mask,
            answer=cut(rows.answer, columns),
            answer_mask=mask,
            contrast=rows.contrast[places],
            wrong=rows.wrong[places],
            roles=cut(rows.roles, width),
            choices=cut(rows.choices, choices),
            signs=cut(rows.signs, choices),
        )

    @cached_property
    def _widest(self) -> tuple[int, int, int]:
        """Most tokens, answer tokens and choices in any row."""
        return (
            max(self.lengths),
            max(len(row.answer) for row in self.rows),
            max(len(row.choices) for row in self.rows),
        )

    @cached_property
    def _packed(self) -> _Packed | None:
        """All rows as tensors, so that a batch is a few look-ups; None where padding would take too much memory."""
        return _Packed.of(self.rows) if self._widest[0] * len(self.rows) <= PACKED else None

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

    def spread(self, count: int | None = None) -> list[int]:
        """Some pairs of as many sentences as possible: one of each sentence, then a second one of each, and so on.

        Args:
            count: how many, at most; None takes all.
        """
        scattered = sorted(range(len(self)), key=lambda pair: pair * 2654435761 % 2**32)  # variants mix
        seen: Counter[int] = Counter()
        turn = {}
        for pair in scattered:
            group = self.groups[pair] if self.groups else pair
            turn[pair] = seen[group]
            seen[group] += 1
        return sorted(scattered, key=turn.__getitem__)[:count]

    def led_by(self, token: int) -> EncodedPairs:
        """The pairs with one more token in front of both prompts."""
        rows = [
            row._replace(
                clean=(token, *row.clean), corrupted=(token, *row.corrupted), roles=(0, *row.roles), end=row.end + 1
            )
            for row in self.rows
        ]
        return replace(self, rows=rows)

    @property
    def n_groups(self) -> int:
        """Different sentences (or other items) among the pairs."""
        return len(set(self.groups)) if self.groups else len(self)

    def by_length(self) -> list[int]:
        """The pairs in order of their lengths, so that batches need little padding."""
        return sorted(range(len(self)), key=self.lengths.__getitem__)


def _pad(rows: Sequence[Sequence[int]]) -> Int[Tensor, "row width"]:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int32).view(len(rows), width)
