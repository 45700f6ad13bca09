"""Identities of the masked forward, in float64, for every architecture."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model

from circuitlit.graph import MaskLayout, reachable_edges
from circuitlit.masked import MaskedModel, ablated_run, mean_writers
from circuitlit.model import Subject, unwrap
from circuitlit.tasks.pair import Batch

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def random_masks(subject: Subject, seed: int = 0, roles: tuple[str, ...] = ()) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(MaskLayout(subject.graph, roles).size, generator=generator, dtype=torch.float64)


def run(subject: Subject, batch: Batch, flat: torch.Tensor, kind="interchange", roles=(), **options) -> torch.Tensor:
    mean = mean_writers(subject, [batch]) if kind == "mean" else None
    ablated = ablated_run(subject, batch, kind, mean)
    masks = MaskLayout(subject.graph, roles).dense(flat)
    token_roles = batch.roles if roles else None
    return MaskedModel(subject, **options)(masks, batch.clean, ablated, batch.positions, token_roles)


def brute_force(subject: Subject, batch: Batch, dense: torch.Tensor) -> torch.Tensor:
    """The masked model by the textbook: every reader's input summed writer by writer, one block call per reader."""
    model, anatomy, graph = subject.model, subject.anatomy, subject.graph
    ablated = ablated_run(subject, batch, "interchange")
    width = ablated.heads.shape[-1] // graph.n_heads
    blocks = anatomy.blocks(model)

    def head_outputs(layer: int, results: torch.Tensor) -> list[torch.Tensor]:
        out = getattr(getattr(blocks[layer], anatomy.attention), anatomy.out)
        nothing = torch.zeros_like(results)
        outputs = []
        for head in range(graph.n_heads):
            only = nothing.clone()
            only[..., head * width : (head + 1) * width] = results[..., head * width : (head + 1) * width]
            outputs.append(out(only) - out(nothing))
        return outputs

    constants = torch.zeros_like(ablated.embed)
    if anatomy.positions is not None:
        constants = constants + model.transformer.wpe(torch.arange(batch.clean.shape[1]))
    cut = [ablated.embed]
    for layer in range(graph.n_layers):
        cut += [*head_outputs(layer, ablated.heads[:, layer]), ablated.mlps[:, layer]]
    own = [subject.embed(batch.clean)]
    hooks = []
    recorded: dict[str, torch.Tensor] = {}

    def seen(reader: int) -> torch.Tensor:
        total = constants.clone()
        for writer in range(len(own)):
            keep = dense[reader, writer]
            total = total + keep * own[writer] + (1 - keep) * cut[writer]
        for writer in range(len(own), visible_constants[reader]):
            total = total + cut[writer]
        return total

    visible_constants = graph.visible.tolist()
    for layer, block in enumerate(blocks):
        attention = getattr(block, anatomy.attention)
        out = getattr(attention, anatomy.out)
        norm = getattr(block, anatomy.attn_norm)
        start = graph.reader_rows(layer).start
        group = graph.n_heads // graph.n_kv_heads
        inputs = {r: norm(seen(start + r)) for r in range(graph.n_heads + 2 * graph.n_kv_heads)}
        results = []
        for head in range(graph.n_heads):
            kv = head // group
            q, k, v = inputs[head], inputs[graph.n_heads + kv], inputs[graph.n_heads + graph.n_kv_heads + kv]
            results.append(one_head(subject, attention, out, head, q, k, v, recorded, hooks)[..., head * width :][..., :width])
        joined = torch.cat(results, -1)
        mlp_norm, mlp = getattr(block, anatomy.mlp_norm), getattr(block, anatomy.mlp)
        mlp_reader = start + graph.readers_per_layer - 1
        if graph.parallel:
            mlp_out = mlp(mlp_norm(seen(mlp_reader)))
            own += head_outputs(layer, joined)
        else:
            own += head_outputs(layer, joined)
        bias = out(torch.zeros_like(joined))
        if not graph.parallel:
            constants = constants + bias
            mlp_out = mlp(mlp_norm(seen(mlp_reader)))
        else:
            constants = constants + bias
        own.append(mlp_out)
    final = subject.unembed(model.base_model.norm(seen(-1)) if hasattr(model.base_model, "norm") else _final(model)(seen(-1)))
    return torch.take_along_dim(final, batch.positions[..., None], 1)


def _final(model):
    return getattr(model.base_model, "ln_f", None) or model.base_model.final_layer_norm


def one_head(subject, attention, out, head, q, k, v, recorded, hooks) -> torch.Tensor:
    """All heads' results when queries are made of `q`, keys of `k` and values of `v`, by the stock attention module."""
    length = q.shape[1]
    kwargs = {"attention_mask": torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)[None, None]}
    if subject.anatomy.rotary is not None:
        rotary = subject.model.base_model.rotary_emb
        kwargs["position_embeddings"] = rotary(q, torch.arange(length)[None])

    def with_inputs(module_name, picks):
        module = getattr(attention, module_name)
        return module.register_forward_hook(lambda m, a, o: picks(m))

    handles = []
    if hasattr(attention, "q_proj"):
        for name, value in (("q_proj", q), ("k_proj", k), ("v_proj", v)):
            handles.append(
                getattr(attention, name).register_forward_pre_hook(lambda m, a, value=value: (value,))
            )
    elif hasattr(attention, "c_attn"):

        def stacked(module, args, output):
            d = q.shape[-1]
            maps = [x @ module.weight + module.bias for x in (q, k, v)]
            return torch.cat([maps[i][..., i * d : (i + 1) * d] for i in range(3)], -1)

        handles.append(attention.c_attn.register_forward_hook(stacked))
    else:

        def interleaved(module, args, output):
            parts = []
            for i, x in enumerate((q, k, v)):
                full = x @ module.weight.t() + module.bias
                parts.append(full.unflatten(-1, (subject.graph.n_heads, 3, -1))[..., i, :])
            return torch.stack(parts, -2).flatten(-3)

        handles.append(attention.query_key_value.register_forward_hook(interleaved))
    caught = []
    handles.append(out.register_forward_pre_hook(lambda m, a: caught.append(a[0])))
    attention(q, **kwargs)
    for handle in handles:
        handle.remove()
    return caught[0]


def test_all_on_is_the_stock_model(subject: Subject, batch: Batch) -> None:
    masks = torch.ones(subject.graph.n_edges, dtype=torch.float64)
    expected = subject.model(batch.clean).logits
    expected = torch.take_along_dim(expected, batch.positions[..., None], 1)
    for kind in ("interchange", "zero", "mean"):
        torch.testing.assert_close(run(subject, batch, masks, kind), expected, **TIGHT)


def test_all_off_is_the_corrupted_run(subject: Subject, batch: Batch) -> None:
    masks = torch.zeros(subject.graph.n_edges, dtype=torch.float64)
    expected = subject.model(batch.corrupted).logits
    expected = torch.take_along_dim(expected, batch.positions[..., None], 1)
    torch.testing.assert_close(run(subject, batch, masks), expected, **TIGHT)


def test_all_off_with_zero_ablation_forgets_the_tokens(subject: Subject, batch: Batch) -> None:
    logits = run(subject, batch, torch.zeros(subject.graph.n_edges, dtype=torch.float64), "zero")
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), **TIGHT)


def test_any_masks_equal_brute_force(subject: Subject, batch: Batch) -> None:
    flat = random_masks(subject)
    dense = MaskLayout(subject.graph).dense(flat)[0]
    expected = brute_force(subject, batch, dense)
    for panel in (1, 2, 5):
        torch.testing.assert_close(run(subject, batch, flat, panel=panel), expected, **TIGHT)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("panel", [1, 2])
def test_gradient_is_the_finite_difference(subject: Subject, batch: Batch, recompute: bool, panel: int) -> None:
    flat = random_masks(subject).requires_grad_()
    weights = torch.randn(3, 2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(masks: torch.Tensor) -> torch.Tensor:
        return (run(subject, batch, masks, recompute=recompute, panel=panel).log_softmax(-1) * weights).sum()

    (grad,) = torch.autograd.grad(loss(flat), flat)
    step = 1e-5
    for edge in torch.randperm(subject.graph.n_edges, generator=torch.Generator().manual_seed(2))[:8].tolist():
        nudge = torch.zeros_like(flat)
        nudge[edge] = step
        with torch.no_grad():
            expected = (loss(flat + nudge) - loss(flat - nudge)) / (2 * step)
        torch.testing.assert_close(grad[edge], expected, rtol=1e-5, atol=1e-7)


def test_rows_do_not_see_each_other(subject: Subject, batch: Batch) -> None:
    flat = random_masks(subject)
    together = run(subject, batch, flat)
    one = Batch(**{name: value[1:2] for name, value in vars(batch).items()})
    torch.testing.assert_close(run(subject, one, flat), together[1:2], **TIGHT)


def test_padding_changes_nothing(subject: Subject, batch: Batch) -> None:
    flat = random_masks(subject)
    padded = Batch(**vars(batch))
    for name in ("clean", "corrupted", "roles"):
        setattr(padded, name, torch.nn.functional.pad(getattr(batch, name), (0, 4)))
    torch.testing.assert_close(run(subject, padded, flat), run(subject, batch, flat), **TIGHT)


def test_roles_with_equal_masks_are_one_mask(subject: Subject, batch: Batch) -> None:
    flat = random_masks(subject)
    roles = ("other", "subject", "end")
    expected = run(subject, batch, flat)
    torch.testing.assert_close(run(subject, batch, flat.repeat(3), roles=roles), expected, **TIGHT)


def test_role_gradients_add_up(subject: Subject, batch: Batch) -> None:
    roles = ("other", "subject", "end")
    one = random_masks(subject).requires_grad_()
    three = one.detach().repeat(3).requires_grad_()
    (single,) = torch.autograd.grad(run(subject, batch, one).log_softmax(-1)[..., 0].sum(), one)
    (split,) = torch.autograd.grad(run(subject, batch, three, roles=roles).log_softmax(-1)[..., 0].sum(), three)
    torch.testing.assert_close(split.view(3, -1).sum(0), single, **TIGHT)
    assert bool((split.view(3, -1)[0] != split.view(3, -1)[1]).any())


def test_node_masks_multiply_edges(subject: Subject) -> None:
    layout = MaskLayout(subject.graph, nodes=True)
    flat = torch.rand(layout.size, dtype=torch.float64)
    name = subject.graph.edge_name(17)
    writer = subject.graph.writers.index(name.split("->")[0])
    expected = flat[17] * flat[subject.graph.n_edges + writer]
    torch.testing.assert_close(layout.edges(flat)[0, 17], expected)


def test_unreachable_edges_change_nothing(subject: Subject, batch: Batch) -> None:
    generator = torch.Generator().manual_seed(3)
    kept = torch.rand(1, subject.graph.n_edges, generator=generator) < 0.12
    reachable = reachable_edges(subject.graph, kept)
    assert 0 < int(reachable.sum()) < int(kept.sum())
    whole, pruned = (run(subject, batch, mask[0].double()) for mask in (kept, reachable))
    torch.testing.assert_close(whole, pruned, **TIGHT)


@pytest.mark.parametrize("name,targets", [("llama", ["q_proj", "o_proj", "up_proj"]), ("gpt2", ["c_attn", "c_proj"])])
def test_lora_model_keeps_the_identities(name: str, targets: list[str], batch: Batch) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(name), LoraConfig(r=3, target_modules=targets, fan_in_fan_out=name == "gpt2"))
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    plain = tiny_model(name)(batch.clean).logits
    adapted = model(batch.clean).logits
    assert float((plain - adapted).abs().max()) > 1e-2
    subject = Subject(unwrap(model))
    test_all_on_is_the_stock_model(subject, batch)
    test_all_off_is_the_corrupted_run(subject, batch)


def test_no_hook_outlives_its_block(subject: Subject, batch: Batch) -> None:
    with pytest.raises(IndexError):
        ablated_run(subject, Batch(**{**vars(batch), "corrupted": batch.corrupted + 10_000}), "interchange")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_float32_within_its_error() -> None:
    subject = Subject(tiny_model("llama").float())
    batch = tiny_batch()
    logits = run(subject, batch, torch.ones(subject.graph.n_edges))
    expected = torch.take_along_dim(subject.model(batch.clean).logits, batch.positions[..., None], 1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
