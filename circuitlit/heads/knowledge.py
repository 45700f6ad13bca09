"""Which nodes carry what a task knows: heads that read a part of the prompt, heads and MLPs that write the answer.

All are found by what the task's metric loses. Reading heads are those whose attention from the last prompt token to the
tokens of a part is needed: of facts entity heads read the subject and relation heads the relation; of other tasks there
is a role for every named part, such as the noun that a verb agrees with, or the year that another is compared with.
Retrieval heads, and writing MLPs, are those whose direct write to the logits is needed. What a head attends to or
writes is reported beside it, but does not decide.

A bridge is what an answer in two steps goes over and no prompt says (of a city whose language is asked for, the
country). Its carriers are found by the first step alone: on prompts that end with the subject, heads and MLPs whose
direct write there is needed to tell the bridge from another one, but for the last block, whose outputs no later token
reads. Whether the whole answer needs what they put out there is asked on other pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.evaluate import Estimate
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.graph import Graph
from circuitlit.heads.attention import Heads
from circuitlit.heads.causal import Behaviour
from circuitlit.heads.effects import head_writers, path_effects
from circuitlit.heads.path_patching import PatchBed, path_patch
from circuitlit.heads.roles import Head, head_name
from circuitlit.heads.tail import MLP, run_tail
from circuitlit.model import take_positions
from circuitlit.objective import task_metric
from circuitlit.tasks import Batch

READ = {"entity": "subject", "relation": "relation"}  # role of the tokens that a head of each role reads
RETRIEVAL, MLPS = "retrieval", "mlps"
BRIDGES = {"bridge": RETRIEVAL, "bridge mlps": MLPS}  # the role that carriers of a bridge have in the first step


def roles_of(role_names: Sequence[str], bridges: bool = False) -> dict[str, str | None]:
    """The roles that nodes can have in a task, with the token role that a reading head reads; None of those that write.

    Args:
        role_names: of the task's tokens, from "other" to "end".
        bridges: True where its answers go over a bridge.
    """
    named = role_names[1:-1]
    reading = READ if set(READ.values()) <= set(named) else {f"reads {name}": name for name in named}
    return {**reading, **(dict.fromkeys(BRIDGES) if bridges else {}), RETRIEVAL: None, MLPS: None}


@contextmanager
def attention_blocked(
    heads: Heads, chosen: Sequence[Head], keys: Bool[Tensor, "batch pos"], queries: Int[Tensor, "batch"]
) -> Iterator[None]:
    """Have some heads not attend from one token to others in the stock forwards of this block.

    The rest of their attention is scaled up to 1; where nothing is left of it, they read nothing. Patterns are those of
    the running forward, so that heads which read what blocked heads wrote see the change. The hooks are gone when the
    block ends, also on error.

    Args:
        heads: of the subject.
        chosen: heads to block.
        keys: tokens not to attend to; never all that a query sees.
        queries: the token of each prompt that attends.
    """
    subject, anatomy = heads.subject, heads.subject.anatomy
    rows = torch.arange(len(queries), device=queries.device)
    by_layer: dict[int, list[int]] = {}
    for layer, head in chosen:
        by_layer.setdefault(layer, []).append(head)

    def hooks_of(layer: int, own: list[int]) -> tuple[Callable, Callable]:
        seen: list[Tensor] = []

        def look(_module: nn.Module, args: tuple) -> None:
            seen[:] = [args[0]]

        def put(_module: nn.Module, args: tuple) -> tuple:
            stream = seen[0]
            pattern = heads.pattern(layer, stream)[rows, :, queries].masked_fill(keys[:, None], 0)
            pattern = pattern / pattern.sum(-1, keepdim=True).clamp(min=torch.finfo(pattern.dtype).tiny)
            values = heads.values(layer, heads.parts[layer].attn_norm(stream))
            made = torch.einsum("bhk,hbkw->bhw", pattern, values)
            split = args[0].unflatten(-1, (heads.graph.n_heads, -1)).clone()
            for head in own:
                split[rows, queries, head] = made[:, head]
            return (split.flatten(-2), *args[1:])

        return look, put

    with ExitStack() as hooks:
        blocks = anatomy.blocks(subject.model)
        for layer, own in by_layer.items():
            look, put = hooks_of(layer, own)
            hooks.callback(getattr(blocks[layer], anatomy.attn_norm).register_forward_pre_hook(look).remove)
            out = getattr(blocks[layer].get_submodule(anatomy.attention), anatomy.out)
            hooks.callback(out.register_forward_pre_hook(put).remove)
        yield


def token_places(batch: Batch, role_names: Sequence[str], role: str) -> Bool[Tensor, "batch pos"]:
    """Where a role's tokens are; the last prompt token is never among them.

    Raises:
        UserError: the task has no such role.
    """
    if role not in role_names:
        raise UserError(f"knowledge heads need the token role '{role}'; take task=factual or give your pairs that role")
    here = batch.roles == list(role_names).index(role)
    here = here.clone()
    here[torch.arange(len(batch), device=here.device), batch.positions[:, 0]] = False
    return here


def blocking(heads: Heads, batches: Sequence[Batch], role_names: Sequence[str], role: str) -> Behaviour:
    """The task's metric with some heads' attention from the last prompt token to a role's tokens blocked."""
    places = [token_places(batch, role_names, role) for batch in batches]

    @torch.no_grad()
    def metric(chosen: Sequence[Head]) -> Tensor:
        parts = []
        for batch, keys in zip(batches, places, strict=True):
            with attention_blocked(heads, chosen, keys, batch.positions[:, 0]):
                parts.append(task_metric(heads.subject.logits(batch.clean, batch.positions), batch))
        return torch.cat(parts).cpu()

    return metric


@torch.no_grad()
def attention_mass(
    heads: Heads, batches: Sequence[Batch], role_names: Sequence[str], role: str
) -> Float[Tensor, "layer head"]:
    """Mean share of a head's attention from the last prompt token that goes to a role's tokens, in [0, 1]."""
    total = torch.zeros(heads.graph.n_layers, heads.graph.n_heads, dtype=torch.float64)
    for batch in batches:
        keys = token_places(batch, role_names, role)
        rows, queries = torch.arange(len(batch), device=keys.device), batch.positions[:, 0]
        for layer, pattern in enumerate(heads.patterns(batch.clean)):
            share = (pattern[rows, :, queries] * keys[:, None]).sum(-1)
            total[layer] += share.double().sum(0).cpu()
    return total / sum(map(len, batches))


def mlp_writers(graph: Graph) -> list[int]:
    """All MLPs, as writers."""
    return [graph.writers_before(layer) + graph.n_heads for layer in range(graph.n_layers)]


def writing(bed: PatchBed) -> Behaviour:
    """The task's metric with the direct writes of some MLPs (head -1) to the logits from the corrupted prompts."""
    graph = bed.graph
    mlps = mlp_writers(graph)

    def metric(chosen: Sequence[Head]) -> Tensor:
        return path_patch(bed, [mlps[layer] for layer, _ in chosen], [graph.n_readers - 1]) if chosen else bed.metric

    return metric


def carrying(bed: PatchBed, role_names: Sequence[str], role: str) -> Behaviour:
    """The task's metric where some heads, or MLPs (head -1), put out at a role's tokens what they do when corrupted."""
    places = [token_places(batch, role_names, role) for batch in bed.batches]

    @torch.no_grad()
    def metric(chosen: Sequence[Head]) -> Tensor:
        if not chosen:
            return bed.metric
        parts, first = [], min(layer for layer, _ in chosen)
        for batch, streams, other, where in zip(bed.batches, bed.streams, bed.other, places, strict=True):
            heads = other.heads.unflatten(-1, (bed.graph.n_heads, -1))
            replaced = {
                (layer, head): other.mlps[:, layer] if head == MLP else heads[:, layer, :, head]
                for layer, head in chosen
            }
            final = run_tail(bed.heads, first, streams[first], replaced=replaced, where=where)
            parts.append(task_metric(bed.subject.read_out(take_positions(final, batch.positions)), batch))
        return torch.cat(parts).cpu()

    return metric


@dataclass(frozen=True)
class RoleHead:
    """A head and what the metric loses with its part in a role.

    Attributes:
        head: layer and number; -1 is the layer's MLP.
        drop: of the metric, over pairs; positive is needed.
        groups: which pairs share a fact.
        share: mean drop over the mean of the metric on clean less corrupted prompts; NaN where that is not above 0
            with its 95 % interval, as there nothing can be lost.
        attention: share of its attention on the role's tokens; None for retrieval.
    """

    head: Head
    drop: Float[Tensor, "pair"]
    groups: Int[Tensor, "pair"]
    share: float
    attention: float | None

    @property
    def name(self) -> str:
        """`a3.h5`."""
        layer, head = self.head
        return f"m{layer}" if head < 0 else head_name(self.head)

    @property
    def estimate(self) -> Estimate:
        """Mean drop with its interval over pairs."""
        return mean_estimate(self.drop, self.groups)


def role_effects(bed: PatchBed, role_names: Sequence[str], role: str, candidates: int) -> list[RoleHead]:
    """What the metric loses with each head's part in a role, largest first.

    Args:
        bed: pairs; their corrupted prompts have another subject.
        role_names: of the task.
        role: of `roles_of`.
        candidates: for entity and relation heads, only so many with the most attention on the role's tokens are
            blocked; a head that hardly looks there cannot lose by not looking.
    """
    clear = mean_estimate(bed.scale, bed.groups).bounds
    scale = float(bed.scale.double().mean()) if clear is not None and clear[0] > 0 else math.nan
    graph, read = bed.graph, roles_of(role_names)[role]
    if read is None:
        senders = head_writers(graph) if role == RETRIEVAL else mlp_writers(graph)
        found = path_effects(bed, senders, [graph.n_readers - 1])
        heads = [(layer, -1 if head is None else head) for layer, head in map(graph.place, found.writers)]  # type: ignore[misc]
        made = [
            RoleHead(h, -d, bed.groups, -float(d.double().mean()) / scale, None)
            for h, d in zip(heads, found.deltas, strict=True)
        ]
    else:
        mass = attention_mass(bed.heads, bed.batches, role_names, read)
        order = mass.flatten().argsort(descending=True, stable=True)[:candidates].tolist()
        metric = blocking(bed.heads, bed.batches, role_names, read)
        made = []
        for place in order:
            head = divmod(place, bed.graph.n_heads)
            drop = bed.metric - metric([head])
            made.append(RoleHead(head, drop, bed.groups, float(drop.double().mean()) / scale, float(mass[head])))
    return sorted(made, key=lambda entry: -float(entry.drop.double().mean()))
