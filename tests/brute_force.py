"""The masked model by the textbook: every reader's input summed writer by writer, stock modules called on each."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from circuitlit.masked import ablated_run, run_writers
from circuitlit.model import Subject
from circuitlit.tasks.pair import Batch


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
    constants = torch.zeros_like(cut_run.embed)
    if anatomy.positions is not None:
        constants = constants + _positions(model, batch.clean.shape[1])
    own, cut = [subject.embed(batch.clean) if embed is None else embed], [cut_run.embed]

    def seen(reader: int) -> Tensor:
        total = constants
        for writer in range(len(own)):
            move = cut[writer] - own[writer] if moves is None else moves[writer]
            total = total + own[writer] + (1 - dense[reader, writer]) * move
        return total

    for layer, block in enumerate(blocks):
        out = getattr(getattr(block, anatomy.attention), anatomy.out)
        attn_norm, mlp_norm = getattr(block, anatomy.attn_norm), getattr(block, anatomy.mlp_norm)
        first = graph.reader_rows(layer).start
        inputs = [attn_norm(seen(first + reader)) for reader in range(graph.n_heads + 2 * graph.n_kv_heads)]
        mlp_reader = first + graph.readers_per_layer - 1
        if graph.parallel:
            mlp_input = seen(mlp_reader)
        results = _all_heads(subject, block, inputs)
        gain, scale = 1.0, 1.0
        if anatomy.post_norm is not None:
            norm, total = getattr(block, anatomy.post_norm), out(results)
            gain, scale = 1 + norm.weight, (total.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
        own += [write * scale * gain for write in _by_head(out, results, graph.n_heads)]
        cut += [write * gain for write in _by_head(out, cut_run.heads[:, layer], graph.n_heads)]
        constants = constants + out(torch.zeros_like(results))
        if not graph.parallel:
            mlp_input = seen(mlp_reader)
        own.append(_mlp(block, mlp_norm(mlp_input)))
        cut.append(cut_run.mlps[:, layer])
    norm = model.get_submodule(anatomy.final_norm)
    return torch.take_along_dim(subject.unembed(norm(seen(-1))), batch.positions[..., None], 1)


def writer_outputs(subject: Subject, ids: Tensor) -> list[Tensor]:
    """What every writer adds to the residual stream in a stock run, in the graph's order."""
    run = run_writers(subject, ids)
    outputs = [run.embed]
    for layer, block in enumerate(subject.anatomy.blocks(subject.model)):
        out = getattr(getattr(block, subject.anatomy.attention), subject.anatomy.out)
        post = subject.anatomy.post_norm
        gain = 1.0 if post is None else 1 + getattr(block, post).weight
        heads = [write * gain for write in _by_head(out, run.heads[:, layer], subject.graph.n_heads)]
        outputs += [*heads, run.mlps[:, layer]]
    return outputs


def _positions(model: nn.Module, length: int) -> Tensor:
    """Learned position embeddings by hand; OPT's table starts with two unused rows."""
    if hasattr(model, "transformer"):
        return model.transformer.wpe.weight[:length]
    return model.model.decoder.embed_positions.weight[2 : 2 + length]


def _mlp(block: nn.Module, x: Tensor) -> Tensor:
    """What a block's MLP adds to the stream."""
    if hasattr(block, "fc1"):
        return block.fc2(block.fc1(x).relu())
    written = block.mlp(x)
    return block.post_feedforward_layernorm(written) if hasattr(block, "post_feedforward_layernorm") else written


def _by_head(out: nn.Module, results: Tensor, n_heads: int) -> list[Tensor]:
    """What each head alone adds to the residual stream, without the output's bias."""
    alone = torch.zeros(n_heads, *results.shape, dtype=results.dtype)
    for head, part in enumerate(results.chunk(n_heads, -1)):
        alone[head, ..., head * part.shape[-1] : (head + 1) * part.shape[-1]] = part
    return [out(only) - out(torch.zeros_like(only)) for only in alone]


def _all_heads(subject: Subject, block: nn.Module, inputs: list[Tensor]) -> Tensor:
    """Each head's result from its own q, k and v inputs, side by side."""
    graph = subject.graph
    group = graph.n_heads // graph.n_kv_heads
    width = -1
    parts = []
    for head in range(graph.n_heads):
        kv = head // group
        q, k, v = inputs[head], inputs[graph.n_heads + kv], inputs[graph.n_heads + graph.n_kv_heads + kv]
        results = _attend(subject, getattr(block, subject.anatomy.attention), q, k, v)
        width = results.shape[-1] // graph.n_heads
        parts.append(results[..., head * width : (head + 1) * width])
    return torch.cat(parts, -1)


def _attend(subject: Subject, attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All heads' results when the stock attention makes its queries of `q`, its keys of `k` and its values of `v`."""
    length = q.shape[1]
    arguments = {"attention_mask": torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)[None, None]}
    if subject.anatomy.rotary is not None:
        rotary = subject.model.base_model.rotary_emb
        kind = [attention.layer_type] if subject.anatomy.rotary_by_layer else []
        arguments["position_embeddings"] = rotary(q, torch.arange(length)[None], *kind)
    caught: list[Tensor] = []
    with ExitStack() as hooks:

        def hook(handle) -> None:
            hooks.callback(handle.remove)

        if hasattr(attention, "q_proj"):
            for name, value in (("q_proj", q), ("k_proj", k), ("v_proj", v)):
                projection = getattr(attention, name)
                hook(projection.register_forward_pre_hook(lambda module, args, value=value: (value,)))
        elif hasattr(attention, "c_attn"):

            def stacked(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
                maps = [x @ module.weight + module.bias for x in (q, k, v)]
                return torch.cat([m.chunk(3, -1)[i] for i, m in enumerate(maps)], -1)

            hook(attention.c_attn.register_forward_hook(stacked))
        else:

            def interleaved(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
                maps = [(x @ module.weight.t() + module.bias).unflatten(-1, (-1, 3, width)) for x in (q, k, v)]
                return torch.stack([m[..., i, :] for i, m in enumerate(maps)], -2).flatten(-3)

            width = attention.head_size
            hook(attention.query_key_value.register_forward_hook(interleaved))
        out = getattr(attention, subject.anatomy.out)
        hook(out.register_forward_pre_hook(lambda module, args: caught.append(args[0])))
        attention(q, **arguments)
    return caught[0]
