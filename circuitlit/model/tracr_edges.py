"""The edges that a compiled program uses, read off its weights: what methods of discovery are judged against.

An edge into a value, an MLP or the logits is true where what the writer can put out meets a weight of the reader. A
query and a key meet in a softmax that the compiler makes hard, so an edge into either is true where the part it carries
decides which keys win: a part that lifts all scores alike decides nothing, and neither does the compiler's default (to
attend to BOS where nothing matches) as long as something matches. Last, only edges on a path from an input to the
logits count. The model is not run.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.graph import Graph
from circuitlit.graph.select import reachable_edges
from circuitlit.model.anatomy import BlockParts
from circuitlit.model.linear import affine
from circuitlit.model.logits import unembedder
from circuitlit.model.subject import Subject

TOLERANCE = 1e-6


def true_edges(subject: Subject, prompts: list[Int[Tensor, "_ _"]]) -> Bool[Tensor, "edge"]:
    """Edges that a compiled program uses.

    Args:
        subject: a Tracr model of one head a block.
        prompts: every legal prompt, BOS first; those of equal length together as `[prompt, pos]`.

    Raises:
        ValueError: a block has several heads.
    """
    graph, model = subject.graph, subject.model
    if graph.n_heads > 1:
        raise ValueError("the winners of a softmax are worked out for one head a block")
    parts = [subject.anatomy.parts(block, graph) for block in subject.anatomy.blocks(model)]
    words, longest = torch.cat([ids.flatten() for ids in prompts]).unique(), max(ids.shape[1] for ids in prompts)
    outputs = _outputs(subject, parts, words, longest)
    true = torch.zeros(graph.n_edges, dtype=torch.bool)
    for layer, block in enumerate(parts):
        first = graph.reader_rows(layer).start
        before = outputs[: graph.writers_before(layer)]
        of_length = [_deciding(graph, block, before, words, ids) for ids in prompts]
        decided = [[any(some) for some in zip(*sides, strict=True)] for sides in zip(*of_length, strict=True)]
        values = block.v.weight[0] @ block.out[0]
        for reader, writers in enumerate((*decided, _meeting(outputs, values), _meeting(outputs, _mlp_in(block)))):
            _mark(true, graph, first + reader, writers)
    _mark(true, graph, graph.n_readers - 1, _meeting(outputs, affine(unembedder(model))[0]))
    return reachable_edges(graph, true[None])[0]


def _outputs(
    subject: Subject, parts: list[BlockParts], words: Tensor, longest: int
) -> list[Float[Tensor, "direction d"]]:
    """What each writer can put out: embedding rows, else the directions that its weights write to."""
    graph = subject.graph
    outputs = [subject.embed(words), subject.positions(longest)]
    for block in parts:
        outputs += [_directions(block.v.weight[0] @ block.out[0]), _directions(_linear(block, 2))]
    return outputs[: graph.n_writers]


def _directions(written: Float[Tensor, "into d"]) -> Float[Tensor, "direction d"]:
    """Unit vectors of the stream's coordinates that are written to: a compiled variable is one-hot in them."""
    return torch.eye(written.shape[1])[(written.abs() > TOLERANCE).any(0)]


def _mlp_in(block: BlockParts) -> Float[Tensor, "d hidden"]:
    heard = (_linear(block, 2).abs() > TOLERANCE).any(1)
    return _linear(block, 0)[:, heard]


def _linear(block: BlockParts, place: int) -> Float[Tensor, "into out"]:
    """Weight of one of the MLP's two linear layers."""
    weight = block.mlp.get_submodule(str(place)).weight
    assert isinstance(weight, Tensor)
    return weight.t()


def _meeting(outputs: list[Tensor], read: Float[Tensor, "d into"]) -> list[bool]:
    return [bool(((output @ read).abs() > TOLERANCE).any()) for output in outputs]


def _mark(true: Tensor, graph: Graph, reader: int, writers: list[bool]) -> None:
    start = int(graph.offsets[reader])
    for writer in range(min(len(writers), int(graph.visible[reader]))):
        true[start + writer] = writers[writer]


def _deciding(
    graph: Graph, block: BlockParts, outputs: list[Tensor], words: Tensor, prompts: Int[Tensor, "prompt pos"]
) -> tuple[list[bool], list[bool]]:
    """For each writer, whether its part of the query, and of the key, decides which keys win for some query."""
    length = prompts.shape[1]
    compare = block.q.weight[0] @ block.k.weight[0].t() * block.scale
    rows = outputs[0][torch.searchsorted(words, prompts)]
    places = outputs[1][:length].expand(len(prompts), -1, -1)
    computed = [row for output in outputs[graph.inputs :] for row in output] or [torch.zeros(rows.shape[-1])]
    needed: tuple[list[bool], list[bool]] = ([False] * len(outputs), [False] * len(outputs))
    for extra in torch.stack(computed).unbind():
        query, key = rows + places + extra, rows + places
        whole = _winners(query, key, compare)
        matched = whole[..., 1:].any(-1)  # not BOS alone
        for writer, output in enumerate(outputs):
            part = (rows, places)[writer] if writer < graph.inputs else _own(extra, output).expand_as(rows)
            for side, changed in enumerate(
                (_winners(query - part, key, compare), _winners(query, key - part * (writer < graph.inputs), compare))
            ):
                needed[side][writer] |= bool(((changed != whole).any(-1) & matched)[:, 1:].any())
    return needed


def _own(extra: Float[Tensor, "d"], output: Float[Tensor, "direction d"]) -> Float[Tensor, "d"]:
    """The computed part if this writer makes it, else nothing."""
    return extra if bool((output @ extra > 0).any()) else torch.zeros_like(extra)


def _winners(
    query: Float[Tensor, "prompt pos d"], key: Float[Tensor, "prompt pos d"], compare: Float[Tensor, "d d"]
) -> Bool[Tensor, "prompt pos key"]:
    """The keys with the highest score of every query."""
    scores = query @ compare @ key.transpose(1, 2)
    return scores > scores.amax(-1, keepdim=True) - 1
