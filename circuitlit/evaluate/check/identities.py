"""What holds for every model that is read rightly, whatever its weights are; each of it can fail.

All differences are shares: of the largest logit, of the largest entry of the residual stream, of the largest result.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.evaluate.check.stock_hooks import head_places, readers_moved
from circuitlit.graph.layout import scatter_edges
from circuitlit.masked import MaskedModel, run_writers
from circuitlit.masked.block import MaskedBlock
from circuitlit.model import Subject
from circuitlit.model.limits import longest_prompt
from circuitlit.model.logits import take_positions
from circuitlit.model.record import Reads, Recording, record, record_reads

ROWS, LENGTH = 4, 12  # of prompts
READERS = 9  # that random masks vary
STEP = 1e-5  # of a central difference
Steps = list[tuple[str, Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Prompts:
    """What a model is tried on.

    Attributes:
        clean, corrupted: tokens of one length.
        positions: where logits are compared.
    """

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    positions: Int[Tensor, "batch answer"]

    def some(self, rows: list[int] | slice) -> Prompts:
        """Some of the rows."""
        return Prompts(self.clean[rows], self.corrupted[rows], self.positions[rows])

    def padded(self, by: int) -> Prompts:
        """The same with more tokens behind, which causality hides."""
        pad = torch.nn.functional.pad
        return Prompts(pad(self.clean, (0, by)), pad(self.corrupted, (0, by)), self.positions)


def random_prompts(subject: Subject, seed: int) -> Prompts:
    """Random tokens, as many as the model takes, at most twelve.

    Raises:
        UserError: it takes fewer than two and some padding.
    """
    length = min(LENGTH, int(min(longest_prompt(subject.model.config)[0], 2 * LENGTH)) - 4)
    if length < 2:
        raise UserError(f"this model takes no more than {length + 4} tokens, too few for a check")
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, subject.model.config.vocab_size, (2, ROWS, length), generator=draw).to(subject.device)
    return Prompts(ids[0], ids[1], torch.tensor([[length - 2, length - 1]] * ROWS, device=subject.device))


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number; infinity where any is none."""
    gap = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30)
    return float(gap) if bool(gap.isfinite()) else float("inf")


@torch.no_grad()
def recorded(subject: Subject, ids: Tensor) -> tuple[Recording, Reads]:
    """Writers and readers of one stock forward.

    Raises:
        UserError: a module that reads or writes was not run, or is not a module of the view that is recorded.
    """
    with record(subject) as writes, record_reads(subject) as reads:
        subject.hidden(ids)
    counts = {"attention": len(writes.heads), "MLP": len(writes.mlps), "attention's norm": len(reads.attention)}
    counts |= {"MLP's norm": len(reads.mlp), "final norm": len(reads.final) * subject.graph.n_layers}
    for name, count in counts.items():
        if count != subject.graph.n_layers:
            raise UserError(
                f"the {name} of {count} of {subject.graph.n_layers} layers ran as the modules that the anatomy names; "
                "a forward of another module goes around them"
            )
    return writes, reads


def stream_steps(subject: Subject, ids: Tensor) -> Steps:
    """What each part of the model adds to the residual stream, and what its writers are said to add there.

    Of each step its place, what the stock run's stream gains there, and the writes by name; a parallel block is one.
    """
    writes, reads = recorded(subject, ids)
    model, graph, anatomy = MaskedModel(subject), subject.graph, subject.anatomy
    embedded = writes.embed[0]
    fixed = torch.zeros_like(embedded).flatten(0, 1) + model.position_embeddings(*ids.shape)
    if graph.inputs > 1:
        fixed = fixed + model.written_positions(*ids.shape)
    fixed = fixed.view(embedded.shape)
    steps: Steps = [("the embeddings", reads.attention[0] - fixed, {"the embeddings": embedded})]
    for layer in range(graph.n_layers):
        before = reads.attention[layer]
        after = (*reads.attention, reads.final[0])[layer + 1]
        block = cast(MaskedBlock, model.blocks[layer])
        heads = block._put_out(writes.heads[layer], None).view(before.shape)
        mlp, middle = writes.mlps[layer], reads.mlp[layer].view(before.shape)
        if anatomy.parallel:
            steps.append((f"layer {layer}", after - before, {"attention's write": heads, "the MLP's write": mlp}))
        else:
            steps.append((f"layer {layer}, attention", middle - before, {"attention's write": heads}))
            steps.append((f"layer {layer}, MLP", after - middle, {"the MLP's write": mlp}))
    return steps


def streams(subject: Subject, ids: Tensor) -> float:
    """The stream ahead of each norm is the sum of all writes so far, and constants."""
    worst, largest, seen, summed = 0.0, 0.0, None, None
    for _, gained, parts in stream_steps(subject, ids):
        gained, written = gained.double(), torch.stack(list(parts.values())).double().sum(0)
        seen, summed = (gained, written) if seen is None or summed is None else (seen + gained, summed + written)
        worst, largest = max(worst, float((seen - summed).abs().max())), max(largest, float(seen.abs().max()))
    return worst / largest if worst == worst else float("inf")


def dense(subject: Subject, value: float = 1.0) -> Float[Tensor, "reader writer"]:
    """One mask on every edge."""
    graph = subject.graph
    flat = torch.full((1, graph.n_edges), value, dtype=subject.model.dtype, device=subject.device)
    return scatter_edges(graph, flat)[0]


def masked(subject: Subject, prompts: Prompts, masks: Float[Tensor, "reader writer"]) -> Tensor:
    """Logits of the masked model, interchange ablation."""
    cut = run_writers(subject, prompts.corrupted)
    return MaskedModel(subject)(masks[None].to(subject.model.dtype), prompts.clean, cut, prompts.positions)


@torch.no_grad()
def ends(subject: Subject, prompts: Prompts) -> tuple[float, float, float]:
    """All masks at 1 give the model, all at 0 the corrupted run: both differences, and the first one's KL in nats."""
    on, off = (masked(subject, prompts, dense(subject, value)) for value in (1.0, 0.0))
    clean, corrupted = (subject.logits(ids, prompts.positions) for ids in (prompts.clean, prompts.corrupted))
    teacher, own = (logits.double().log_softmax(-1) for logits in (clean, on))
    kl = (teacher.exp() * (teacher - own)).sum(-1).mean()
    return apart(on, clean), apart(off, corrupted), float(kl)


def few_masks(subject: Subject, seed: int = 0) -> tuple[Float[Tensor, "reader writer"], list[int]]:
    """Random masks at a few readers of every kind, all others 1; and which readers these are."""
    graph, draw = subject.graph, torch.Generator().manual_seed(seed)
    masks, readers = dense(subject), [graph.n_readers - 1]
    counts = [graph.n_heads, graph.n_kv_heads, graph.n_kv_heads, *[1] * graph.mlp_readers]
    for number in range(READERS - 1):
        layer = int(torch.randint(graph.n_layers, (), generator=draw))
        kind = number % len(counts)
        within = int(torch.randint(counts[kind], (), generator=draw))
        readers.append(graph.reader_rows(layer).start + sum(counts[:kind]) + within)
    for reader in readers:
        masks[reader] *= torch.rand(graph.n_writers, generator=draw).to(masks)
    return masks, sorted(set(readers))


@torch.no_grad()
def between(subject: Subject, prompts: Prompts) -> float:
    """Random masks at a few readers do what hooks do that give these readers another input in the stock model."""
    masks, readers = few_masks(subject)
    cut = run_writers(subject, prompts.corrupted)
    with record(subject) as writes, readers_moved(subject, writes, cut, masks, readers):
        hidden = subject.hidden(prompts.clean)
    expected = subject.unembed(take_positions(hidden, prompts.positions))
    return apart(masked(subject, prompts, masks), expected)


def gradient(subject: Subject, prompts: Prompts) -> float:
    """The masks' gradient along a random direction is the central difference; for float64."""
    draw = torch.Generator().manual_seed(1)
    cut, model = run_writers(subject, prompts.corrupted), MaskedModel(subject)
    at, along = (torch.rand(subject.graph.n_edges, generator=draw, dtype=torch.float64) for _ in range(2))
    answers = (*prompts.positions.shape, subject.model.config.vocab_size)
    weight = torch.randn(answers, generator=draw, dtype=torch.float64)

    def value(flat: Tensor) -> Tensor:
        masks = scatter_edges(subject.graph, flat[None])
        logits = model(masks, prompts.clean, cut, prompts.positions).log_softmax(-1)
        return (logits * weight[..., : logits.shape[-1]]).mean()

    at.requires_grad_()
    (grad,) = torch.autograd.grad(value(at), at)
    along = along - 0.5
    with torch.no_grad():
        ends = [value(at + sign * STEP * along) for sign in (1, -1)]
    return apart((grad * along).sum()[None], ((ends[0] - ends[1]) / (2 * STEP))[None])


@torch.no_grad()
def alone(subject: Subject, prompts: Prompts) -> float:
    """A prompt alone, with padding, or in another order gives the logits that it gives among others."""
    masks, _ = few_masks(subject)
    together = masked(subject, prompts, masks)
    single = masked(subject, prompts.some([1]).padded(4), masks)
    rows = list(reversed(range(len(prompts.clean))))
    return max(apart(single, together[1:2]), apart(masked(subject, prompts.some(rows), masks), together[rows]))


@torch.no_grad()
def own_heads(subject: Subject, prompts: Prompts) -> float:
    """Queries of one head move its result alone, keys and values of one those of its group."""
    graph, anatomy = subject.graph, subject.anatomy
    plain, _ = recorded(subject, prompts.clean)
    worst, group = 0.0, graph.n_heads // graph.n_kv_heads
    kinds = ((0, graph.n_heads, 1), (graph.n_heads, graph.n_kv_heads, group))
    kinds = (*kinds, (graph.n_heads + graph.n_kv_heads, graph.n_kv_heads, group))
    for layer, block in enumerate(anatomy.blocks(subject.model)):
        attention, places = block.get_submodule(anatomy.attention), head_places(subject, layer)
        for first, count, width in kinds:
            head = layer % count
            own = places[first + head].to(subject.device)
            with ExitStack() as hooks, record(subject) as writes:
                for number, name in enumerate(anatomy.projections):
                    hook = _nudge(own[own[:, 0] == number, 1])
                    hooks.callback(getattr(attention, name).register_forward_hook(hook).remove)
                subject.hidden(prompts.clean)
            gap = (writes.heads[layer] - plain.heads[layer]).abs().amax((0, 1)).unflatten(0, (graph.n_heads, -1))
            mine = torch.zeros(graph.n_heads, dtype=torch.bool)
            mine[head * width : (head + 1) * width] = True
            moved = gap.amax(1) / plain.heads[layer].abs().max()
            worst = max([worst, *moved[~mine].tolist()]) if bool(moved[mine].gt(0).all()) else float("inf")
    return worst


def _nudge(here: Int[Tensor, "_"]):
    def hook(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        made = output.clone()
        made[..., here] = 0.5 * made[..., here].flip(1)  # along the positions: keys all alike would move nothing
        return made

    return hook


@torch.no_grad()
def noise(subject: Subject, prompts: Prompts) -> float:
    """What the stock model's own logits differ by: alone and among others, and with another kernel for attention."""
    expected = subject.logits(prompts.clean, prompts.positions)
    rows = [subject.logits(prompts.clean[n : n + 1], prompts.positions[n : n + 1]) for n in range(len(expected))]
    found, model = apart(torch.cat(rows), expected), subject.model
    kernel = model.config._attn_implementation
    if kernel == "sdpa":
        model.set_attn_implementation("eager")
        try:
            found = max(found, apart(subject.logits(prompts.clean, prompts.positions), expected))
        except RuntimeError:  # Falcon chooses its kernel when it is made
            pass
        finally:
            model.set_attn_implementation(kernel)
    return found
