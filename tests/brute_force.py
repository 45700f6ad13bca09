"""The masked model by the textbook: every reader's input summed writer by writer, stock modules called on each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from circuitlit.masked import ablated_run, run_writers
from circuitlit.model import Subject
from circuitlit.tasks.pair import Batch

BEHIND = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2")  # norms behind an MLP
IN_TURN = ("GPT2Attention", "Phi3Attention", "MptAttention")
Told = list[tuple[tuple, dict]]  # of every layer's attention, what it is called with


def masked_logits(
    subject: Subject, batch: Batch, dense: Tensor, embed: Tensor | None = None, moves: list[Tensor] | None = None
) -> Tensor:
    """Logits at the answer positions under any masks, interchange ablation; slow and obvious.

    `embed` stands in for the clean embeddings. `moves` is what a mask of 0 adds to each writer's output, if not its
    ablated minus its own output.
    """
    model, anatomy, graph = subject.model, subject.anatomy, subject.graph
    cut_run = ablated_run(subject, batch, "interchange")
    blocks = anatomy.blocks(model)
    told, constants = told_of(subject, batch.clean)
    own, cut = [subject.embedded(batch.clean) if embed is None else embed], [cut_run.embed]

    def seen(reader: int) -> Tensor:
        total = constants
        for writer in range(len(own)):
            move = cut[writer] - own[writer] if moves is None else moves[writer]
            total = total + own[writer] + (1 - dense[reader, writer]) * move
        return total

    for layer, block in enumerate(blocks):
        out = getattr(block.get_submodule(anatomy.attention), anatomy.out)
        attn_norm, mlp_norm = anatomy.ahead(block, anatomy.attn_norm), anatomy.ahead(block, anatomy.mlp_norm)
        first = graph.reader_rows(layer).start
        inputs = [attn_norm(seen(first + reader)) for reader in range(graph.n_heads + 2 * graph.n_kv_heads)]
        mlp_reader = first + graph.n_heads + 2 * graph.n_kv_heads
        if graph.parallel:
            mlp_input = seen(mlp_reader)
        results = _all_heads(subject, layer, told, inputs)
        gain, scale = _gain(subject, block), 1.0
        if anatomy.post_norm is not None:
            norm, total = getattr(block, anatomy.post_norm), out(results)
            eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
            scale = (total.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
        own += [write * scale * gain for write in _by_head(out, results, graph.n_heads)]
        cut += [write * gain for write in _by_head(out, cut_run.heads[:, layer], graph.n_heads)]
        constants = constants + out(torch.zeros_like(results)) * gain
        if not graph.parallel:
            mlp_input = seen(mlp_reader)
        with _routed(block, mlp_norm(seen(mlp_reader + 1)) if graph.routers else None):
            own.append(_mlp(block, mlp_norm(mlp_input)))
        cut.append(cut_run.mlps[:, layer])
    norm = model.get_submodule(anatomy.final_norm)
    return torch.take_along_dim(subject.unembed(norm(seen(-1))), batch.positions[..., None], 1)


def writer_outputs(subject: Subject, ids: Tensor) -> list[Tensor]:
    """What every writer adds to the residual stream in a stock run, in the graph's order."""
    run = run_writers(subject, ids)
    outputs = [run.embed]
    for layer, block in enumerate(subject.anatomy.blocks(subject.model)):
        out = getattr(block.get_submodule(subject.anatomy.attention), subject.anatomy.out)
        gain = _gain(subject, block)
        heads = [write * gain for write in _by_head(out, run.heads[:, layer], subject.graph.n_heads)]
        outputs += [*heads, run.mlps[:, layer]]
    return outputs


def told_of(subject: Subject, ids: Tensor) -> tuple[Told, Tensor]:
    """What each attention is called with in a stock run, and what the stream holds beside the embeddings."""
    told: Told = []
    streams: list[Tensor] = []
    blocks = subject.anatomy.blocks(subject.model)
    with ExitStack() as hooks, torch.no_grad():
        for block in blocks:
            attention = block.get_submodule(subject.anatomy.attention)
            hook = attention.register_forward_pre_hook(
                lambda module, args, kwargs: told.append((args, kwargs)), with_kwargs=True
            )
            hooks.callback(hook.remove)
        first = subject.anatomy.sees_stream(blocks[0])
        hooks.callback(first.register_forward_pre_hook(lambda module, args: streams.append(args[0])).remove)
        subject.hidden(ids)
        return told, streams[0] - subject.embedded(ids)


def _gain(subject: Subject, block: Any) -> Tensor | float:
    """What the attention is multiplied with behind its output projection."""
    factor, post = getattr(block, "residual_multiplier", 1.0), subject.anatomy.post_norm
    if post is None:
        return factor
    norm = getattr(block, post)
    return factor * (norm.weight + ("Gemma" in type(norm).__name__))


@contextmanager
def _routed(block: Any, x: Tensor | None) -> Iterator[None]:
    """Experts chosen and weighed for another stream than the one they read, by what the router says of that alone."""
    if x is None:
        yield
        return
    mlp = getattr(block, "mlp", None) or block.block_sparse_moe
    router = mlp.gate if hasattr(mlp, "gate") else mlp.router
    said = router(x.flatten(0, 1))
    hook = router.register_forward_hook(lambda module, args, output: said)
    yield
    hook.remove()


def _mlp(block: Any, x: Tensor) -> Tensor:
    """What a block's MLP adds to the stream."""
    if hasattr(block, "fc1"):
        return block.fc2(block.activation_fn(block.fc1(x)))
    if hasattr(block, "ffn"):
        return block.ffn(x, torch.zeros_like(x))
    if type(block).__name__ == "BloomBlock":
        return block.mlp(x, torch.zeros_like(x))
    written = block.mlp(x) if hasattr(block, "mlp") else block.block_sparse_moe(x)
    written = written[0] if isinstance(written, tuple) else written
    for name in BEHIND:
        written = getattr(block, name)(written) if hasattr(block, name) else written
    return written * getattr(block, "residual_multiplier", 1.0)


def _by_head(out: nn.Module, results: Tensor, n_heads: int) -> list[Tensor]:
    """What each head alone adds to the residual stream, without the output's bias."""
    alone = torch.zeros(n_heads, *results.shape, dtype=results.dtype)
    for head, part in enumerate(results.chunk(n_heads, -1)):
        alone[head, ..., head * part.shape[-1] : (head + 1) * part.shape[-1]] = part
    return [out(only) - out(torch.zeros_like(only)) for only in alone]


def _all_heads(subject: Subject, layer: int, told: Told, inputs: list[Tensor]) -> Tensor:
    """Each head's result from its own q, k and v inputs, side by side."""
    graph = subject.graph
    group = graph.n_heads // graph.n_kv_heads
    if subject.anatomy.joint:  # norms over all heads see every head's own queries and keys at once
        return attend(subject, layer, told, inputs[0], inputs[0], inputs[0], _made(subject, layer, inputs))
    width = -1
    parts = []
    for head in range(graph.n_heads):
        kv = head // group
        q, k, v = inputs[head], inputs[graph.n_heads + kv], inputs[graph.n_heads + graph.n_kv_heads + kv]
        results = attend(subject, layer, told, q, k, v)
        width = results.shape[-1] // graph.n_heads
        parts.append(results[..., head * width : (head + 1) * width])
    return torch.cat(parts, -1)


def _made(subject: Subject, layer: int, inputs: list[Tensor]) -> dict[str, Tensor]:
    """What three projections make when each head of each has its own input."""
    graph, outputs = subject.graph, {}
    attention = subject.anatomy.blocks(subject.model)[layer].get_submodule(subject.anatomy.attention)
    counts = (graph.n_heads, graph.n_kv_heads, graph.n_kv_heads)
    for name, count in zip(subject.anatomy.projections, counts, strict=True):
        own, inputs = inputs[:count], inputs[count:]
        module = getattr(attention, name)
        outputs[name] = torch.cat([module(x).chunk(count, -1)[head] for head, x in enumerate(own)], -1)
    return outputs


def attend(
    subject: Subject,
    layer: int,
    told: Told,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    made: dict[str, Tensor] | None = None,
) -> Tensor:
    """All heads' results when the stock attention makes its queries of `q`, its keys of `k` and its values of `v`."""
    attention = subject.anatomy.blocks(subject.model)[layer].get_submodule(subject.anatomy.attention)
    args, kwargs = told[layer]
    kwargs = {**kwargs, "hidden_states": q} if "hidden_states" in kwargs else kwargs
    args = args if "hidden_states" in kwargs else (q, *args[1:])
    caught: list[Tensor] = []
    with ExitStack() as hooks:

        def hook(handle) -> None:
            hooks.callback(handle.remove)

        names = subject.anatomy.projections
        for name in names:
            if made is not None:
                hook(getattr(attention, name).register_forward_hook(lambda m, args, out, name=name: made[name]))
                continue
            read = (q, k, v) if len(names) == 1 else ({"q": q, "k": k, "v": v}[name[0]],) * 3
            hook(getattr(attention, name).register_forward_hook(_fused(subject, attention, read)))
        out = getattr(attention, subject.anatomy.out)
        hook(out.register_forward_pre_hook(lambda module, args: caught.append(args[0])))
        attention(*args, **kwargs)
    return caught[0]


def _fused(subject: Subject, attention: Any, inputs: tuple[Tensor, ...]):
    """A hook that gives a projection's queries, keys and values different inputs."""

    def hook(module: Any, _args: tuple, _output: Tensor) -> Tensor:
        made = torch.stack([module.forward(x) for x in inputs])
        return made.gather(0, _kinds(subject, attention, made.shape[-1]).expand_as(made[:1]))[0]

    return hook


def _kinds(subject: Subject, attention: Any, width: int) -> Tensor:
    """Of a projection's outputs 0 for queries, 1 for keys, 2 for values, written down anew for each layout."""
    n_heads, n_kv = subject.graph.n_heads, subject.graph.n_kv_heads
    if len(subject.anatomy.projections) > 1:
        return torch.zeros(width, dtype=torch.long)
    a_head = width // (n_heads + 2 * n_kv)
    kind = type(attention).__name__
    if kind == "CodeGenAttention":
        order = ([0] * (n_heads // 4) + [2] * (n_heads // 4) + [1] * (n_heads // 4)) * 4
    elif kind in ("GPT2Attention", "Phi3Attention", "MptAttention") or (
        kind == "GPTBigCodeAttention" and attention.multi_query
    ):
        order = [0] * n_heads + [1] * n_kv + [2] * n_kv
    else:
        order = ([0] * (n_heads // n_kv) + [1, 2]) * n_kv
    return torch.tensor(order).repeat_interleave(a_head)
