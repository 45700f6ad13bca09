"""Layer-wise relevance propagation as hooks: the stock forward keeps its values, its backward follows other rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitlit.errors import UserError
from circuitlit.model.linear import affine
from circuitlit.model.logits import final_norm
from circuitlit.model.norms import recognise
from circuitlit.model.subject import Subject


@contextmanager
def relevance_rules(subject: Subject, constant_patterns: bool) -> Iterator[None]:
    """Have gradients of the stock model be coefficients of relevance; the hooks are gone when the block ends.

    Norms: the scale is a constant (LN rule). Activations: `act(x)` is `x` times the constant `act(x) / x` (identity
    rule). Gated products: each factor gets half the gradient (half rule). Linear maps stay as they are (0 rule), and so
    do learned positions and biases, which take relevance of their own.

    Args:
        subject: the frozen model.
        constant_patterns: True also takes attention patterns as constants (AH rule), so that nothing flows into
            queries and keys; False keeps the gradient of the attention.

    Source: Jafari et al., "RelP" (arXiv 2508.21258) section 3.
    """
    anatomy, model = subject.anatomy, subject.model
    if anatomy.borrowed:
        raise UserError("relevance rules do not see into attention that runs as its own code; take another method")
    with ExitStack() as hooks:

        def change(module: nn.Module, hook: Callable) -> None:
            hooks.callback(module.register_forward_hook(hook).remove)

        change(final_norm(model), _fixed_scale(final_norm(model)))
        for block in anatomy.blocks(model):
            attention = block.get_submodule(anatomy.attention)
            chain = [block.get_submodule(name) for name in anatomy.mlp_chain or (anatomy.mlp,)]
            mlp = chain[0]
            norms = [getattr(block, name) for name in (anatomy.attn_norm, anatomy.mlp_norm) if name]
            norms += [module for module in chain[1:] if recognise(module) is not None]
            norms += [] if anatomy.post_norm is None else [getattr(block, anatomy.post_norm)]
            norms += [getattr(attention, name) for name in anatomy.head_norms if hasattr(attention, name)]
            for norm in dict.fromkeys(norms):  # one norm may be for both
                change(norm, _fixed_scale(norm))
            owner = block if hasattr(block, anatomy.activation) else mlp  # OPT's MLP is no module of its own
            if not hasattr(owner, anatomy.activation):
                raise UserError(f"relevance rules do not know the MLP {type(mlp).__name__}; take another method")
            change(getattr(owner, anatomy.activation), _fixed_slope)
            if anatomy.gated is not None:
                change(getattr(mlp, anatomy.gated), _gradient_times(0.5))
                if not anatomy.gate_fused:
                    change(getattr(mlp, anatomy.activation), _gradient_times(0.5))
            if constant_patterns:
                projections = [getattr(attention, name) for name in anatomy.projections]
                for module, kept in zip(projections, _value_outputs(subject, projections), strict=True):
                    change(module, _gradient_times(kept))
        yield


def _value_outputs(subject: Subject, projections: list[nn.Module]) -> list[Float[Tensor, "_"]]:
    """For each projection 1 at the outputs that are values, 0 at those that are queries or keys."""
    marks = [torch.zeros_like(affine(module)[0][0]) for module in projections]
    _, _, values = subject.anatomy.split(marks, subject.graph)
    values.fill_(1)  # a view of the marks
    return marks


def _fixed_scale(norm: nn.Module) -> Callable:
    """For a layer norm or root-mean-square norm, a hook by which its scale takes no gradient."""
    known = recognise(norm)
    if known is None:
        raise UserError(f"relevance rules do not know the norm {type(norm).__name__}; take another method")

    def hook(_norm: nn.Module, args: tuple, _output: Tensor) -> Tensor:
        x = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
        if known.centred:
            x = x - x.mean(-1, keepdim=True)
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + known.eps).detach()
        scaled = scaled.to(args[0].dtype) * known.gain
        return (scaled if known.shift is None else scaled + known.shift).to(args[0].dtype)

    return hook


def _fixed_slope(_activation: nn.Module, args: tuple, output: Tensor) -> Tensor:
    x = args[0]
    return x * (output / torch.where(x == 0, torch.ones_like(x), x)).detach()


def _gradient_times(factor: float | Tensor) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    def hook(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        constant = output.detach()
        return constant + factor * (output - constant)

    return hook
