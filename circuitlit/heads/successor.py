"""Successor scores: whether a head's OV circuit maps "Monday" to "Tuesday"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitlit.heads.attention import Heads

ROMAN = "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX"
SEQUENCES: dict[str, Sequence[str]] = {
    "numbers": [str(number) for number in range(1, 201)],
    "number words": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty".split(),
    "ordinals": "first second third fourth fifth sixth seventh eighth ninth tenth".split(),
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "short days": "Mon Tue Wed Thu Fri Sat Sun".split(),
    "months": "January February March April May June July August September October November December".split(),
    "short months": "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(),
    "letters": "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z".split(),
    "roman numerals": ROMAN.split(),
}
CYCLIC = ("days", "short days", "months", "short months")
FEWEST = 4  # pairs that a list needs to count

TokenList = tuple[list[int], list[tuple[int, int]]]  # tokens that may be said, and (place, place of the successor)


def successor_lists(tokenizer: PreTrainedTokenizerBase) -> list[TokenList]:
    """Every sequence in each spelling (capitalised or not, with or without a leading space) that is single tokens.

    Words of several tokens drop out, with the pairs they are in; a list of fewer than four pairs drops out whole.
    """
    lists: list[TokenList] = []
    for name, words in SEQUENCES.items():
        for spelling in dict.fromkeys((tuple(words), tuple(word.swapcase() for word in _initials(words)))):
            for space in ("", " "):
                made = _single([space + word for word in spelling], tokenizer, name in CYCLIC)
                if len(made[1]) >= FEWEST:
                    lists.append(made)
    return lists


def _initials(words: Sequence[str]) -> list[str]:
    """Words whose `swapcase` inverts the first letter only."""
    return [word[0] + word[1:].swapcase() for word in words]


def _single(texts: list[str], tokenizer: PreTrainedTokenizerBase, cyclic: bool) -> TokenList:
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    known = [row[0] if len(row) == 1 and row[0] != tokenizer.unk_token_id else None for row in rows]
    places: dict[int, int] = {}
    tokens: list[int] = []
    for place, token in enumerate(known):
        if token is not None:
            places[place] = len(tokens)
            tokens.append(token)
    ends = range(len(known) if cyclic else len(known) - 1)
    pairs = [(i, (i + 1) % len(known)) for i in ends]
    return tokens, [(places[i], places[j]) for i, j in pairs if i in places and j in places]


@torch.no_grad()
def successor_scores(heads: Heads, lists: list[TokenList]) -> Float[Tensor, "layer head"]:
    """Share of tokens, from 0 to 1, whose successor has the highest logit of their list when a head attends to them.

    A head reads what the first MLP makes of the bare token embedding, and its output alone is unembedded. The model's
    norms are applied (before that MLP, before the head, before the unembedding), where the source folds their gains
    into the weights and leaves the rest out; the argmax is over the tokens of the same list only.

    Source: Gould et al., Successor Heads (arXiv 2312.09230) section 3; lists as in arXiv 2407.10827.
    """
    subject, graph = heads.subject, heads.graph
    right, count = torch.zeros(graph.n_layers, graph.n_heads), 0
    for tokens, pairs in lists:
        ids = torch.tensor(tokens, device=subject.device)
        source, target = torch.tensor(pairs, device=subject.device).t()
        first = heads.parts[0]
        effective = first.mlp(first.mlp_norm(subject.embedded(ids)[None]))[0]
        for layer, parts in enumerate(heads.parts):
            values = heads.values(layer, parts.attn_norm(effective[source]))
            written = torch.bmm(values, parts.out)
            said = subject.read_out(written, ids).argmax(-1)
            right[layer] += (said == target).sum(1).float().cpu()
        count += len(pairs)
    return right / count if count else right.fill_(torch.nan)
