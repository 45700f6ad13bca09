"""Path patching by the textbook, with hooks on the stock model: one run that freezes, one that patches."""

from __future__ import annotations

from contextlib import ExitStack
from operator import attrgetter

import torch
from brute_force import attend, told_of
from torch import Tensor, nn

from circuitlit.model import Subject


def patched_logits(
    subject: Subject, clean: Tensor, other: Tensor, senders: list[str], receivers: list[str], through_mlps: bool
) -> Tensor:
    """Logits at all positions of `clean` when receivers see the senders of `other`; names as in the graph."""
    with torch.no_grad():
        seen = frozen_run(subject, clean, other, senders, through_mlps)
        return _patched_run(subject, clean, receivers, seen)


def _modules(subject: Subject) -> list[tuple[nn.Module, nn.Module, nn.Module, nn.Module]]:
    anatomy = subject.anatomy
    found = []
    for block in anatomy.blocks(subject.model):
        norms = getattr(block, anatomy.attn_norm), getattr(block, anatomy.mlp_norm)
        out = getattr(block.get_submodule(anatomy.attention), anatomy.out)
        found.append((*norms, out, block.get_submodule(anatomy.mlp)))
    return found


def _outputs(subject: Subject, ids: Tensor) -> dict[str, Tensor]:
    """What embedding, heads (all of a layer) and MLPs put out."""
    kept: dict[str, Tensor] = {}
    with ExitStack() as hooks:

        def keep(name, value) -> None:
            kept[name] = value.clone()

        hooks.callback(subject.embed.register_forward_hook(lambda m, a, o: keep("input", o)).remove)
        for layer, (*_, out, mlp) in enumerate(_modules(subject)):
            hook = out.register_forward_pre_hook(lambda m, a, layer=layer: keep(f"a{layer}", a[0]))
            hooks.callback(hook.remove)
            hooks.callback(mlp.register_forward_hook(lambda m, a, o, layer=layer: keep(f"m{layer}", o)).remove)
        subject.model(ids)
    return kept


def frozen_run(
    subject: Subject, clean: Tensor, other: Tensor, senders: list[str], through_mlps: bool
) -> dict[str, Tensor]:
    """Residual streams ahead of every norm with all heads (and MLPs) frozen to clean, senders to the other run."""
    base, source = _outputs(subject, clean), _outputs(subject, other)
    forced = dict(base)
    width = base["a0"].shape[-1] // subject.graph.n_heads
    for sender in senders:
        if "." in sender:
            layer, head = sender.split(".h")
            columns = slice(int(head) * width, (int(head) + 1) * width)
            forced[layer] = forced[layer].clone()
            forced[layer][..., columns] = source[layer][..., columns]
        else:
            forced[sender] = source[sender]
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:

        def keep(name: str):
            def hook(module, args) -> None:
                seen[name] = args[0].clone()

            return hook

        hooks.callback(subject.embed.register_forward_hook(lambda m, a, o: forced["input"]).remove)
        for layer, (attn_norm, mlp_norm, out, mlp) in enumerate(_modules(subject)):
            hooks.callback(attn_norm.register_forward_pre_hook(keep(f"a{layer}")).remove)
            hooks.callback(mlp_norm.register_forward_pre_hook(keep(f"m{layer}")).remove)
            hook = out.register_forward_pre_hook(lambda m, a, layer=layer: (forced[f"a{layer}"],))
            hooks.callback(hook.remove)
            if not through_mlps or f"m{layer}" in senders:
                hooks.callback(mlp.register_forward_hook(lambda m, a, o, layer=layer: forced[f"m{layer}"]).remove)
        final = attrgetter(subject.anatomy.final_norm)(subject.model)
        hooks.callback(final.register_forward_pre_hook(keep("logits")).remove)
        subject.model(clean)
    return seen


def _patched_run(subject: Subject, clean: Tensor, receivers: list[str], seen: dict[str, Tensor]) -> Tensor:
    """A clean run in which every receiver reads what it saw in the frozen run."""
    graph = subject.graph
    group, told = graph.n_heads // graph.n_kv_heads, told_of(subject, clean)[0]
    with ExitStack() as hooks:
        for layer, (attn_norm, mlp_norm, out, _) in enumerate(_modules(subject)):
            own = {name for name in receivers if name.startswith(f"a{layer}.")}
            if f"m{layer}" in receivers:
                hook = mlp_norm.register_forward_pre_hook(lambda m, a, layer=layer: (seen[f"m{layer}"],))
                hooks.callback(hook.remove)
            if not own:
                continue
            state: dict[str, Tensor] = {}

            def keep(module, args, output, state=state) -> None:
                state["now"] = output

            def swap(module, args, state=state, own=own, layer=layer, norm=attn_norm):
                if state.pop("busy", None) is not None:
                    return None
                now, results = state["now"], args[0].clone()
                patched = norm.forward(seen[f"a{layer}"])
                width = results.shape[-1] // graph.n_heads
                for head in range(graph.n_heads):
                    kinds = {"q": head, "k": head // group, "v": head // group}
                    q, k, v = (patched if f"a{layer}.h{i}<{kind}>" in own else now for kind, i in kinds.items())
                    state["busy"] = now
                    mixed = attend(subject, layer, told, q, k, v)
                    results[..., head * width : (head + 1) * width] = mixed[..., head * width : (head + 1) * width]
                return (results,)

            hooks.callback(attn_norm.register_forward_hook(keep).remove)
            hooks.callback(out.register_forward_pre_hook(swap).remove)
        if "logits" in receivers:
            final = attrgetter(subject.anatomy.final_norm)(subject.model)
            hooks.callback(final.register_forward_pre_hook(lambda m, a: (seen["logits"],)).remove)
        return subject.model(clean).logits
