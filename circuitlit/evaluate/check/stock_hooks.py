"""Readers of the stock model with inputs of their own, by hooks alone: what masks are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.masked import Ablated, MaskedModel
from circuitlit.model import Subject
from circuitlit.model.experts import router_of
from circuitlit.model.layouts import columns
from circuitlit.model.linear import affine
from circuitlit.model.logits import final_norm
from circuitlit.model.record import Recording


@contextmanager
def readers_moved(
    subject: Subject, writes: Recording, cut: Ablated, masks: Float[Tensor, "reader writer"], readers: list[int]
) -> Iterator[None]:
    """Have some readers of the stock model see their masked sums, by hooks on norms, projections and MLPs."""
    graph, anatomy = subject.graph, subject.anatomy
    blocks = MaskedModel(subject).blocks

    def moved(reader: int) -> Float[Tensor, "batch pos d"]:
        move = _moves(subject, writes, cut, blocks)[: int(graph.visible[reader])]
        return torch.einsum("w,wbpd->bpd", 1 - masks[reader, : len(move)].to(move), move)

    with ExitStack() as hooks:
        for layer, block in enumerate(anatomy.blocks(subject.model)):
            here = [reader for reader in readers if reader // graph.readers_per_layer == layer]
            split = graph.mlp_row(layer)
            if any(reader < split for reader in here):
                _move_heads(hooks, subject, layer, [reader for reader in here if reader < split], moved)
            norm, sees = anatomy.ahead(block, anatomy.mlp_norm), anatomy.sees_stream(block, True)
            mlp = anatomy.first_mlp(block)
            router = router_of(mlp) if graph.routers else None
            if split in here:
                _move_input(hooks, norm, sees, mlp, lambda reader=split: moved(reader))
            if router is not None and any(reader >= split for reader in here):  # it gets no other input's move
                _move_input(hooks, norm, sees, router, lambda reader=split + 1: moved(reader))
        last = final_norm(subject.model)
        hook = last.register_forward_pre_hook(lambda _module, args: (args[0] + moved(graph.n_readers - 1), *args[1:]))
        hooks.callback(hook.remove)
        yield


def _moves(subject: Subject, writes: Recording, cut: Ablated, blocks: nn.ModuleList) -> Tensor:
    """What ablation adds to each writer that has run so far."""
    made = [cut.embed - writes.embed[0]]
    if subject.graph.inputs > 1:
        made.append(cut.positions[:, 0] - subject.positions(cut.embed.shape[1]))
    for layer, heads in enumerate(writes.heads):
        by_head = (cut.heads[:, layer] - heads).unflatten(-1, (subject.graph.n_heads, -1))
        made += torch.einsum("bphw,hwd->hbpd", by_head, blocks[layer].out_weight).unbind()  # type: ignore[arg-type]
        made += [cut.mlps[:, layer] - writes.mlps[layer]] if layer < len(writes.mlps) else []
    return torch.stack(made)


def _move_heads(
    hooks: ExitStack, subject: Subject, layer: int, readers: list[int], moved: Callable[[int], Tensor]
) -> None:
    """Give single heads' queries, keys or values other inputs, through the projections' outputs."""
    anatomy, block = subject.anatomy, subject.anatomy.blocks(subject.model)[layer]
    norm, seen = anatomy.ahead(block, anatomy.attn_norm), []
    hooks.callback(
        anatomy.sees_stream(block).register_forward_pre_hook(lambda _module, args: seen.append(args[0])).remove
    )
    places = head_places(subject, layer)
    start = subject.graph.reader_rows(layer).start

    def hook_of(number: int):
        def hook(module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
            made = output.clone()
            for reader in readers:
                own = places[reader - start]
                here = own[own[:, 0] == number, 1].to(output.device)
                if len(here):
                    other = module.forward(norm.forward(seen[0] + moved(reader)))
                    made[..., here] = other[..., here]
            return made

        return hook

    attention = block.get_submodule(anatomy.attention)
    for number, name in enumerate(anatomy.projections):
        hooks.callback(getattr(attention, name).register_forward_hook(hook_of(number)).remove)


def head_places(subject: Subject, layer: int) -> list[Int[Tensor, "width two"]]:
    """For each attention reader of a layer, the projections and their outputs where it lies."""
    anatomy, graph = subject.anatomy, subject.graph
    attention = anatomy.blocks(subject.model)[layer].get_submodule(anatomy.attention)
    widths = [affine(getattr(attention, name))[0].shape[1] for name in anatomy.projections]
    at = torch.cat([torch.stack([torch.full((w,), n), torch.arange(w)], 1) for n, w in enumerate(widths)])
    return [at[own] for part in columns(anatomy.split, widths, graph) for own in part]


def _move_input(
    hooks: ExitStack, norm: nn.Module, sees: nn.Module, module: nn.Module, move: Callable[[], Tensor]
) -> None:
    """Give a module another input, through the norm ahead of it, where another module sees the stream."""
    seen: list[Tensor] = []
    hooks.callback(sees.register_forward_pre_hook(lambda _module, args: seen.append(args[0])).remove)

    def hook(_module: nn.Module, args: tuple) -> tuple:
        change = move()
        return (norm.forward(seen[0].view(change.shape) + change).view(args[0].shape), *args[1:])

    hooks.callback(module.register_forward_pre_hook(hook).remove)
