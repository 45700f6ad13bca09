"""Weight change of a tuned model, by head and module; adapters are read from their factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitlit.compare.matrices import Delta, LowRank, MatrixChange, matrix_change
from circuitlit.errors import UserError
from circuitlit.graph import Graph
from circuitlit.model import Subject
from circuitlit.model.linear import affine, is_linear
from circuitlit.model.logits import final_norm, is_tied, unembedder
from circuitlit.tasks import PairsModule


@dataclass(frozen=True)
class PartChange:
    """The change of one part of a model.

    Attributes:
        name: `a3.h2.q`, `a3.kv0.v`, `m3.up_proj`, `embed` ...; biases end in `.bias`.
        kind: q, k, v, o, mlp, norm, bias, embed, unembed.
        layer: block, None outside.
        nodes: writers that it belongs to; keys and values belong to all heads of their group.
        numel: weights.
        change: the figures.
        relative: of `change`.
    """

    name: str
    kind: str
    layer: int | None
    nodes: tuple[str, ...]
    numel: int
    change: MatrixChange
    relative: float | None


class _Part(NamedTuple):
    name: str
    kind: str
    layer: int | None
    nodes: tuple[str, ...]
    weight: Float[Tensor, "into out"]


def check_same_graph(base: Subject, tuned: Subject, name: str = "tuned") -> None:
    """Refuse models that cannot be compared.

    Args:
        base, tuned: the models.
        name: what the second is called in the error.

    Raises:
        UserError: they are of different graphs.
    """
    if base.graph != tuned.graph:
        raise UserError(f"base has {base.graph}, {name} {tuned.graph}; only models of one graph can be compared")


def check_same_tokens(base: PairsModule, tuned: PairsModule, name: str = "tuned") -> None:
    """Refuse pairs that two models were given as different tokens: their answers could not be compared.

    Raises:
        UserError: a prompt or an answer differs.
    """
    for split in ("train", "test"):
        own, other = getattr(base, split).rows, getattr(tuned, split).rows
        place = next((row for row, (one, two) in enumerate(zip(own, other, strict=False)) if one != two), None)
        if place is not None:
            raise UserError(
                f"base and {name} read pair {place + 1} of {split} as different tokens; only models of one "
                "tokenizer, and the same pairs, can be compared"
            )


def check_same_vocabulary(base: Subject, tuned: Subject, name: str = "tuned") -> None:
    """Refuse models that answer in different tokens, or mean different ones by a number.

    Raises:
        UserError: they have another number of tokens, or a token of both has two numbers.
    """
    ours, theirs = (affine(unembedder(subject.model))[0].shape[-1] for subject in (base, tuned))
    if ours != theirs:
        raise UserError(
            f"base has {ours} tokens, {name} {theirs}; only models of one vocabulary can be compared; "
            "resize_token_embeddings takes added tokens away"
        )
    if base.tokenizer is None or tuned.tokenizer is None:
        return
    known = tuned.tokenizer.get_vocab()
    for token, number in base.tokenizer.get_vocab().items():
        if known.get(token, number) != number:
            raise UserError(
                f"'{token}' is token {number} of base and {known[token]} of {name}; "
                "only models of one tokenizer can be compared"
            )


def weight_changes(base: Subject, tuned: Subject) -> Iterator[PartChange]:
    """Every part's change, block by block.

    Where the tuned model is the base model with LoRA or AdaLoRA adapters on it, the change is read from their factors;
    otherwise the weights are subtracted.

    Raises:
        UserError: the models are not of one shape.
    """
    check_same_graph(base, tuned)
    if _shares_weights(base, tuned):
        adapted = _adapter_factors(tuned)
        for part in _parts(base):
            yield _measured(part, adapted.get(part.name, torch.zeros_like(part.weight)))
        return
    for before, after in zip(_parts(base), _parts(tuned), strict=True):
        if before.name != after.name or before.weight.shape != after.weight.shape:
            raise UserError(f"{before.name} differs in shape between the models; compare models of one architecture")
        yield _measured(before, after.weight - before.weight)


def _measured(part: _Part, change: Delta) -> PartChange:
    figures = matrix_change(part.weight, change)
    return PartChange(part.name, part.kind, part.layer, part.nodes, part.weight.numel(), figures, figures.relative)


def _parts(subject: Subject) -> Iterator[_Part]:
    """All weights of a subject in the order and names of `PartChange`; linear maps are `[into, out]`."""
    graph, anatomy, model = subject.graph, subject.anatomy, subject.model
    yield _Part("embed", "embed", None, ("input",), _plain(subject.embed))
    for path, owners in ((anatomy.positions, ()), (anatomy.position_writer, ("pos",))):
        if path is not None and list(attrgetter(path)(model).parameters()):  # XGLM's are sinusoids
            yield _Part("positions", "embed", None, owners, _plain(attrgetter(path)(model)))
    yield from _norm("embed_norm", None, None if anatomy.embedded is None else subject.writes_input)
    for layer, block in enumerate(anatomy.blocks(model)):
        parts = anatomy.parts(block, graph)
        for kind, heads in (("q", parts.q), ("k", parts.k), ("v", parts.v)):
            for head, (name, nodes) in enumerate(_heads(graph, layer, kind)):
                yield _Part(f"{name}.{kind}", kind, layer, nodes, heads.weight[head])
                if heads.bias is not None:
                    yield _Part(f"{name}.{kind}.bias", "bias", layer, nodes, heads.bias[head][None])
        for head, (name, nodes) in enumerate(_heads(graph, layer, "q")):
            yield _Part(f"{name}.o", "o", layer, nodes, parts.out[head])
        if parts.out_bias is not None:
            yield _Part(f"a{layer}.o.bias", "bias", layer, (), parts.out_bias[None])
        for name, module in linears(parts.mlp):
            weight, bias = affine(module)
            yield _Part(f"m{layer}.{name}", "mlp", layer, (f"m{layer}",), weight)
            if bias is not None:
                yield _Part(f"m{layer}.{name}.bias", "bias", layer, (f"m{layer}",), bias[None])
        yield from _experts(parts.mlp, layer)
        norms = {
            "attn_norm": parts.attn_norm,
            "mlp_norm": None if parts.mlp_norm is parts.attn_norm else parts.mlp_norm,
            "q_norm": parts.q_norm,
            "k_norm": parts.k_norm,
        }
        for name, norm in norms.items():
            yield from _norm(f"{layer}.{name}", layer, norm)
        for name, value in anatomy.further(parts.own[1]) if parts.own else ():
            yield _Part(f"{layer}.{name}", "norm", layer, (), value.detach().reshape(1, -1))
    yield from _norm("final_norm", None, final_norm(model))
    weight, bias = affine(unembedder(model))
    if not is_tied(model):
        yield _Part("unembed", "unembed", None, (), weight)
    if bias is not None:
        yield _Part("unembed.bias", "bias", None, (), bias[None])


def _experts(mlp: nn.Module, layer: int) -> Iterator[_Part]:
    """Matrices of an MLP that are in no linear module: those of experts, one by one, and of their router."""
    known = {id(parameter) for _, module in linears(mlp) for parameter in module.parameters()}
    for name, value in mlp.named_parameters():
        if value.dim() < 2 or id(value) in known:
            continue
        for number, matrix in enumerate(value.flatten(0, -3) if value.dim() > 2 else value[None]):
            label = f"m{layer}.{name}.{number}" if value.dim() > 2 else f"m{layer}.{name}"
            yield _Part(label, "mlp", layer, (f"m{layer}",), matrix.t())


def _adapter_factors(subject: Subject) -> dict[str, LowRank]:
    """The factors of every linear part's change, by the part's name; noughts of rank one where nothing is adapted."""
    graph, anatomy = subject.graph, subject.anatomy
    blocks = anatomy.blocks(subject.model)
    adapted: dict[str, LowRank] = {}
    for layer, block in enumerate(blocks):
        attention = block.get_submodule(anatomy.attention)
        changes = [factors(getattr(attention, name)) for name in anatomy.projections]
        maps = [part.movedim(-2, 0) for part in anatomy.split([change.right for change in changes], graph)]
        lefts = [change.left for change in changes] * (3 // len(changes))
        for kind, heads, left in zip("qkv", maps, lefts, strict=True):
            for head, (name, _) in enumerate(_heads(graph, layer, kind)):
                adapted[f"{name}.{kind}"] = LowRank(left, heads[head])
        out = factors(getattr(attention, anatomy.out))
        for head, left in enumerate(out.left.unflatten(0, (graph.n_heads, -1))):
            adapted[f"a{layer}.h{head}.o"] = LowRank(left, out.right * anatomy.write_gain(block))
        for name, module in linears(anatomy.whole_mlp(block)):
            adapted[f"m{layer}.{name}"] = factors(module)
    return adapted


@torch.no_grad()
def factors(module: Any) -> LowRank:
    """The change that the adapters on a linear module make, `[into, out]`; noughts without adapters.

    Source: LoRA arXiv 2106.09685: `alpha / r * B A`; AdaLoRA arXiv 2303.10512: `P diag(E) Q`, in PEFT scaled alike.
    """
    lefts, rights = [], []
    for name in getattr(module, "active_adapters", []):
        if name not in module.lora_A:
            continue
        a, b = module.lora_A[name], module.lora_B[name]
        scale = module.scaling[name]
        if isinstance(a, nn.Module):
            a, b = a.weight, b.weight
        else:
            a, scale = a * module.lora_E[name], scale / (module.ranknum[name] + 1e-5)
        lefts.append(a.T)
        rights.append(scale * b.T)
    if lefts:
        return LowRank(torch.cat(lefts, 1).detach(), torch.cat(rights).detach())
    weight = getattr(module, "base_layer", module).weight
    into, out = weight.shape if type(getattr(module, "base_layer", module)) is Conv1D else weight.shape[::-1]
    return LowRank(weight.new_zeros(into, 1), weight.new_zeros(1, out))


def _shares_weights(base: Subject, tuned: Subject) -> bool:
    """True where the tuned model is the base with nothing but plain low-rank adapters on linear modules."""
    adapters = [module for module in tuned.model.modules() if hasattr(module, "base_layer")]
    plain = all(
        isinstance(module.base_layer, nn.Linear | Conv1D)
        and not len(getattr(module, "lora_magnitude_vector", ()))
        and not module.disable_adapters
        for module in adapters
    )
    if not adapters or not plain or any(hasattr(module, "base_layer") for module in base.model.modules()):
        return False
    names = ("lora_A", "lora_B", "lora_E", "ranknum")
    theirs = {
        name.replace(".base_layer", ""): value
        for name, value in tuned.model.state_dict().items()
        if not any(part in names for part in name.split("."))
    }
    ours = base.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def _heads(graph: Graph, layer: int, kind: str) -> list[tuple[str, tuple[str, ...]]]:
    """Names of a block's q heads, or of its key/value heads, and the writers that each belongs to."""
    group = graph.n_heads // graph.n_kv_heads
    if kind == "q" or group == 1:
        return [(f"a{layer}.h{head}", (f"a{layer}.h{head}",)) for head in range(graph.n_heads)]
    return [
        (f"a{layer}.kv{head}", tuple(f"a{layer}.h{head * group + i}" for i in range(group)))
        for head in range(graph.n_kv_heads)
    ]


def linears(mlp: nn.Module) -> list[tuple[str, nn.Module]]:
    """The linear modules of an MLP, adapted or not."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in mlp.named_children():
        if hasattr(module, "base_layer") or is_linear(module):
            found.append((name, module))
        else:
            found += [(f"{name}.{inner}", linear) for inner, linear in linears(module)]
    return found


def _norm(name: str, layer: int | None, norm: nn.Module | None) -> Iterator[_Part]:
    for parameter, value in () if norm is None else norm.named_parameters():
        yield _Part(f"{name}.{parameter}", "norm", layer, (), value.detach()[None])


def _plain(module: nn.Module) -> Float[Tensor, "into out"]:
    weight = getattr(module, "weight", None)
    assert isinstance(weight, Tensor)
    return weight.detach()
