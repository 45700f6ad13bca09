"""Pairs whose many continuations are weighed against each other, each of them one or more tokens long.

Continuations that begin with the same tokens share a row, in which those are teacher-forced: the years of a century are
one row where two digits are a token, and ten rows, one a decade, where each digit is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.encode import encode
from circuitlit.tasks.encoded import EncodedPairs
from circuitlit.tasks.pair import Batch, Pair
from circuitlit.tasks.tokens import front_tokens, tokenise, tokenise_lists


@dataclass(frozen=True)
class Panel:
    """Encoded pairs with all their continuations.

    Attributes:
        rows: the pairs, each as many times as its continuations have beginnings.
        pair: of each row.
        tokens: last tokens of each row's continuations.
        places: of these among all of the pair's continuations.
        real: False where a row has fewer than others.
        signs: of each pair's continuations: +1 right, -1 wrong, 0 where there is none; first the right ones, then the
            wrong ones, in the pair's order.
        groups: number of the sentence that a pair shares with others.
    """

    rows: EncodedPairs
    pair: Int[Tensor, "row"]
    tokens: Int[Tensor, "row last"]
    places: Int[Tensor, "row last"]
    real: Bool[Tensor, "row last"]
    signs: Int[Tensor, "pair choice"]
    groups: Int[Tensor, "pair"]

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows, about so many at once, all rows of a pair in one batch."""
        rows: list[int] = []
        for number in range(len(self.signs)):
            own = (self.pair == number).nonzero()[:, 0].tolist()
            if rows and len(rows) + len(own) > size:
                yield self.rows.collate(rows)
                rows = []
            rows += own
        yield self.rows.collate(rows)

    def log_probabilities(
        self, batch: Batch, logits: Float[Tensor, "row answer vocab"], into: Float[Tensor, "pair choice"]
    ) -> None:
        """Put the log-probabilities, in nats, of the continuations of a batch's rows where they belong.

        Args:
            batch: some rows.
            logits: at their answer positions, or log-probabilities.
            into: of all pairs; filled.
        """
        index = batch.index.cpu()
        told = logits.float().log_softmax(-1)
        last = batch.answer_mask.sum(1) - 1
        forced = told.gather(-1, batch.answer[..., None])[..., 0]
        before = torch.arange(forced.shape[1], device=forced.device) < last[:, None]
        at_last = told[torch.arange(len(index), device=told.device), last]
        own = at_last.gather(1, self.tokens[index].to(told.device)) + (forced * before).sum(1, keepdim=True)
        real = self.real[index]
        pairs = self.pair[index][:, None].expand_as(real)
        into[pairs[real], self.places[index][real]] = own.cpu()[real].to(into.dtype)


def encode_panel(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, role_names: Sequence[str]) -> Panel:
    """Tokenise pairs with all their right and wrong continuations, or with answer and wrong answer.

    Continuations that change the prompt's last token are left out.

    Raises:
        UserError: a pair that cannot be encoded, or is left without right or wrong continuations.
    """
    front = front_tokens(tokenizer)
    prompts = tokenise([pair.clean for pair in pairs], tokenizer, front)
    texts = [_continuations(pair) for pair in pairs]
    wholes = tokenise_lists(
        [[pair.clean + t for t, _ in own] for pair, own in zip(pairs, texts, strict=True)], tokenizer, front
    )
    rows: list[Pair] = []
    owners: list[int] = []
    lists: list[list[tuple[int, int]]] = []  # place and last token of each row's continuations
    signs = torch.zeros(len(pairs), max(map(len, texts)), dtype=torch.long)
    for number, (pair, prompt, own, whole) in enumerate(zip(pairs, prompts, texts, wholes, strict=True)):
        beginnings: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for place, ids in enumerate(whole):
            if len(ids) > len(prompt) and ids[: len(prompt)] == prompt:
                beginnings.setdefault(tuple(ids[len(prompt) : -1]), []).append((place, ids[-1]))
                signs[number, place] = own[place][1]
        if not bool((signs[number] > 0).any() and (signs[number] < 0).any()):
            raise UserError(f"panel pair {number} ({pair.clean!r}) has no right or no wrong continuation left; drop it")
        for found in beginnings.values():
            one = replace(pair, answer=own[found[0][0]][0], wrong_answer=None, right=(), wrong=())
            rows.append(replace(one, group=pair.unit or f"pair {number}"))
            owners.append(number)
            lists.append(found)
    encoded = encode(rows, tokenizer, role_names)
    most = max(map(len, lists))
    table = torch.tensor([[*own, *[(0, 0)] * (most - len(own))] for own in lists])
    real = torch.arange(most) < torch.tensor([len(own) for own in lists])[:, None]
    pair_of = torch.tensor(owners)
    groups = torch.tensor([encoded.groups[owners.index(number)] for number in range(len(pairs))])
    return Panel(encoded, pair_of, table[..., 1], table[..., 0], real, signs, groups)


def _continuations(pair: Pair) -> list[tuple[str, int]]:
    right, wrong = (pair.right, pair.wrong) if pair.right else ((pair.answer,), (pair.wrong_answer or "",))
    return [(text, 1) for text in right] + [(text, -1) for text in wrong]
