"""Attention that is the model's own: its module runs with given queries, keys and values where its projections were.

All that lies between (norms, rotations, masks, biases, sinks, clips) is the model's own code on the model's own
arguments, so nothing of it has to be known. What the module reads beside queries, keys and values is NaN, and shows.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlit.graph import Graph
from circuitlit.model import Subject
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.layouts import columns


@dataclass(frozen=True)
class Told:
    """What a stock run calls one attention with; NaN where the residual stream was."""

    args: tuple
    kwargs: dict[str, Any]


class _Caught(Exception):
    """The heads' results, before the output projection."""


class _Given(nn.Module):
    """A projection whose output is there already."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, _x: Tensor) -> Tensor:
        """It."""
        return self.output


class _Catch(nn.Module):
    """An output projection that hands what it is given to the borrower, whoever called it."""

    def forward(self, results: Tensor) -> Tensor:
        """Nothing comes back."""
        raise _Caught(results)


class OwnAttention:
    """One layer's attention module, run on given queries, keys and values.

    Args:
        anatomy: of the architecture.
        attention: the module; it is left as it was.
        widths: of the projections' outputs.
        graph: the model's.
    """

    def __init__(self, anatomy: Anatomy, attention: nn.Module, widths: list[int], graph: Graph) -> None:
        self.anatomy, self.attention, self.widths = anatomy, attention, widths
        places = torch.cat([part.flatten() for part in columns(anatomy.split, widths, graph)])
        self.order = places.argsort()  # from heads side by side to the outputs side by side

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, told: Told) -> Float[Tensor, "batch pos width"]:
        """The heads' results, side by side.

        Args:
            q, k, v: `[batch, head, pos, width]`, as the projections make them.
            told: what the stock run told this layer, for as many prompts of this length.
        """
        joint = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], -1)
        orders = self.order.to(joint.device).split(self.widths)
        stand_ins: dict[str, nn.Module] = {  # tensors of their own, which the module may change in place (OLMo's clip)
            name: _Given(joint[..., order]) for name, order in zip(self.anatomy.projections, orders, strict=True)
        }
        own = self.attention._modules
        kept = {name: own[name] for name in (*stand_ins, self.anatomy.out)}
        try:
            own.update({**stand_ins, self.anatomy.out: _Catch()})
            self.attention(*told.args, **told.kwargs)
        except _Caught as caught:
            return caught.args[0]
        finally:
            own.update(kept)
        raise AssertionError("the attention did not call its output projection")


@torch.inference_mode(False)  # what is told in a validation is used in training, too
@torch.no_grad()
def tell(subject: Subject, ids: Int[Tensor, "batch pos"]) -> list[Told]:
    """What each layer's attention is called with; it depends on the shape of the prompts alone."""
    told: list[Told] = []
    nothing = torch.full((), torch.nan, dtype=subject.model.dtype, device=ids.device)
    shape = (*ids.shape, subject.model.config.hidden_size)

    def keep(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        def without(value: Any) -> Any:
            return nothing.expand(shape) if isinstance(value, Tensor) and value.shape == shape else value

        told.append(Told(tuple(map(without, args)), {name: without(value) for name, value in kwargs.items()}))

    with ExitStack() as hooks:
        for block in subject.anatomy.blocks(subject.model):
            attention = block.get_submodule(subject.anatomy.attention)
            hooks.callback(attention.register_forward_pre_hook(keep, with_kwargs=True).remove)
        subject.hidden(ids)
    return told
