"""Where heads attend, what they write, and the roles that head scores give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlit.discover.workbench import Workbench
from circuitlit.graph.nodes import place_of
from circuitlit.heads.attention import Heads, run_streams
from circuitlit.heads.explain.explanation import Look
from circuitlit.masked import run_writers
from circuitlit.tasks.encoded import EncodedPairs
from circuitlit.tasks.pair import Batch
from circuitlit.tasks.splits import OTHER
from circuitlit.tasks.tokens import token_texts

WRITTEN = 4
ITSELF, FIRST, BEFORE = "itself", "first token", "token before"
Pattern = Float[Tensor, "batch pos key"]


@dataclass(frozen=True)
class Seen:
    """Clean prompts as heads see them.

    Attributes:
        heads: the subject's.
        batch: the prompts; those that are shown come first.
        pairs: that they are of.
        shown: how many patterns and writes are kept.
    """

    heads: Heads
    batch: Batch
    pairs: EncodedPairs
    shown: int

    @classmethod
    def of(cls, bench: Workbench, rows: Sequence[int], shown: int) -> Seen:
        """Of some test pairs."""
        pairs = bench.data.test
        return cls(Heads(bench.subject), pairs.collate(rows).to(bench.subject.device), pairs, min(shown, len(rows)))


@torch.no_grad()
def look(seen: Seen, acts: dict[str, str]) -> dict[str, Look]:
    """Where each node attends and what it writes.

    Args:
        seen: the prompts.
        acts: for each node the token role at which it acts most: attention is looked at from there.
    """
    streams = run_streams(seen.heads.subject, seen.batch.clean)
    writers = run_writers(seen.heads.subject, seen.batch.clean)
    graph, found = seen.heads.graph, {}
    for name, role in acts.items():
        layer, head = place_of(name)
        at = _at_role(seen, role)
        last = [int(row.nonzero()[-1, 0]) if bool(row.any()) else 0 for row in at]
        if head is None:
            output, pattern = writers.mlps[:, layer], None
        else:
            mixed = writers.heads[:, layer].unflatten(-1, (graph.n_heads, -1))[..., head, :]
            output = mixed @ seen.heads.parts[layer].out[head]
            pattern = seen.heads.pattern(layer, streams[layer])[:, head]
        written = [_written(seen, output[row, last[row]], row, last[row]) for row in range(seen.shown)]
        found[name] = Look(
            places=last[: seen.shown],
            attends={} if pattern is None else _by_label(seen, pattern, at),
            uniform={} if pattern is None else _by_label(seen, _uniform(pattern), at),
            patterns=[] if pattern is None else [_rounded(seen, pattern, row) for row in range(seen.shown)],
            writes=[said[0] for said in written],
            lowers=[said[1] for said in written],
        )
    return found


def _at_role(seen: Seen, role: str) -> Tensor:
    """True at the prompts' tokens of a role."""
    length = seen.batch.clean.shape[1]
    real = torch.arange(length, device=seen.batch.clean.device) < seen.batch.lengths[:, None]
    return (seen.batch.roles == seen.pairs.role_names.index(role)) & real


def _by_label(seen: Seen, pattern: Pattern, at: Tensor) -> dict[str, float]:
    """Mean attention from the marked tokens, by what the keys are; largest first, and 1 in all."""
    length = pattern.shape[1]
    places = torch.arange(length, device=pattern.device)
    roles = seen.batch.roles[:, None, :].expand(-1, length, -1)
    other = roles == seen.pairs.role_names.index(OTHER)
    own = (places[:, None] == places).expand_as(roles)
    labels = {ITSELF: own}
    labels[FIRST] = other & (places == 0) & ~own
    labels[BEFORE] = other & (places[:, None] - 1 == places) & ~own & (places > 0)
    labels[OTHER] = other & ~own & ~labels[FIRST] & ~labels[BEFORE]
    for number, name in enumerate(seen.pairs.role_names):
        if name != OTHER:
            labels[name] = (roles == number) & ~own
    weight = at.double() / at.sum(1, keepdim=True).clamp(min=1)
    weight = weight / max(1, int(at.any(1).sum()))
    shares = {name: float((pattern * mask * weight[:, :, None]).sum()) for name, mask in labels.items()}
    return dict(sorted(shares.items(), key=lambda one: -one[1]))


def _uniform(pattern: Pattern) -> Pattern:
    """Attention that does not choose: all tokens up to the own one alike."""
    seen = torch.ones_like(pattern).tril()
    return seen / seen.sum(-1, keepdim=True)


def _rounded(seen: Seen, pattern: Pattern, row: int) -> list[list[float]]:
    """Attention up to the token that predicts where the answers first differ, as the examples show it."""
    end = int(seen.batch.positions[row, seen.batch.contrast[row]]) + 1
    lines = enumerate(pattern[row, :end, :end].tolist())
    return [[round(value, 3) for value in line[: place + 1]] for place, line in lines]


def _written(seen: Seen, output: Float[Tensor, "d"], row: int, place: int) -> tuple[list[str], list[str]]:
    """The tokens that an output alone, through final norm and unembedding, makes likeliest, and least likely."""
    subject = seen.heads.subject
    logits, before = subject.read_out(output[None])[0], int(seen.batch.clean[row, place])
    tops = (side.topk(min(WRITTEN, len(logits))).indices.tolist() for side in (logits, -logits))
    most, least = ([token_texts(subject.tokenizer, [token], before)[0] for token in top] for top in tops)
    return most, least
